"""Revocation by CRL or OCSP for vendors that offer either (NVIDIA does), handed in as data.

`Lists` holds what was handed in; `check_status` asks of every certificate on a verified path whether
it is revoked. A certificate can be revoked where it names a CRL or an OCSP responder; where status is
required, such a certificate needs a fresh answer: a good OCSP response (RFC 6960) or its issuer's CRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import UNREADABLE, name_of, parse_certificate, public_key_info, serial_of
from strongroom.evidence.crl import RevocationList, check_crl, parse_crl
from strongroom.evidence.types import Checklist, RevocationStatus, Word

_SOURCE = "RFC 6960, RFC 5280 section 6.3"
MOST_LISTS = 64


@dataclass(frozen=True, slots=True)
class Lists:
    """CRLs and OCSP responses that were handed in."""

    crls: tuple[RevocationList, ...] = ()
    responses: tuple[ocsp.OCSPResponse, ...] = ()

    @classmethod
    def parse(cls, items: Mapping[str, bytes]) -> Lists:
        """From the endorsements in roles ``crl``, ``ocsp`` and ``crl:<anything>``, ``ocsp:<anything>``.

        Raises `EvidenceMalformed` for one that cannot be read.
        """
        crls = tuple(parse_crl(octets, what=role) for role, octets in sorted(items.items()) if _kind(role) == "crl")
        found = tuple(_response(octets, role) for role, octets in sorted(items.items()) if _kind(role) == "ocsp")
        if len(crls) + len(found) > MOST_LISTS:
            raise EvidenceMalformed(f"{len(crls) + len(found)} CRLs and OCSP responses, the limit is {MOST_LISTS}")
        return cls(crls, found)


def _kind(role: str) -> str:
    return role.split(":")[0]


def _response(octets: bytes, role: str) -> ocsp.OCSPResponse:
    try:
        response = ocsp.load_der_ocsp_response(octets)
        if response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            response.certificate_status, response.serial_number, response.issuer_key_hash  # noqa: B018
            response.this_update_utc, response.next_update_utc, response.produced_at_utc  # noqa: B018
            response.certificates  # noqa: B018
            response.signature_hash_algorithm, response.hash_algorithm, response.issuer_name_hash  # noqa: B018
    except UNREADABLE as error:
        raise EvidenceMalformed(f"{role}: not an OCSP response about one certificate") from error
    return response


def can_be_revoked(certificate: x509.Certificate) -> bool:
    """Whether the certificate names a CRL or an OCSP responder."""
    for each in certificate.extensions:
        if isinstance(each.value, x509.CRLDistributionPoints):
            return True
        if isinstance(each.value, x509.AuthorityInformationAccess):
            methods = {access.access_method for access in each.value}
            if AuthorityInformationAccessOID.OCSP in methods:
                return True
    return False


def responder_of(certificate: x509.Certificate) -> str | None:
    """The address of the certificate's OCSP responder, or None."""
    for each in certificate.extensions:
        if isinstance(each.value, x509.AuthorityInformationAccess):
            for access in each.value:
                if access.access_method == AuthorityInformationAccessOID.OCSP and isinstance(
                    access.access_location, x509.UniformResourceIdentifier
                ):
                    return access.access_location.value
    return None


def list_of(certificate: x509.Certificate) -> str | None:
    """The web address of the list in which the certificate would stand, or None."""
    for each in certificate.extensions:
        if isinstance(each.value, x509.CRLDistributionPoints):
            for point in each.value:
                for name in point.full_name or ():
                    if isinstance(name, x509.UniformResourceIdentifier):
                        return name.value
    return None


def ocsp_question(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """A DER request for one certificate's status (RFC 6960 section 4.1).

    Without a nonce, so that answers can be kept; SHA-1 only names the issuer.
    """
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1())  # noqa: S303
    return builder.build().public_bytes(Encoding.DER)


def check_status(
    path: Sequence[x509.Certificate],
    lists: Lists,
    *,
    now: datetime,
    checks: Checklist,
    name: str,
    required: bool,
) -> bool:
    """Judge every certificate of a verified `path` (leaf to root) by `lists`; records ``<name>.revoked``.

    A list or answer that was handed in is judged even where none is required; a stale one is
    `Word.VALIDITY_PERIOD` where status is not required, and no answer at all where it is. Either way
    what was found is noted (`Checklist.note_revocation`).
    """
    revoked, unanswered, looked_up = [], [], 0
    good = True
    for certificate, issuer in pairwise(path):
        answers = [each for each in lists.responses if speaks_of(each, certificate, issuer)]
        own = [each for each in lists.crls if each.issuer == issuer.subject]
        answered = False
        for answer in answers:
            if not answer_holds(answer, issuer, now, checks, name):
                good = False
                continue
            answered = True
            if answer.certificate_status is not ocsp.OCSPCertStatus.GOOD:
                revoked.append(f"{name_of(certificate)} ({answer.certificate_status.name.lower()})")
        for crl in own:
            if not check_crl(crl, issuer=issuer, now=now, checks=checks, name=name):
                good = False
                continue
            answered = True
            if crl.has(certificate):
                revoked.append(name_of(certificate))
        looked_up += answered
        if can_be_revoked(certificate) and not answered:
            unanswered.append(name_of(certificate))
    if unanswered:
        checks.note_revocation(RevocationStatus.NOT_JUDGED)
    else:
        checks.note_revocation(RevocationStatus.JUDGED if looked_up else RevocationStatus.NO_LIST)
    missing = unanswered if required else []
    if not required and not looked_up and not revoked:
        return good
    trouble = [f"revoked: {each}" for each in revoked] + [f"no fresh answer for {each}" for each in missing]
    return checks.that(
        not trouble, f"{name}.revoked", Word.REVOCATION,
        expected="a fresh answer for every certificate that can be revoked, and none revoked",
        found="; ".join(trouble) or f"{looked_up} certificates looked up, none revoked", source=_SOURCE,
        hint="a revoked device or signer cannot be trusted again" if revoked
        else "fetch OCSP answers and CRLs: strongroom collateral fetch EVIDENCE",
    ) and good  # fmt: skip


def speaks_of(answer: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether a response names this serial number of this issuer (by name and key digest)."""
    if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return False
    if answer.serial_number != serial_of(certificate):
        return False
    # SHA-1 only names the issuer here (RFC 6960 section 4.1.1); what is believed is the signature.
    algorithm = answer.hash_algorithm
    if not isinstance(algorithm, hashes.SHA1 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
        return False
    return answer.issuer_name_hash == _digest(algorithm, issuer.subject.public_bytes()) and (
        answer.issuer_key_hash == _digest(algorithm, _key_bits(issuer))
    )


def _digest(algorithm: hashes.HashAlgorithm, octets: bytes) -> bytes:
    context = hashes.Hash(algorithm)
    context.update(octets)
    return context.finalize()


def _key_bits(certificate: x509.Certificate) -> bytes:
    """The contents of the subjectPublicKey BIT STRING, without tag, length and unused-bits octet."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if isinstance(key, rsa.RSAPublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return b""


def answer_holds(
    answer: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime, checks: Checklist, name: str
) -> bool:
    """Whether an answer is the issuer's or its responder's, and fresh; what it says is another question."""
    trouble = _signature_trouble(answer, issuer, now)
    ours = checks.that(
        not trouble, f"{name}.ocsp", Word.REVOCATION,
        expected=f"an answer signed by {name_of(issuer)} or its responder", found=trouble or "signed", source=_SOURCE,
        hint="ask the responder again: strongroom collateral fetch EVIDENCE",
    )  # fmt: skip
    begin, end = answer.this_update_utc, answer.next_update_utc
    fresh = checks.that(
        end is not None and begin <= now <= end, f"{name}.ocsp-validity", Word.VALIDITY_PERIOD,
        expected=f"an answer that is current at {now:%Y-%m-%dT%H:%M:%SZ}",
        found=f"{begin:%Y-%m-%dT%H:%M:%SZ} to " + (f"{end:%Y-%m-%dT%H:%M:%SZ}" if end else "no nextUpdate"),
        source=_SOURCE, hint="ask the responder again: strongroom collateral fetch EVIDENCE",
    )  # fmt: skip
    return ours and fresh


def _signature_trouble(answer: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime) -> str:
    """Why the answer is not the issuer's or its delegate's (RFC 6960 section 4.2.2.2); empty where it is."""
    if _signed_by(answer, issuer):
        return ""
    for carried in answer.certificates:
        responder = parse_certificate(carried.public_bytes(Encoding.DER), what="OCSP responder")
        if public_key_info(responder) == public_key_info(issuer):
            continue
        try:
            responder.verify_directly_issued_by(issuer)
            usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
            continue
        current = responder.not_valid_before_utc <= now <= responder.not_valid_after_utc
        if current and ExtendedKeyUsageOID.OCSP_SIGNING in usage and _signed_by(answer, responder):
            return ""
    return f"not signed by {name_of(issuer)} or a responder that it appointed"


def _signed_by(answer: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    key, algorithm = signer.public_key(), answer.signature_hash_algorithm
    if not isinstance(algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(answer.signature, answer.tbs_response_bytes, padding.PKCS1v15(), algorithm)
        else:
            return False
    except InvalidSignature:
        return False
    return True
