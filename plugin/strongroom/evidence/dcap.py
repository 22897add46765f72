"""Verify an Intel DCAP quote against its collateral: everything that SGX and TDX have in common.

The order of docs/attestation/tdx.md section "What is verified": the PCK chain to Intel's root and
its CRLs, the quoting enclave's report under the PCK key, the attestation key bound by that report,
the quote under the attestation key; then the signed collateral, that it speaks of this platform,
and which TCB level it gives. Pure: the root, the collateral and the clock are arguments.

What a status means for a policy is judged by `dcap_policy`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate, CertificateRevocationList
from cryptography.x509.oid import NameOID

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import (
    check_revocation,
    extension,
    name_of,
    parse_chain,
    parse_crl,
    public_key_info,
    verify_chain,
)
from strongroom.evidence.dcap_collateral import SGX_EXTENSION, Collateral, PckExtension
from strongroom.evidence.dcap_quote import TEE_TDX, Quote, TdReport
from strongroom.evidence.dcap_tcb import (
    QeIdentity,
    TcbInfo,
    TcbLevel,
    TcbStatus,
    module_identity,
    platform_level,
    svn_level,
    worst,
)
from strongroom.evidence.door import at_the_door
from strongroom.evidence.ecdsa import point, verifies
from strongroom.evidence.types import Checklist, Word

QUOTE_SOURCE = "Intel SGX ECDSA QuoteLib Reference, appendix A.4"
COLLATERAL_SOURCE = "Intel PCS API V4, Get TCB Info and Get Quoting Enclave Identity"
REFRESH = "refresh it: strongroom collateral fetch"


@dataclass(frozen=True, slots=True)
class Tcb:
    """What the collateral says of this platform; `overall` is the worst of the others."""

    overall: TcbStatus
    platform: TcbStatus
    module: TcbStatus | None
    qe: TcbStatus
    advisories: tuple[str, ...]
    date: str
    evaluation_number: int
    """The lower of TCB info's and QE identity's tcbEvaluationDataNumber."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A quote that was looked at; whether it is believed is in the checklist."""

    quote: Quote
    pck: PckExtension | None
    tcb: Tcb | None
    """None where a check that the TCB depends on failed; that check is in the list."""
    genuine: bool
    """Chain, QE report, binding and quote signature held, dates and revocation apart."""


def parse_quote(octets: bytes) -> Quote:
    """`Quote.parse` with its refusal as `EvidenceMalformed`."""
    with at_the_door("quote"):
        return Quote.parse(octets)


def verify_quote(
    quote: Quote, collateral: bytes | None, *, root: Certificate, now: datetime, checks: Checklist, name: str
) -> Verified:
    """Check a parsed quote and its collateral; every check is named ``<name>.…``.

    Raises `EvidenceMalformed` for certificates, keys, collateral or CRLs that cannot be parsed. Without
    collateral the quote itself is still checked, and `Word.COLLATERAL_MISSING` is recorded.
    """
    chain = parse_chain(quote.pck_chain, what="PCK chain of the quote")
    path = verify_chain(chain, roots=(root,), now=now, checks=checks, name=f"{name}.pck", source=QUOTE_SOURCE)
    pck = _pck_extension(chain[0])
    genuine = _check_signatures(quote, chain[0], checks, name) and path is not None
    if path is not None:
        genuine &= _named(path, ("PCK Certificate", "PCK"), checks, f"{name}.pck")
    document = _collateral(collateral, checks, name)
    if document is None:
        return Verified(quote, pck, None, genuine)
    information, identity = _signed_texts(document, path, root, now, checks, name)
    tcb = None
    if information is not None and identity is not None and genuine:
        tcb = _tcb(quote, pck, information, identity, checks, name)
    return Verified(quote, pck, tcb, genuine)


def verify_collateral(
    octets: bytes, *, root: Certificate, now: datetime, checks: Checklist, name: str
) -> tuple[TcbInfo, QeIdentity] | None:
    """Judge a collateral document alone, where there is no quote yet: chains, CRLs, signatures, dates.

    None where a signature or chain failed; what failed is in `checks`. Raises `EvidenceMalformed`.
    """
    document = _collateral(octets, checks, name)
    if document is None:
        return None
    information, identity = _signed_texts(document, None, root, now, checks, name)
    return (information, identity) if information is not None and identity is not None else None


# -- the quote -----------------------------------------------------------------


def _pck_extension(leaf: Certificate) -> PckExtension:
    octets = extension(leaf, SGX_EXTENSION)
    if octets is None:
        raise EvidenceMalformed("PCK certificate: the SGX extension is missing", hint="the chain must begin at a PCK")
    with at_the_door("PCK certificate"):
        return PckExtension.parse(octets)


def _check_signatures(quote: Quote, pck: Certificate, checks: Checklist, name: str) -> bool:
    """PCK key, QE report, attestation key, quote: each vouches for the next, so the first break ends it."""
    if not checks.that(
        verifies(pck.public_key(), quote.qe_report_signature, quote.qe_report_octets, hashes.SHA256()),
        f"{name}.qe-report-signature", Word.SIGNATURE, expected="the QE report, signed by the PCK certificate's key",
        found=name_of(pck), source=QUOTE_SOURCE, hint="the quote was altered, or its PCK chain is another machine's",
    ):  # fmt: skip
        return False
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest() + bytes(32)
    if not checks.that(
        quote.qe_report.report_data == bound, f"{name}.attestation-key", Word.BINDING, expected=bound.hex(),
        found=quote.qe_report.report_data.hex(), source=QUOTE_SOURCE,
        hint="the quoting enclave did not vouch for this attestation key: the quote was altered",
    ):  # fmt: skip
        return False
    key = point(quote.attestation_key, ec.SECP256R1(), what="attestation key of the quote")
    return checks.that(
        verifies(key, quote.signature, quote.signed, hashes.SHA256()), f"{name}.quote-signature", Word.SIGNATURE,
        expected="the quote, signed by its attestation key", found=f"{len(quote.signed)} signed bytes",
        source=QUOTE_SOURCE, hint="the quote was altered on its way: fetch it again from the guest",
    )  # fmt: skip


def _named(path: tuple[Certificate, ...], kinds: tuple[str, ...], checks: Checklist, name: str) -> bool:
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


# -- the collateral ------------------------------------------------------------


def _collateral(octets: bytes | None, checks: Checklist, name: str) -> Collateral | None:
    if octets is None:
        document = None
        missing: tuple[str, ...] = ("collateral",)
    else:
        with at_the_door("collateral"):
            document = Collateral.parse(octets)
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
            hint="get it with: strongroom collateral fetch",
        )  # fmt: skip
    return None if missing else document


# A broker meets the same few documents for weeks. They are decoded once and judged every time.


@lru_cache(maxsize=32)
def _collateral_chain(octets: bytes, what: str) -> tuple[Certificate, ...]:
    return parse_chain(octets, what=what)


@lru_cache(maxsize=16)
def _crl(octets: bytes, what: str) -> CertificateRevocationList:
    return parse_crl(octets, what=what)


@lru_cache(maxsize=16)
def _tcb_info(octets: bytes) -> TcbInfo:
    return TcbInfo.parse(octets)


@lru_cache(maxsize=16)
def _qe_identity(octets: bytes) -> QeIdentity:
    return QeIdentity.parse(octets)


def forget_decoded() -> None:
    """Empty the memory of decoded collateral, for benchmarks of a first verdict."""
    for each in (_collateral_chain, _crl, _tcb_info, _qe_identity):
        each.cache_clear()


def _signed_texts(
    document: Collateral, pck_path: tuple[Certificate, ...] | None, root: Certificate, now: datetime,
    checks: Checklist, name: str,
) -> tuple[TcbInfo | None, QeIdentity | None]:  # fmt: skip
    """Verify chains, CRLs and the two signed texts; a text whose signature fails is None."""
    root_crl = _crl(document.root_ca_crl, "root CA CRL")
    pck_crl = _crl(document.pck_crl, "PCK CRL")
    crl_chain = _collateral_chain(document.pck_crl_issuer_chain, "PCK CRL issuer chain")
    crl_path = verify_chain(
        crl_chain, roots=(root,), now=now, checks=checks, name=f"{name}.crl-issuer", source=COLLATERAL_SOURCE
    )
    sound = _crl_signed(root_crl, root, checks, f"{name}.root-crl")
    if crl_path is not None:
        sound &= _crl_signed(pck_crl, crl_path[0], checks, f"{name}.pck-crl")
    if crl_path is not None and pck_path is not None:
        same = len(pck_path) > 1 and public_key_info(crl_path[0]) == public_key_info(pck_path[1])
        sound &= checks.that(
            same, f"{name}.crl-issuer.same", Word.REVOCATION, expected="the CRL of the PCK certificate's issuer",
            found=name_of(crl_path[0]), source="RFC 5280 section 6.3",
            hint="the collateral is for the other PCK CA (processor or platform): fetch the right one",
        )  # fmt: skip
    lists = (root_crl, pck_crl)
    if sound and pck_path is not None:
        check_revocation(pck_path, crls=lists, now=now, checks=checks, name=f"{name}.pck")
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


def _crl_signed(crl: CertificateRevocationList, issuer: Certificate, checks: Checklist, name: str) -> bool:
    """Whether the list is `issuer`'s; one that names it but was altered is a broken signature."""
    if not checks.that(
        crl.issuer == issuer.subject, f"{name}.issuer", Word.REVOCATION, expected=f"the CRL of {name_of(issuer)}",
        found=crl.issuer.rfc4514_string(), source="RFC 5280 section 6.3", hint="this list is of another CA: " + REFRESH,
    ):  # fmt: skip
        return False
    key = issuer.public_key()
    valid = isinstance(key, ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)
    return checks.that(
        valid, f"{name}.signature", Word.SIGNATURE, expected=f"a CRL signed by {name_of(issuer)}",
        found="signed" if valid else "a signature that is not its own", source="RFC 5280 section 6.3", hint=REFRESH,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Signer:
    """Who signed a text, and whether that certificate is Intel's TCB signing one."""

    certificate: Certificate
    trusted: bool


def _signer(
    octets: bytes, root: Certificate, now: datetime, crls: tuple[CertificateRevocationList, ...],
    checks: Checklist, name: str,
) -> _Signer:  # fmt: skip
    chain = _collateral_chain(octets, f"{name} issuer chain")
    path = verify_chain(chain, roots=(root,), now=now, checks=checks, name=name, source=COLLATERAL_SOURCE)
    trusted = path is not None and _named(path, ("TCB Signing",), checks, name)
    if path is not None and crls:
        check_revocation(path, crls=crls, now=now, checks=checks, name=name)
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


# -- the TCB -------------------------------------------------------------------


def _tcb(
    quote: Quote, pck: PckExtension, information: TcbInfo, identity: QeIdentity, checks: Checklist, name: str
) -> Tcb | None:
    td = quote.body if isinstance(quote.body, TdReport) else None
    wanted = ("TDX", "TD_QE") if quote.tee_type == TEE_TDX else ("SGX", "QE")
    if not checks.that(
        (information.id, identity.id) == wanted, f"{name}.collateral-kind", Word.IDENTITY,
        expected=" and ".join(wanted), found=f"{information.id} and {identity.id}", source=COLLATERAL_SOURCE,
        hint="SGX and TDX have different collateral: fetch it for this quote",
    ):  # fmt: skip
        return None
    same = checks.that(
        (information.fmspc, information.pce_id) == (pck.fmspc, pck.pce_id), f"{name}.fmspc", Word.IDENTITY,
        expected=f"FMSPC {pck.fmspc.hex()}, PCE ID {pck.pce_id.hex()}, as the PCK certificate says",
        found=f"FMSPC {information.fmspc.hex()}, PCE ID {information.pce_id.hex()}", source=COLLATERAL_SOURCE,
        hint="the collateral is for another processor family: fetch it for this quote",
    )  # fmt: skip
    wrong = identity.differences(quote.qe_report)
    same &= checks.that(
        not wrong, f"{name}.qe", Word.IDENTITY, expected="the quoting enclave that Intel names",
        found=", ".join(wrong) or f"{identity.id}, ISVSVN {quote.qe_report.isv_svn}", source=COLLATERAL_SOURCE,
        hint="the quote was made by another enclave than Intel's quoting enclave",
    )  # fmt: skip
    if not same:
        return None
    levels: list[TcbLevel | None] = [platform_level(information, pck.components, pck.pce_svn, td)]
    levels.append(svn_level(identity.levels, quote.qe_report.isv_svn))
    if td is not None:
        levels.extend(_module_levels(information, td))
    statuses = [TcbStatus.NOT_SUPPORTED if level is None else level.status for level in levels]
    return Tcb(
        overall=worst(statuses),
        platform=statuses[0],
        module=statuses[2] if len(statuses) > 2 else None,
        qe=statuses[1],
        advisories=tuple(sorted({each for level in levels if level for each in level.advisories})),
        date=min((level.date for level in levels if level), default=""),
        evaluation_number=min(information.evaluation_number, identity.evaluation_number),
    )


def _module_levels(information: TcbInfo, td: TdReport) -> list[TcbLevel | None]:
    """The TDX module's level: none to judge where the module has no version of its own."""
    module = module_identity(information, td)
    if module is None or not module.signed_like(td):
        return [None]
    if td.tee_tcb_svn[1] == 0:
        return []
    return [svn_level(module.levels, td.tee_tcb_svn[0])]
