"""NVIDIA GPU and NVSwitch reports: an SPDM 1.1 GET_MEASUREMENTS request and its response.

Layouts are those of docs/attestation/nvidia.md, after DMTF DSP0274 1.1.x section 10.11 and, for the
opaque data, NVIDIA's published verifier. Little-endian. Nothing is verified here; `nvidia` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.encoding import Reader
from strongroom.errors import MalformedInput

VERSION, GET_MEASUREMENTS, MEASUREMENTS = 0x11, 0xE0, 0x60
REQUEST_SIZE, NONCE_SIZE, SIGNATURE_SIZE, DIGEST_SIZE = 37, 32, 96, 48
LONGEST_REPORT = 1 << 16
DMTF = 1

DRIVER_VERSION, VBIOS_VERSION, BOARD_ID = 3, 6, 14
CHIP_SKU, CHIP_SKU_MOD, PROJECT, PROJECT_SKU, PROJECT_SKU_MOD = 15, 16, 17, 18, 19
FWID, NVDEC0_STATUS, PROTECTED_PCIE, CHIP_INFO = 20, 11, 21, 35
ENABLED, DISABLED = 0xAA, 0x55


@dataclass(frozen=True, slots=True)
class SpdmReport:
    """One request with its response."""

    nonce: bytes
    """The requester's, 32 bytes: what the evidence is fresh for."""
    measurements: Mapping[int, bytes]
    """Block index (from 1) → value, 48 bytes where it is a SHA-384 digest."""
    responder_nonce: bytes
    opaque: Mapping[int, bytes]
    """Field type → value; the constants of this module name the known types."""
    signed: bytes = field(repr=False)
    """Request and response without the signature."""
    signature: bytes = field(repr=False)
    """ECDSA P-384, R and S, big-endian, 96 bytes."""
    trailing: bytes = field(repr=False, default=b"")

    @classmethod
    def parse(cls, octets: bytes) -> SpdmReport:
        """From a request and the response after it, at most 64 KiB; raises `MalformedInput`.

        What follows the response is kept in `trailing`: whether that is allowed is for a policy to say.
        """
        if len(octets) > LONGEST_REPORT:
            raise MalformedInput(f"SPDM report: {len(octets)} bytes, the limit is {LONGEST_REPORT}")
        read = Reader(octets, where="SPDM report")
        if (read.uint(1), read.uint(1)) != (VERSION, GET_MEASUREMENTS):
            raise MalformedInput("SPDM report: it does not begin with a GET_MEASUREMENTS request of SPDM 1.1")
        read.take(2)  # param 1 (signature requested) and param 2 (which measurements): both are signed
        nonce, _slot = read.take(NONCE_SIZE), read.take(1)
        if (read.uint(1), read.uint(1)) != (VERSION, MEASUREMENTS):
            raise MalformedInput("SPDM report: no MEASUREMENTS response of SPDM 1.1 follows the request")
        read.take(2)
        count, size = read.uint_le(1), read.uint_le(3)
        measurements = _measurements(Reader(read.take(size), where="SPDM measurement record"), count)
        responder_nonce = read.take(NONCE_SIZE)
        opaque = _opaque(Reader(read.take(read.uint_le(2)), where="SPDM opaque data"))
        signed = octets[: read.at]
        return cls(nonce, measurements, responder_nonce, opaque, signed, read.take(SIGNATURE_SIZE), read.rest())

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        return self.signed + self.signature + self.trailing

    def text(self, kind: int) -> str:
        """An opaque field of NUL-padded ASCII; empty where it is absent or something else."""
        octets = self.opaque.get(kind, b"").rstrip(b"\0")
        return octets.decode("ascii") if octets.isascii() and octets.decode("ascii").isprintable() else ""

    @property
    def driver_version(self) -> str:
        """Such as ``550.90.07``; empty on a switch, which has none."""
        return self.text(DRIVER_VERSION)

    @property
    def vbios_version(self) -> str:
        """Such as ``96.00.9F.00.01``.

        A switch spells it as text, a GPU as a little-endian 32-bit word and one more byte.
        """
        octets = self.opaque.get(VBIOS_VERSION, b"")
        if len(octets) == 8:
            return ".".join(f"{octet:02X}" for octet in (*octets[3::-1], octets[4]))
        return self.text(VBIOS_VERSION)

    def switch(self, kind: int) -> str:
        """A one-byte status field as ``enabled``, ``disabled``, or empty where it says neither."""
        octets = self.opaque.get(kind, b"")
        return {bytes((ENABLED,)): "enabled", bytes((DISABLED,)): "disabled"}.get(octets, "")


def _measurements(read: Reader, count: int) -> dict[int, bytes]:
    """The measurement blocks (DSP0274 table 45): index, specification, size, and a DMTF value."""
    found: dict[int, bytes] = {}
    for _ in range(count):
        index, specification = read.uint_le(1), read.uint_le(1)
        block = Reader(read.take(read.uint_le(2)), where=f"SPDM measurement {index}")
        if specification != DMTF or not 1 <= index <= 254 or index in found:
            raise MalformedInput(f"SPDM measurement {index}: of another specification, reserved, or there twice")
        block.take(1)  # what kind of thing was measured, and whether the value is a digest
        found[index] = block.take(block.uint_le(2))
        block.done()
    read.done()
    return found


def _opaque(read: Reader) -> dict[int, bytes]:
    """NVIDIA's fields: type and size as 16-bit words, then the value."""
    found: dict[int, bytes] = {}
    while read.left:
        kind = read.uint_le(2)
        value = read.take(read.uint_le(2))
        if kind in found:
            raise MalformedInput(f"SPDM opaque data: field {kind} stands twice")
        found[kind] = value
    return found
