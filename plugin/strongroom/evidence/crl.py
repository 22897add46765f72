"""Certificate revocation lists, read strictly and held against their issuer (RFC 5280 sections 5 and 6.3).

Which certificates are looked up in which list is `revocation`'s business, and `dcap_endorsement`'s for Intel. Lists
may be long, so each is read through once, and its signature checked once; its dates are judged every time (ADR 0066).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import CRLEntryExtensionOID

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import (
    SPACE,
    UNREADABLE,
    may,
    name_of,
    pem_blocks,
    quietly,
    serial_of,
    weakness,
    whole_octets,
)
from strongroom.evidence.types import Checklist, Word

REMEMBERED = 64
"""How many lists are remembered, the latest used."""


@dataclass(frozen=True, slots=True, eq=False)
class RevocationList:
    """One CRL, read through; nobody has yet said that it is its issuer's (`check_crl`)."""

    signed: x509.CertificateRevocationList = field(repr=False)
    issuer: x509.Name
    begin: datetime
    """thisUpdate, UTC."""
    end: datetime | None
    """nextUpdate, UTC."""
    serials: frozenset[int] = field(repr=False)
    """Every serial number in it, whatever the reason: one on hold counts."""
    complete: bool
    """Whether no critical extension limits what it says: a delta, indirect or partial list has one."""
    number: int | None = None
    """cRLNumber (RFC 5280 section 5.2.3), where the list states one."""

    def has(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate's serial number is listed; only its own issuer's list means anything."""
        return serial_of(certificate) in self.serials


def parse_crl(octets: bytes, *, what: str) -> RevocationList:
    """One CRL, in DER or PEM, with nothing after it; raises `EvidenceMalformed`."""
    if octets.lstrip(SPACE).startswith(b"-----BEGIN"):
        blocks = pem_blocks(octets, b"X509 CRL", what)
        if len(blocks) != 1:
            raise EvidenceMalformed(f"{what}: one CRL is expected, found {len(blocks)}")
        octets = blocks[0]
    try:
        return _read(octets)
    except UNREADABLE as error:
        raise EvidenceMalformed(f"{what}: not a CRL that can be read") from error


@lru_cache(maxsize=REMEMBERED)
def _read(octets: bytes) -> RevocationList:
    with quietly():
        crl = x509.load_der_x509_crl(octets)
        whole_octets(octets, crl.signature)
        entries = [(entry.serial_number, tuple(entry.extensions)) for entry in crl]
        known = {CRLEntryExtensionOID.CRL_REASON}
        limits = {each.oid for _, found in entries for each in found if each.critical} - known
        limits |= {each.oid for each in crl.extensions if each.critical}
        numbers = [each.value.crl_number for each in crl.extensions if isinstance(each.value, x509.CRLNumber)]
        return RevocationList(
            crl, crl.issuer, crl.last_update_utc, crl.next_update_utc,
            frozenset(serial for serial, _ in entries), not limits, next(iter(numbers), None),
        )  # fmt: skip


def check_crl(crl: RevocationList, *, issuer: x509.Certificate, now: datetime, checks: Checklist, name: str) -> bool:
    """Whether `crl` is `issuer`'s own complete list and fresh at `now`.

    Records ``<name>.crl`` (`Word.REVOCATION`: issuer, signature, no delta or indirect list) and
    ``<name>.crl-validity`` (`Word.VALIDITY_PERIOD`: thisUpdate ≤ now ≤ nextUpdate; a list without
    nextUpdate never goes stale and is refused). RFC 5280 section 6.3.
    """
    trouble = _trouble(crl, issuer)
    ours = checks.that(
        not trouble, f"{name}.crl", Word.REVOCATION, expected=f"a complete CRL signed by {name_of(issuer)}",
        found=trouble or f"{len(crl.serials)} serials revoked", source="RFC 5280 section 6.3",
        hint="fetch this issuer's CRL again: strongroom collateral fetch EVIDENCE",
    )  # fmt: skip
    fresh = checks.that(
        crl.end is not None and crl.begin <= now <= crl.end, f"{name}.crl-validity", Word.VALIDITY_PERIOD,
        expected=f"a CRL that is current at {now:%Y-%m-%dT%H:%M:%SZ}",
        found=f"{crl.begin:%Y-%m-%dT%H:%M:%SZ} to " + (f"{crl.end:%Y-%m-%dT%H:%M:%SZ}" if crl.end else "no nextUpdate"),
        source="RFC 5280 section 6.3", hint="fetch a newer CRL: strongroom collateral fetch EVIDENCE",
    )  # fmt: skip
    return ours and fresh


def _trouble(crl: RevocationList, issuer: x509.Certificate) -> str:
    if crl.issuer != issuer.subject:
        return f"a CRL of {crl.issuer.rfc4514_string()}"
    if not may(issuer, "crl_sign"):
        return "its issuer may not sign CRLs"
    weak = weakness(crl.signed)
    if weak:
        return weak
    if not crl.complete:
        return "a critical extension: a partial, delta or indirect list"
    return "" if is_signed_by(crl, issuer) else "its signature is not the issuer's"


def is_signed_by(crl: RevocationList, issuer: x509.Certificate) -> bool:
    """Whether the list carries a signature of the issuer's key."""
    try:
        _signature_holds(crl, issuer)
    except (InvalidSignature, TypeError, ValueError, UnsupportedAlgorithm):
        return False
    return True


@lru_cache(maxsize=REMEMBERED)
def _signature_holds(crl: RevocationList, issuer: x509.Certificate) -> None:
    """Returns where the signature holds, else raises; only what returned is remembered, for this very object."""
    if not crl.signed.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
        raise InvalidSignature


def forget() -> None:
    """Empty the memory of lists, for measurements of a first verdict."""
    for each in (_read, _signature_holds):
        each.cache_clear()
