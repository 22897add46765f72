"""Intel DCAP quotes as bytes: version 3 (SGX), 4 and 5 (SGX, TDX 1.0 and 1.5).

Layouts are those of docs/attestation/tdx.md and sgx.md, after Intel's "SGX ECDSA QuoteLib
Reference" appendix A.4 and "TDX DCAP Quoting Library API" appendix A.3. Little-endian
throughout. Nothing is verified here; `dcap` does that.

Promise: every byte of the quote belongs to a field, and lengths agree exactly. What a
buffer holds after the quote is kept apart as `Quote.trailing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from strongroom.encoding import Reader
from strongroom.errors import MalformedInput

HEADER_SIZE = 48
SGX_BODY_SIZE, TD10_BODY_SIZE, TD15_BODY_SIZE = 384, 584, 648
TEE_SGX, TEE_TDX = 0x00, 0x81
ATTESTATION_KEY_P256 = 2
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
PCK_CHAIN, QE_CERTIFICATION = 5, 6
LONGEST_QUOTE = 1 << 16


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """An SGX REPORT body, 384 bytes: of an enclave, or of the quoting enclave."""

    cpu_svn: bytes
    misc_select: int
    isv_ext_prod_id: bytes
    attributes: bytes
    """Flags (8 bytes) and XFRM (8 bytes)."""
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes

    @classmethod
    def parse(cls, octets: bytes, *, what: str) -> EnclaveReport:
        """From exactly 384 bytes with zero reserved fields; raises `MalformedInput`."""
        read = Reader(octets, where=what)
        cpu_svn, misc_select = read.take(16), read.uint_le(4)
        _zero(read.take(12), what)
        isv_ext_prod_id, attributes, mr_enclave = read.take(16), read.take(16), read.take(32)
        _zero(read.take(32), what)
        mr_signer = read.take(32)
        _zero(read.take(32), what)
        config_id, isv_prod_id, isv_svn, config_svn = read.take(64), read.uint_le(2), read.uint_le(2), read.uint_le(2)
        _zero(read.take(42), what)
        report = cls(
            cpu_svn, misc_select, isv_ext_prod_id, attributes, mr_enclave, mr_signer, config_id,
            isv_prod_id, isv_svn, config_svn, read.take(16), read.take(64),
        )  # fmt: skip
        read.done()
        return report

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        return b"".join(
            (
                self.cpu_svn, self.misc_select.to_bytes(4, "little"), bytes(12), self.isv_ext_prod_id,
                self.attributes, self.mr_enclave, bytes(32), self.mr_signer, bytes(32), self.config_id,
                self.isv_prod_id.to_bytes(2, "little"), self.isv_svn.to_bytes(2, "little"),
                self.config_svn.to_bytes(2, "little"), bytes(42), self.isv_family_id, self.report_data,
            )
        )  # fmt: skip

    @property
    def debug(self) -> bool:
        """Flag bit 1: the enclave's memory can be read by debug instructions."""
        return bool(self.attributes[0] & 0x02)


def _zero(octets: bytes, what: str) -> None:
    if any(octets):
        raise MalformedInput(f"{what}: a reserved field is not zero")


@dataclass(frozen=True, slots=True)
class TdReport:
    """A TD quote body: 584 bytes (TDX 1.0), or 648 with the two last fields (TDX 1.5)."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_servicetd: bytes | None = None

    @classmethod
    def parse(cls, octets: bytes, *, what: str) -> TdReport:
        """From exactly 584 or 648 bytes; raises `MalformedInput`."""
        read = Reader(octets, where=what)
        tcb_svn, seam, seam_signer, seam_attributes = read.take(16), read.take(48), read.take(48), read.take(8)
        attributes, xfam, mr_td = read.take(8), read.take(8), read.take(48)
        config_id, owner, owner_config = read.take(48), read.take(48), read.take(48)
        rtmr = (read.take(48), read.take(48), read.take(48), read.take(48))
        report_data = read.take(64)
        svn2, servicetd = (read.take(16), read.take(48)) if len(octets) == TD15_BODY_SIZE else (None, None)
        read.done()
        return cls(
            tcb_svn, seam, seam_signer, seam_attributes, attributes, xfam, mr_td, config_id, owner, owner_config,
            rtmr, report_data, svn2, servicetd,
        )  # fmt: skip

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        return b"".join(
            (
                self.tee_tcb_svn, self.mr_seam, self.mr_signer_seam, self.seam_attributes, self.td_attributes,
                self.xfam, self.mr_td, self.mr_config_id, self.mr_owner, self.mr_owner_config, *self.rtmr,
                self.report_data, self.tee_tcb_svn2 or b"", self.mr_servicetd or b"",
            )
        )  # fmt: skip

    def attribute(self, bit: int) -> bool:
        """Whether TD attribute `bit` (0 DEBUG, 28 SEPT_VE_DISABLE, 29 MIGRATABLE) is set."""
        return bool(int.from_bytes(self.td_attributes, "little") >> bit & 1)

    @property
    def debug(self) -> bool:
        """TD attribute bit 0."""
        return self.attribute(0)


@dataclass(frozen=True, slots=True)
class Quote:
    """One quote: what was signed, by which attestation key, and who certifies that key."""

    version: int
    tee_type: int
    user_data: bytes
    body_type: int | None
    """The body type of a version 5 quote (1 SGX, 2 TDX 1.0, 3 TDX 1.5); None before."""
    body: EnclaveReport | TdReport
    signed: bytes = field(repr=False)
    """The exact bytes under `signature`: header, body header where there is one, body."""
    signature: bytes = field(repr=False)
    attestation_key: bytes = field(repr=False)
    """P-256 point without its leading 04: x (32) and y (32)."""
    qe_report_octets: bytes = field(repr=False)
    qe_report: EnclaveReport = field(repr=False)
    qe_report_signature: bytes = field(repr=False)
    qe_auth_data: bytes = field(repr=False)
    pck_chain: bytes = field(repr=False)
    """PEM, leaf first; some quoting enclaves end it with a NUL."""
    trailing: bytes = field(repr=False)
    """What the buffer holds after the quote; only zeros are tolerated (docs/adr/0038)."""

    @classmethod
    def parse(cls, octets: bytes) -> Quote:
        """From a buffer of at most 64 KiB; raises `MalformedInput`."""
        if len(octets) > LONGEST_QUOTE:
            raise MalformedInput(f"quote: {len(octets)} bytes, the limit is {LONGEST_QUOTE}")
        read = Reader(octets, where="quote")
        version, key_type, tee_type = read.uint_le(2), read.uint_le(2), read.uint_le(4)
        if version not in (3, 4, 5) or tee_type not in ((TEE_SGX,) if version == 3 else (TEE_SGX, TEE_TDX)):
            raise MalformedInput(f"quote: version {version} with TEE type {tee_type:#x} is not known")
        if key_type != ATTESTATION_KEY_P256:
            raise MalformedInput(f"quote: attestation key type {key_type}, only ECDSA P-256 (2) is known")
        read.take(4)  # QE SVN and PCE SVN in version 3, reserved later; both are in signed data elsewhere
        if read.take(16) != INTEL_QE_VENDOR:
            raise MalformedInput("quote: the quoting enclave is not Intel's")
        user_data = read.take(20)
        body_type, size = None, SGX_BODY_SIZE if tee_type == TEE_SGX else TD10_BODY_SIZE
        if version == 5:
            body_type, size = read.uint_le(2), read.uint_le(4)
            if (body_type, size, tee_type) not in _BODIES:
                raise MalformedInput(f"quote: body type {body_type} of {size} bytes for TEE type {tee_type:#x}")
        body_octets = read.take(size)
        signed = octets[: read.at]
        body: EnclaveReport | TdReport
        if tee_type == TEE_SGX:
            body = EnclaveReport.parse(body_octets, what="enclave report")
        else:
            body = TdReport.parse(body_octets, what="TD report")
        section = Reader(read.take(read.uint_le(4)), where="quote signature section")
        signature, key = section.take(64), section.take(64)
        if version > 3:
            section = _nested(section, QE_CERTIFICATION, "quote certification data")
        qe_octets, qe_signature = section.take(384), section.take(64)
        auth_data = section.take(section.uint_le(2))
        chain = _nested(section, PCK_CHAIN, "PCK certification data").rest()
        return cls(
            version, tee_type, user_data, body_type, body, signed, signature, key, qe_octets,
            EnclaveReport.parse(qe_octets, what="QE report"), qe_signature, auth_data, chain, read.rest(),
        )  # fmt: skip

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        inner = self.qe_report_octets + self.qe_report_signature
        inner += len(self.qe_auth_data).to_bytes(2, "little") + self.qe_auth_data
        inner += _wrapped(PCK_CHAIN, self.pck_chain)
        section = self.signature + self.attestation_key
        section += inner if self.version == 3 else _wrapped(QE_CERTIFICATION, inner)
        return self.signed + len(section).to_bytes(4, "little") + section + self.trailing


_BODIES = {(1, SGX_BODY_SIZE, TEE_SGX), (2, TD10_BODY_SIZE, TEE_TDX), (3, TD15_BODY_SIZE, TEE_TDX)}


def _nested(section: Reader, kind: int, what: str) -> Reader:
    found, size = section.uint_le(2), section.uint_le(4)
    if found != kind:
        raise MalformedInput(f"{what}: type {found}, only type {kind} is known")
    inner = Reader(section.take(size), where=what)
    section.done()
    return inner


def _wrapped(kind: int, octets: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(octets).to_bytes(4, "little") + octets
