"""The SEV-SNP attestation report, versions 2 to 5, as a typed value.

AMD publication 56860 ("SEV Secure Nested Paging Firmware ABI Specification", revision 1.58),
section 7.3, table ATTESTATION_REPORT: 1184 bytes, little-endian. Bytes 0 to 0x29F are signed with
ECDSA P-384 over SHA-384; the signature field of 512 bytes follows. Fields that the table calls
reserved must be zero, also those after the signature, which nothing signs.

The layout of a TCB version depends on the product, which version 2 does not state; `SnpReport`
therefore keeps the 8 raw bytes and `Tcb.parse` is told the product.

Nothing is judged here: `strongroom.evidence.snp` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.encoding import Fields, Reader
from strongroom.errors import EvidenceMalformed, MalformedInput

REPORT_SIZE = 1184
SIGNED_SIZE = 0x2A0
VERSIONS = range(2, 6)
SIGNING_KEYS = {0: "VCEK", 1: "VLEK", 7: "none"}
ABI = "AMD 56860 section 7.3"

_POLICY_RESERVED = ~((1 << 26) - 1) & (2**64 - 1)  # 56860 section 4.3: bits 63:26 must be zero
_POLICY_ONE = 1 << 17  # and bit 17 must be one
_FLAGS_RESERVED = ~0x1F & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Tcb:
    """The security version numbers of the parts of one platform firmware, each 0 to 255.

    `fmc` exists from Turin on and is None before.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    @classmethod
    def parse(cls, octets: bytes, *, product: str) -> Tcb:
        """From the 8 bytes of a report (56860 section 2.2); raises `EvidenceMalformed`.

        Milan and Genoa: bootloader, tee, 4 reserved, snp, microcode. Turin: fmc, bootloader, tee, snp,
        3 reserved, microcode.
        """
        if len(octets) != 8:
            raise EvidenceMalformed(f"a TCB version is 8 bytes, found {len(octets)}")
        if product == "Turin":
            tcb = cls(octets[1], octets[2], octets[3], octets[7], fmc=octets[0])
        else:
            tcb = cls(octets[0], octets[1], octets[6], octets[7])
        if tcb.serialise() != octets:
            raise EvidenceMalformed(f"TCB version {octets.hex()}: reserved bytes of the {product} layout are not zero")
        return tcb

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        if self.fmc is None:
            return bytes((self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode))
        return bytes((self.fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode))

    def __str__(self) -> str:
        fmc = "" if self.fmc is None else f"fmc={self.fmc} "
        return f"{fmc}bootloader={self.bootloader} tee={self.tee} snp={self.snp} microcode={self.microcode}"


@dataclass(frozen=True, slots=True)
class Firmware:
    """A firmware version, ``major.minor.build``."""

    major: int
    minor: int
    build: int

    @classmethod
    def read(cls, read: Reader) -> Firmware:
        """Build, minor, major and a reserved byte."""
        build, minor, major = read.uint(1), read.uint(1), read.uint(1)
        _zero(read.take(1), "the byte after a firmware version")
        return cls(major, minor, build)

    def serialise(self) -> bytes:
        """The exact inverse of `read`."""
        return bytes((self.build, self.minor, self.major, 0))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True)
class SnpReport:
    """One attestation report. Sizes in bytes: ids 16, report_data and chip_id 64, host_data 32, digests 48.

    `vmpl` is 0 to 3, or 0xFFFFFFFF where the host asked for the report. `r` and `s` are the 72-byte
    little-endian numbers of the signature. Mitigation vectors exist from version 5 on.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    flags: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int]
    chip_id: bytes
    committed_tcb: bytes
    current: Firmware
    committed: Firmware
    launch_tcb: bytes
    launch_mitigations: int
    current_mitigations: int
    r: bytes
    s: bytes

    @classmethod
    def parse(cls, octets: bytes) -> SnpReport:
        """Read exactly 1184 bytes; raises `EvidenceMalformed`, also where a reserved field is not zero."""
        if len(octets) != REPORT_SIZE:
            raise EvidenceMalformed(
                f"an SEV-SNP report is {REPORT_SIZE} bytes, found {len(octets)}",
                hint="hand in the report alone, without the response header of the guest device",
            )
        read = Reader(octets, where="SEV-SNP report")
        version = read.uint_le(4)
        if version not in VERSIONS:
            raise EvidenceMalformed(f"SEV-SNP report version {version} is not one of 2 to 5")
        guest_svn, policy = read.uint_le(4), read.uint_le(8)
        if policy & _POLICY_RESERVED or not policy & _POLICY_ONE:
            raise EvidenceMalformed(f"guest policy {policy:#x}: a reserved bit is not as AMD 56860 section 4.3 asks")
        family_id, image_id = read.take(16), read.take(16)
        vmpl, algorithm, current_tcb = read.uint_le(4), read.uint_le(4), read.take(8)
        platform_info, flags = read.uint_le(8), read.uint_le(4)
        if flags & _FLAGS_RESERVED or flags >> 2 not in SIGNING_KEYS:
            raise EvidenceMalformed(f"key flags {flags:#x} hold reserved bits or an unknown signing key")
        _zero(read.take(4), "offset 0x4c")
        report_data, measurement, host_data = read.take(64), read.take(48), read.take(32)
        id_key, author_key, report_id, report_id_ma = read.take(48), read.take(48), read.take(32), read.take(32)
        reported_tcb = read.take(8)
        cpuid = (read.uint(1), read.uint(1), read.uint(1))
        if version < 3:
            _zero(bytes(cpuid), "the CPUID of a version 2 report")
        _zero(read.take(21), "offset 0x18b")
        chip_id, committed_tcb = read.take(64), read.take(8)
        current, committed, launch_tcb = Firmware.read(read), Firmware.read(read), read.take(8)
        launch_mitigations, current_mitigations = read.uint_le(8), read.uint_le(8)
        if version < 5 and (launch_mitigations or current_mitigations):
            raise EvidenceMalformed(f"a version {version} report with mitigation vectors")
        _zero(read.take(152), "offset 0x208")
        r, s = read.take(72), read.take(72)
        _zero(read.take(368), "the rest of the signature field")
        read.done()
        return cls(
            version, guest_svn, policy, family_id, image_id, vmpl, algorithm, current_tcb, platform_info, flags,
            report_data, measurement, host_data, id_key, author_key, report_id, report_id_ma, reported_tcb, cpuid,
            chip_id, committed_tcb, current, committed, launch_tcb, launch_mitigations, current_mitigations, r, s,
        )  # fmt: skip

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        return b"".join(
            (
                self.version.to_bytes(4, "little"), self.guest_svn.to_bytes(4, "little"),
                self.policy.to_bytes(8, "little"), self.family_id, self.image_id, self.vmpl.to_bytes(4, "little"),
                self.signature_algorithm.to_bytes(4, "little"), self.current_tcb,
                self.platform_info.to_bytes(8, "little"), self.flags.to_bytes(4, "little"), bytes(4),
                self.report_data, self.measurement, self.host_data, self.id_key_digest, self.author_key_digest,
                self.report_id, self.report_id_ma, self.reported_tcb, bytes(self.cpuid), bytes(21), self.chip_id,
                self.committed_tcb, self.current.serialise(), self.committed.serialise(), self.launch_tcb,
                self.launch_mitigations.to_bytes(8, "little"), self.current_mitigations.to_bytes(8, "little"),
                bytes(152), self.r, self.s, bytes(368),
            )
        )  # fmt: skip

    @property
    def signed(self) -> bytes:
        """The 0x2A0 bytes under the signature."""
        return self.serialise()[:SIGNED_SIZE]

    @property
    def signing_key(self) -> str:
        """``VCEK``, ``VLEK`` or ``none``."""
        return SIGNING_KEYS[self.flags >> 2]

    @property
    def product(self) -> str | None:
        """The product line that CPUID names, ``unknown``, or None in a version 2 report.

        AMD 57230 section 1.4: family 19h models 0-Fh are Milan, 10h-1Fh and A0h-AFh are Genoa (with
        Bergamo and Siena); family 1Ah models 0-1Fh are Turin.
        """
        if self.version < 3:
            return None
        family, model, _ = self.cpuid
        if family == 0x19 and model < 0x10:
            return "Milan"
        if family == 0x19 and (model >> 4) in (0x1, 0xA):
            return "Genoa"
        if family == 0x1A and model < 0x20:
            return "Turin"
        return "unknown"

    @property
    def smt_allowed(self) -> bool:
        """Guest policy bit 16."""
        return bool(self.policy >> 16 & 1)

    @property
    def migration_allowed(self) -> bool:
        """Guest policy bit 18, MIGRATE_MA."""
        return bool(self.policy >> 18 & 1)

    @property
    def debug_allowed(self) -> bool:
        """Guest policy bit 19."""
        return bool(self.policy >> 19 & 1)

    @property
    def ciphertext_hiding(self) -> bool:
        """PLATFORM_INFO bit 4: the host cannot read even the ciphertext of guest memory."""
        return bool(self.platform_info >> 4 & 1)

    @property
    def alias_check(self) -> bool:
        """PLATFORM_INFO bit 5: the firmware looked for aliased memory since the last reset."""
        return bool(self.platform_info >> 5 & 1)


def _zero(octets: bytes, where: str) -> None:
    if any(octets):
        raise EvidenceMalformed(f"SEV-SNP report: {where} is reserved and not zero")


# -- the JSON form of the key broker protocol -----------------------------------

_NUMBERS = {"version": 4, "guest_svn": 4, "policy": 8, "vmpl": 4, "sig_algo": 4, "plat_info": 8, "key_info": 4}
_ARRAYS = {
    "family_id": 16, "image_id": 16, "report_data": 64, "measurement": 48, "host_data": 32, "id_key_digest": 48,
    "author_key_digest": 48, "report_id": 32, "report_id_ma": 32, "chip_id": 64,
}  # fmt: skip
_TCBS = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")


def from_serde(value: object) -> bytes:
    """The 1184 bytes behind the ``attestation_report`` object of a stock attester; raises `EvidenceMalformed`.

    The object follows a Rust structure (specs of the key broker protocol, section 6): byte strings are
    arrays of numbers, TCBs are objects whose ``fmc`` is null before Turin, CPUID and mitigation members
    are null where the report's version lacks them. `to_serde` is the inverse.
    """
    try:
        read = Fields(value, where="attestation_report")
        numbers = {name: read.number(name, high=2 ** (8 * size) - 1) for name, size in _NUMBERS.items()}
        arrays = {name: octets_of(read.value(name), size=size, where=name) for name, size in _ARRAYS.items()}
        tcbs = {name: _tcb(read.table(name)) for name in _TCBS}
        cpuid = [_optional(read, f"cpuid_{part}_id" if part != "step" else "cpuid_step", 1) for part in _CPUID]
        firmware = [_firmware(read.table(name)) for name in ("current", "committed")]
        mitigations = [_optional(read, f"{when}_mit_vector", 8) for when in ("launch", "current")]
        signature = read.table("signature")
        r, s = (octets_of(signature.value(name), size=72, where=name) for name in "rs")
        signature.done()
        read.done()
    except MalformedInput as error:
        raise EvidenceMalformed(str(error)) from error

    def little(name: str) -> bytes:
        return numbers[name].to_bytes(_NUMBERS[name], "little")

    return b"".join(
        (
            little("version"), little("guest_svn"), little("policy"), arrays["family_id"], arrays["image_id"],
            little("vmpl"), little("sig_algo"), tcbs["current_tcb"], little("plat_info"), little("key_info"), bytes(4),
            arrays["report_data"], arrays["measurement"], arrays["host_data"], arrays["id_key_digest"],
            arrays["author_key_digest"], arrays["report_id"], arrays["report_id_ma"], tcbs["reported_tcb"],
            bytes(cpuid), bytes(21), arrays["chip_id"], tcbs["committed_tcb"], *firmware, tcbs["launch_tcb"],
            *(each.to_bytes(8, "little") for each in mitigations), bytes(152), r, s, bytes(368),
        )
    )  # fmt: skip


_CPUID = ("fam", "mod", "step")


def to_serde(report: SnpReport) -> dict[str, Any]:
    """The ``attestation_report`` object that a stock verifier reads; `from_serde` is the inverse."""
    turin = report.product == "Turin"

    def tcb(octets: bytes) -> dict[str, int | None]:
        parsed = Tcb.parse(octets, product="Turin" if turin else "Milan")
        return {
            "fmc": parsed.fmc, "bootloader": parsed.bootloader, "tee": parsed.tee, "snp": parsed.snp,
            "microcode": parsed.microcode,
        }  # fmt: skip

    def version(firmware: Firmware) -> dict[str, int]:
        return {"major": firmware.major, "minor": firmware.minor, "build": firmware.build}

    cpuid = report.cpuid if report.version >= 3 else (None, None, None)
    value: dict[str, Any] = {
        "version": report.version, "guest_svn": report.guest_svn, "policy": report.policy,
        "family_id": list(report.family_id), "image_id": list(report.image_id), "vmpl": report.vmpl,
        "sig_algo": report.signature_algorithm, "current_tcb": tcb(report.current_tcb),
        "plat_info": report.platform_info, "key_info": report.flags, "report_data": list(report.report_data),
        "measurement": list(report.measurement), "host_data": list(report.host_data),
        "id_key_digest": list(report.id_key_digest), "author_key_digest": list(report.author_key_digest),
        "report_id": list(report.report_id), "report_id_ma": list(report.report_id_ma),
        "reported_tcb": tcb(report.reported_tcb), "cpuid_fam_id": cpuid[0], "cpuid_mod_id": cpuid[1],
        "cpuid_step": cpuid[2], "chip_id": list(report.chip_id), "committed_tcb": tcb(report.committed_tcb),
        "current": version(report.current), "committed": version(report.committed),
        "launch_tcb": tcb(report.launch_tcb), "signature": {"r": list(report.r), "s": list(report.s)},
    }  # fmt: skip
    if report.version >= 5:
        value |= {"launch_mit_vector": report.launch_mitigations, "current_mit_vector": report.current_mitigations}
    return value


def octets_of(value: object, *, size: int | None = None, where: str, limit: int = 1 << 16) -> bytes:
    """Bytes from a JSON array of numbers 0 to 255; raises `MalformedInput`."""
    if not isinstance(value, list) or len(value) > limit or (size is not None and len(value) != size):
        raise MalformedInput(f"{where}: an array of {size or 'at most ' + str(limit)} bytes is expected")
    try:
        if set(map(type, value)) <= {int}:  # true is no number here
            return bytes(value)
    except ValueError:
        pass
    raise MalformedInput(f"{where}: not an array of bytes")


def _optional(read: Fields, name: str, size: int) -> int:
    if not read.has(name):
        return 0
    value = read.value(name)
    if value is None:
        return 0
    return Fields({name: value}, where=read.where).number(name, high=2 ** (8 * size) - 1)


def _tcb(read: Fields) -> bytes:
    fmc = read.value("fmc") if read.has("fmc") else None
    names = ("bootloader", "tee", "snp", "microcode")
    parts: Mapping[str, int] = {name: read.number(name, high=255) for name in names}
    if fmc is not None and not (type(fmc) is int and 0 <= fmc <= 255):
        raise MalformedInput(f"{read.where}: fmc is not a byte")
    read.done()
    return Tcb(**parts, fmc=fmc).serialise()


def _firmware(read: Fields) -> bytes:
    version = Firmware(*(read.number(name, high=255) for name in ("major", "minor", "build")))
    read.done()
    return version.serialise()
