"""What Azure's paravisor (the HCL) leaves in the virtual TPM's NV index 0x01400001: report and runtime data.

The layout is Microsoft's OpenHCL ``igvm_attest`` structure, checked on captures: a 32-byte header (``HCLA``),
1184 bytes for the hardware's report (an SNP report, or a 1024-byte TDREPORT and zeros), then five
little-endian u32 (size of what follows including them, version, report type, hash type, size of the variable
data), the variable data and zero padding. The variable data is JSON; its SHA-256 is the report's report_data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from strongroom.encoding import Fields, Reader, parse_json, unb64url, unhex
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.door import at_the_door

SNP, TDX = 2, 4
SHA256 = 1
HARDWARE_SIZE = 1184
TDREPORT_SIZE = 1024
LARGEST = 1 << 16
_HEADER, _TRAILER = 32, 20
ATTESTATION_KEY = "HCLAkPub"


@dataclass(frozen=True, slots=True)
class HclReport:
    """One HCL report. `kind` is 2 (SNP) or 4 (TDX); `hardware` 1184 or 1024 bytes; `hash_type` 1 is SHA-256."""

    version: int
    request: int
    hardware: bytes
    data_version: int
    kind: int
    hash_type: int
    runtime_data: bytes
    padding: int

    @classmethod
    def parse(cls, octets: bytes) -> HclReport:
        """Read a whole report with its zero padding; raises `EvidenceMalformed`."""
        with at_the_door("HCL report"):
            return cls._parse(Reader(octets, where="HCL report"))

    @classmethod
    def _parse(cls, read: Reader) -> HclReport:
        if read.take(4) != b"HCLA":
            raise EvidenceMalformed("HCL report: it does not begin with HCLA", hint="read NV index 0x01400001")
        version, size, request, status = (read.uint_le(4) for _ in range(4))
        if any(read.take(12)) or status or version not in (1, 2):
            raise EvidenceMalformed(f"HCL report: version {version}, status {status}, or reserved bytes not zero")
        area = read.take(HARDWARE_SIZE)
        data_size, data_version, kind, hash_type, count = (read.uint_le(4) for _ in range(5))
        if data_size != count + _TRAILER or size != _HEADER + HARDWARE_SIZE + data_size:
            raise EvidenceMalformed(f"HCL report: sizes {size}, {data_size} and {count} do not fit each other")
        if kind not in (SNP, TDX):
            raise EvidenceMalformed(f"HCL report: report type {kind} is neither SNP (2) nor TDX (4)")
        runtime_data, padding = read.take(count), read.rest()
        if any(padding) or (kind == TDX and any(area[TDREPORT_SIZE:])):
            raise EvidenceMalformed("HCL report: padding that is not zero")
        hardware = area if kind == SNP else area[:TDREPORT_SIZE]
        return cls(version, request, hardware, data_version, kind, hash_type, runtime_data, len(padding))

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        data_size = len(self.runtime_data) + _TRAILER
        header = (self.version, _HEADER + HARDWARE_SIZE + data_size, self.request, 0)
        trailer = (data_size, self.data_version, self.kind, self.hash_type, len(self.runtime_data))
        return b"".join(
            (
                b"HCLA", *(each.to_bytes(4, "little") for each in header), bytes(12),
                self.hardware.ljust(HARDWARE_SIZE, b"\0"), *(each.to_bytes(4, "little") for each in trailer),
                self.runtime_data, bytes(self.padding),
            )
        )  # fmt: skip


def runtime_digest(runtime_data: bytes) -> bytes:
    """The 64 bytes of report data by which the hardware vouches for runtime data: its SHA-256, and zeros."""
    return hashlib.sha256(runtime_data).digest() + bytes(32)


@dataclass(frozen=True, slots=True)
class RuntimeData:
    """What the paravisor says about itself, vouched for by the hardware report: keys and configuration.

    `attestation_keys` are the RSA keys called HCLAkPub, of which there has to be exactly one; `user_data` is
    64 bytes, or empty where the paravisor states none.
    """

    attestation_keys: tuple[rsa.RSAPublicKey, ...]
    user_data: bytes
    vm_id: str
    configuration: dict[str, Any]

    @classmethod
    def parse(cls, octets: bytes) -> RuntimeData:
        """From the JSON (and the NULs it may end with); raises `EvidenceMalformed`.

        Members that are not known here are left alone: Microsoft adds some from release to release, and the
        hash over them was checked before.
        """
        with at_the_door("HCL runtime data"):
            read = Fields(parse_json(octets.rstrip(b"\0"), where="HCL runtime data"), where="HCL runtime data")
            keys = read.value("keys")
            if not isinstance(keys, list) or len(keys) > 16:
                raise MalformedInput("HCL runtime data: keys is not a list of at most 16")
            found = [Fields(each, where="HCL runtime data: key") for each in keys]
            own = tuple(_rsa_key(each) for each in found if each.text("kid", default="") == ATTESTATION_KEY)
            user_data = unhex(read.text("user-data", limit=128, default="").lower(), where=read.where)
            configuration = read.value("vm-configuration") if read.has("vm-configuration") else {}
            if len(user_data) not in (0, 64) or not isinstance(configuration, dict):
                raise MalformedInput("HCL runtime data: user-data or vm-configuration of another form")
            vm_id = configuration.get("vmUniqueId", "")
            return cls(own, user_data, vm_id if isinstance(vm_id, str) else "", configuration)


def _rsa_key(read: Fields) -> rsa.RSAPublicKey:
    kind = read.text("kty", limit=8)
    n, e = (int.from_bytes(unb64url(read.text(name, limit=1024), where=read.where), "big") for name in "ne")
    if kind != "RSA" or not 2048 <= n.bit_length() <= 4096:
        raise MalformedInput(f"{read.where}: {ATTESTATION_KEY} is not an RSA key of 2048 to 4096 bits")
    try:
        return rsa.RSAPublicNumbers(e, n).public_key()
    except ValueError as error:
        raise MalformedInput(f"{read.where}: {ATTESTATION_KEY} is not a usable key") from error
