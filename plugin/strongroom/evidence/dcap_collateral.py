"""Intel collateral: the nine-member JSON document that comes with a quote, and the PCK extension.

The document is the one that quote verification libraries exchange (docs/attestation/tdx.md,
section "Collateral"): four PEM chains and signatures, two exact signed texts, two CRLs.
Nothing is verified here; `dcap` does that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from strongroom.encoding import Fields, parse_json
from strongroom.errors import MalformedInput
from strongroom.evidence.door import Der

SGX_EXTENSION = "1.2.840.113741.1.13.1"
CHAIN_LIMIT, CRL_LIMIT, TEXT_LIMIT = 1 << 15, 1 << 20, 1 << 19
MEMBERS = (
    "pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "tcb_info", "tcb_info_signature",
    "qe_identity_issuer_chain", "qe_identity", "qe_identity_signature",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Collateral:
    """The document, decoded. An absent member is empty here; `missing` names those."""

    pck_crl_issuer_chain: bytes = field(repr=False)
    root_ca_crl: bytes = field(repr=False)
    pck_crl: bytes = field(repr=False)
    tcb_info_issuer_chain: bytes = field(repr=False)
    tcb_info: bytes = field(repr=False)
    """The exact text under `tcb_info_signature`."""
    tcb_info_signature: bytes = field(repr=False)
    qe_identity_issuer_chain: bytes = field(repr=False)
    qe_identity: bytes = field(repr=False)
    qe_identity_signature: bytes = field(repr=False)

    @classmethod
    def parse(cls, octets: bytes) -> Collateral:
        """From the JSON document (at most 4 MiB). An unknown member is refused; raises `MalformedInput`."""
        read = Fields(parse_json(octets, where="collateral", limit=1 << 22), where="collateral")
        collateral = cls(
            _text(read, "pck_crl_issuer_chain", CHAIN_LIMIT), _hex(read, "root_ca_crl", CRL_LIMIT),
            _hex(read, "pck_crl", CRL_LIMIT),
            _text(read, "tcb_info_issuer_chain", CHAIN_LIMIT), _text(read, "tcb_info", TEXT_LIMIT),
            _hex(read, "tcb_info_signature", 64),
            _text(read, "qe_identity_issuer_chain", CHAIN_LIMIT), _text(read, "qe_identity", TEXT_LIMIT),
            _hex(read, "qe_identity_signature", 64),
        )  # fmt: skip
        read.done()
        return collateral

    def serialise(self) -> dict[str, str]:
        """The inverse of `parse`, up to JSON spacing and the case of hex."""
        binary = {"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"}
        return {
            name: getattr(self, name).hex() if name in binary else getattr(self, name).decode("utf-8")
            for name in MEMBERS
        }

    @property
    def missing(self) -> tuple[str, ...]:
        """The members that are absent or empty."""
        return tuple(name for name in MEMBERS if not getattr(self, name))


def _text(read: Fields, name: str, limit: int) -> bytes:
    try:
        return read.text(name, limit=limit, default="").encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell and UTF-8 cannot
        raise MalformedInput(f"collateral: {name} is not text") from error


def _hex(read: Fields, name: str, limit: int) -> bytes:
    text = read.text(name, limit=2 * limit, default="")
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", text):
        raise MalformedInput(f"collateral: {name} is not hex")
    return bytes.fromhex(text)


@dataclass(frozen=True, slots=True)
class PckExtension:
    """The SGX extension of a PCK certificate: which platform it certifies, and at which versions."""

    ppid: bytes
    components: tuple[int, ...]
    """16 component SVNs."""
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    platform_instance_id: bytes

    @classmethod
    def parse(cls, octets: bytes) -> PckExtension:
        """From the extension's DER value (Intel's "PCK Certificate and CRL Specification" 1.3.5).

        Raises `MalformedInput` where a member is missing, twice, or of another size.
        """
        outer = Der(octets, where="PCK certificate extension")
        members = _members(outer.inside())
        outer.done()
        tcb = _members(_sequence(members, f"{SGX_EXTENSION}.2"))
        svns = tuple(_number(tcb, f"{SGX_EXTENSION}.2.{place}") for place in range(1, 18))
        if any(svn > 255 for svn in svns[:16]) or svns[16] > 0xFFFF:
            raise MalformedInput("PCK certificate extension: an SVN is too large")
        instance = f"{SGX_EXTENSION}.6"
        return cls(
            ppid=_octets(members, f"{SGX_EXTENSION}.1", 16),
            components=svns[:16],
            pce_svn=svns[16],
            cpu_svn=_octets(tcb, f"{SGX_EXTENSION}.2.18", 16),
            pce_id=_octets(members, f"{SGX_EXTENSION}.3", 2),
            fmspc=_octets(members, f"{SGX_EXTENSION}.4", 6),
            platform_instance_id=_octets(members, instance, 16) if instance in members else b"",
        )


def _members(sequence: Der) -> dict[str, tuple[int, bytes]]:
    found: dict[str, tuple[int, bytes]] = {}
    while sequence.left:
        pair = sequence.inside()
        name, element = pair.oid(), pair.any()
        pair.done()
        if name in found:
            raise MalformedInput(f"PCK certificate extension: {name} stands twice")
        found[name] = element
    return found


def _element(members: dict[str, tuple[int, bytes]], name: str, tag: int) -> bytes:
    if name not in members or members[name][0] != tag:
        raise MalformedInput(f"PCK certificate extension: {name} is missing or of another type")
    return members[name][1]


def _sequence(members: dict[str, tuple[int, bytes]], name: str) -> Der:
    return Der(_element(members, name, Der.SEQUENCE), where="PCK certificate extension")


def _octets(members: dict[str, tuple[int, bytes]], name: str, size: int) -> bytes:
    contents = _element(members, name, Der.OCTET_STRING)
    if len(contents) != size:
        raise MalformedInput(f"PCK certificate extension: {name} has {len(contents)} bytes, {size} are expected")
    return contents


def _number(members: dict[str, tuple[int, bytes]], name: str) -> int:
    contents = _element(members, name, Der.INTEGER)
    if len(contents) > 4:
        raise MalformedInput(f"PCK certificate extension: {name} is too large")
    return Der(bytes((Der.INTEGER, len(contents))) + contents, where="PCK certificate extension").integer()
