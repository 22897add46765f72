"""Certificate revocation lists, read strictly and held against their issuer (RFC 5280 sections 5 and 6.3).

Which certificates are looked up in which list is `revocation`'s business, and `dcap_endorsement`'s for Intel.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import CRLEntryExtensionOID

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import SPACE, may, name_of, pem_blocks, quietly, weakness, whole_octets
from strongroom.evidence.types import Checklist, Word


def parse_crl(octets: bytes, *, what: str) -> x509.CertificateRevocationList:
    """One CRL, in DER or PEM, with nothing after it; raises `EvidenceMalformed`."""
    if octets.lstrip(SPACE).startswith(b"-----BEGIN"):
        blocks = pem_blocks(octets, b"X509 CRL", what)
        if len(blocks) != 1:
            raise EvidenceMalformed(f"{what}: one CRL is expected, found {len(blocks)}")
        octets = blocks[0]
    try:
        with quietly():
            crl = x509.load_der_x509_crl(octets)
            whole_octets(octets, crl.signature)
            crl.extensions, crl.issuer, crl.last_update_utc, crl.next_update_utc  # noqa: B018
            for entry in crl:
                entry.extensions, entry.serial_number  # noqa: B018
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension) as error:
        raise EvidenceMalformed(f"{what}: not a CRL that can be read") from error
    return crl


def check_crl(
    crl: x509.CertificateRevocationList, *, issuer: x509.Certificate, now: datetime, checks: Checklist, name: str
) -> bool:
    """Whether `crl` is `issuer`'s own complete list and fresh at `now`.

    Records ``<name>.crl`` (`Word.REVOCATION`: issuer, signature, no delta or indirect list) and
    ``<name>.crl-validity`` (`Word.VALIDITY_PERIOD`: thisUpdate ≤ now ≤ nextUpdate; a list without
    nextUpdate never goes stale and is refused). RFC 5280 section 6.3.
    """
    trouble = _crl_trouble(crl, issuer)
    ours = checks.that(
        not trouble, f"{name}.crl", Word.REVOCATION, expected=f"a complete CRL signed by {name_of(issuer)}",
        found=trouble or f"{sum(1 for _ in crl)} serials revoked", source="RFC 5280 section 6.3",
        hint="fetch this issuer's CRL again: strongroom collateral fetch EVIDENCE",
    )  # fmt: skip
    begin, end = crl.last_update_utc, crl.next_update_utc
    fresh = checks.that(
        end is not None and begin <= now <= end, f"{name}.crl-validity", Word.VALIDITY_PERIOD,
        expected=f"a CRL that is current at {now:%Y-%m-%dT%H:%M:%SZ}",
        found=f"{begin:%Y-%m-%dT%H:%M:%SZ} to " + (f"{end:%Y-%m-%dT%H:%M:%SZ}" if end else "no nextUpdate"),
        source="RFC 5280 section 6.3", hint="fetch a newer CRL: strongroom collateral fetch EVIDENCE",
    )  # fmt: skip
    return ours and fresh


def _crl_trouble(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> str:
    if crl.issuer != issuer.subject:
        return f"a CRL of {crl.issuer.rfc4514_string()}"
    if not may(issuer, "crl_sign"):
        return "its issuer may not sign CRLs"
    weak = weakness(crl)
    if weak:
        return weak
    if any(each.critical for each in crl.extensions) or any(
        each.critical and each.oid != CRLEntryExtensionOID.CRL_REASON for entry in crl for each in entry.extensions
    ):
        return "a critical extension: a partial, delta or indirect list"
    try:
        if crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
            return ""
    except (TypeError, ValueError, UnsupportedAlgorithm):
        pass
    return "its signature is not the issuer's"
