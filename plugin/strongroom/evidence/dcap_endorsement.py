"""Judge Intel's collateral: chains to the root, CRLs by place, the two signed texts, all dates.

With a quote's PCK chain at hand that chain is looked up in the CRLs too (`dcap`); without one the document is
judged alone (`verify_collateral`, for the endorsement cache). What the texts say of a platform is `dcap`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

from cryptography.hazmat.primitives import hashes
from cryptography.x509 import Certificate
from cryptography.x509.oid import NameOID

from strongroom.evidence.certificates import (
    name_of,
    parse_chain,
    public_key_info,
    verify_chain,
)
from strongroom.evidence.crl import RevocationList, check_crl, is_signed_by, parse_crl
from strongroom.evidence.dcap_collateral import Collateral, PckExtension
from strongroom.evidence.dcap_tcb import QeIdentity, TcbInfo
from strongroom.evidence.door import at_the_door
from strongroom.evidence.ecdsa import verifies
from strongroom.evidence.types import Checklist, RevocationStatus, Word

COLLATERAL_SOURCE = "Intel PCS API V4, Get TCB Info and Get Quoting Enclave Identity"
REFRESH = "refresh it: strongroom collateral fetch EVIDENCE"


def in_roles(path: tuple[Certificate, ...], kinds: tuple[str, ...], checks: Checklist, name: str) -> bool:
    """Each certificate below the root is of the kind that belongs there (Intel gives them fixed names)."""
    names = [
        str(attribute.value)
        for certificate in path[:-1]
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    wanted = [f"Intel SGX {kind}" for kind in kinds]
    fits = len(names) == len(wanted) and all(map(str.startswith, names, wanted))
    return checks.that(
        fits, f"{name}.role", Word.CHAIN, expected=" < ".join(wanted), found=" < ".join(names),
        source="Intel PCK Certificate and CRL Specification", hint="a genuine Intel certificate in the wrong place",
    )  # fmt: skip


def verify_collateral(
    octets: bytes, *, root: Certificate, now: datetime, checks: Checklist, name: str
) -> tuple[TcbInfo, QeIdentity] | None:
    """Judge a collateral document alone, where there is no quote yet: chains, CRLs, signatures, dates.

    None where a signature or chain failed; what failed is in `checks`. Raises `EvidenceMalformed`.
    """
    document = present_document(octets, checks, name)
    if document is None:
        return None
    information, identity = judge_document(document, None, root, now, checks, name)
    return (information, identity) if information is not None and identity is not None else None


def present_document(octets: bytes | None, checks: Checklist, name: str) -> Collateral | None:
    """The document with all nine members, or None and a check that names what is missing.

    Raises `EvidenceMalformed`.
    """
    if octets is None:
        document = None
        missing: tuple[str, ...] = ("collateral",)
    else:
        with at_the_door("collateral"):
            document = _document(octets)
        missing = document.missing
    lists = tuple(each for each in missing if each in ("root_ca_crl", "pck_crl"))
    others = tuple(each for each in missing if each not in lists)
    if lists:
        checks.that(
            False, f"{name}.crl-present", Word.REVOCATION, expected="the root's and the PCK issuer's CRL",
            found="missing: " + ", ".join(lists), source=COLLATERAL_SOURCE, hint=REFRESH,
        )  # fmt: skip
    if others:
        checks.that(
            False, f"{name}.collateral-present", Word.COLLATERAL_MISSING, expected="nine members",
            found="missing: " + ", ".join(others), source=COLLATERAL_SOURCE,
            hint="get it with: strongroom collateral fetch EVIDENCE",
        )  # fmt: skip
    return None if missing else document


# A broker meets the same few documents for weeks. They are decoded once and judged every time.


@lru_cache(maxsize=32)
def _collateral_chain(octets: bytes, what: str) -> tuple[Certificate, ...]:
    return parse_chain(octets, what=what)


@lru_cache(maxsize=16)
def _document(octets: bytes) -> Collateral:
    return Collateral.parse(octets)


@lru_cache(maxsize=16)
def _tcb_info(octets: bytes) -> TcbInfo:
    return TcbInfo.parse(octets)


@lru_cache(maxsize=16)
def _qe_identity(octets: bytes) -> QeIdentity:
    return QeIdentity.parse(octets)


@lru_cache(maxsize=64)
def pck_extension(octets: bytes) -> PckExtension:
    """What the extension of a PCK certificate says; raises `MalformedInput`."""
    return PckExtension.parse(octets)


def forget_decoded() -> None:
    """Empty the memory of decoded collateral, for measurements of a first verdict."""
    for each in (_document, _collateral_chain, _tcb_info, _qe_identity, pck_extension):
        each.cache_clear()


def judge_document(
    document: Collateral, pck_path: tuple[Certificate, ...] | None, root: Certificate, now: datetime,
    checks: Checklist, name: str,
) -> tuple[TcbInfo | None, QeIdentity | None]:  # fmt: skip
    """Verify chains, CRLs and the two signed texts; a text whose signature fails is None."""
    root_crl = parse_crl(document.root_ca_crl, what="root CA CRL")
    pck_crl = parse_crl(document.pck_crl, what="PCK CRL")
    crl_chain = _collateral_chain(document.pck_crl_issuer_chain, "PCK CRL issuer chain")
    crl_path = verify_chain(
        crl_chain, roots=(root,), now=now, checks=checks, name=f"{name}.crl-issuer", source=COLLATERAL_SOURCE
    )
    sound = _crl_holds(root_crl, root, now, checks, f"{name}.root-crl")
    if crl_path is not None:
        sound &= _crl_holds(pck_crl, crl_path[0], now, checks, f"{name}.pck-crl")
    if crl_path is not None and pck_path is not None:
        same = len(pck_path) > 1 and public_key_info(crl_path[0]) == public_key_info(pck_path[1])
        sound &= checks.that(
            same, f"{name}.crl-issuer.same", Word.REVOCATION, expected="the CRL of the PCK certificate's issuer",
            found=name_of(crl_path[0]), source="RFC 5280 section 6.3",
            hint="the collateral is for the other PCK CA (processor or platform): fetch the right one",
        )  # fmt: skip
    lists = (root_crl, pck_crl)
    if sound and pck_path is not None:
        _check_revoked(pck_path, lists, checks, f"{name}.pck")
    judged = lists if sound else ()
    information = identity = None
    signer = _signer(document.tcb_info_issuer_chain, root, now, judged, checks, f"{name}.tcb-info")
    if _signed_text(document.tcb_info, document.tcb_info_signature, signer, checks, f"{name}.tcb-info"):
        with at_the_door("TCB info"):
            information = _tcb_info(document.tcb_info)
        _current(information, now, checks, f"{name}.tcb-info")
    if document.qe_identity_issuer_chain != document.tcb_info_issuer_chain:  # else it was judged a moment ago
        signer = _signer(document.qe_identity_issuer_chain, root, now, judged, checks, f"{name}.qe-identity")
    if _signed_text(document.qe_identity, document.qe_identity_signature, signer, checks, f"{name}.qe-identity"):
        with at_the_door("QE identity"):
            identity = _qe_identity(document.qe_identity)
        _current(identity, now, checks, f"{name}.qe-identity")
    return information, identity


def _crl_holds(crl: RevocationList, issuer: Certificate, now: datetime, checks: Checklist, name: str) -> bool:
    """Whether the list is `issuer`'s; its freshness is a check of its own.

    A list that names its issuer but was altered is a broken signature, not a missing list.
    """
    tried = Checklist()
    check_crl(crl, issuer=issuer, now=now, checks=tried, name=name)
    for check in tried:
        word = check.word
        if word is Word.REVOCATION and not check.ok and crl.issuer == issuer.subject:
            word = word if is_signed_by(crl, issuer) else Word.SIGNATURE
        checks.that(
            check.ok, check.name, word, expected=check.expected, found=check.found, source=check.source, hint=check.hint
        )
    return all(check.ok for check in tried if check.word is Word.REVOCATION)


def _check_revoked(
    path: tuple[Certificate, ...], crls: tuple[RevocationList, ...], checks: Checklist, name: str
) -> None:
    """Look every certificate below the root up in its issuer's list, one of `crls` that hold.

    Without lists that hold and are current there is no verdict (step 3 of docs/attestation/tdx.md), so every verdict
    has judged revocation.
    """
    trouble = []
    for certificate, issuer in pairwise(path):
        own = next((crl for crl in crls if crl.issuer == issuer.subject), None)
        if own is None:
            trouble.append(f"no CRL of {name_of(issuer)}")
        elif own.has(certificate):
            trouble.append(f"revoked: {name_of(certificate)}")
    checks.note_revocation(RevocationStatus.NOT_JUDGED if trouble else RevocationStatus.JUDGED)
    checks.that(
        not trouble, f"{name}.revoked", Word.REVOCATION, expected="no certificate of the chain is revoked",
        found="; ".join(trouble) or f"{len(path) - 1} certificates looked up, none revoked",
        source="RFC 5280 section 6.3", hint="Intel revoked this platform, CA or signer: it cannot be trusted again",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Signer:
    """Who signed a text, and whether that certificate is Intel's TCB signing one."""

    certificate: Certificate
    trusted: bool


def _signer(
    octets: bytes, root: Certificate, now: datetime, crls: tuple[RevocationList, ...],
    checks: Checklist, name: str,
) -> _Signer:  # fmt: skip
    chain = _collateral_chain(octets, f"{name} issuer chain")
    path = verify_chain(chain, roots=(root,), now=now, checks=checks, name=name, source=COLLATERAL_SOURCE)
    trusted = path is not None and in_roles(path, ("TCB Signing",), checks, name)
    if path is not None and crls:
        _check_revoked(path, crls, checks, name)
    return _Signer(chain[0], trusted)


def _signed_text(text: bytes, signature: bytes, signer: _Signer, checks: Checklist, name: str) -> bool:
    signed = checks.that(
        verifies(signer.certificate.public_key(), signature, text, hashes.SHA256()), f"{name}.signature",
        Word.SIGNATURE, expected="the exact text, signed by Intel's TCB signing certificate",
        found=f"{len(text)} bytes", source=COLLATERAL_SOURCE,
        hint="the text was altered or serialised again: " + REFRESH,
    )  # fmt: skip
    return signed and signer.trusted


def _current(document: TcbInfo | QeIdentity, now: datetime, checks: Checklist, name: str) -> None:
    checks.that(
        document.issued <= now <= document.next_update, f"{name}.current", Word.VALIDITY_PERIOD,
        expected=f"issued and not overdue at {now:%Y-%m-%dT%H:%M:%SZ}",
        found=f"{document.issued:%Y-%m-%dT%H:%M:%SZ} to {document.next_update:%Y-%m-%dT%H:%M:%SZ}",
        source=COLLATERAL_SOURCE, hint=REFRESH,
    )  # fmt: skip
