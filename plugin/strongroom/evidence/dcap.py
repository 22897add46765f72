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

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import extension, name_of, parse_chain, verify_chain
from strongroom.evidence.dcap_collateral import SGX_EXTENSION, PckExtension
from strongroom.evidence.dcap_endorsement import (
    COLLATERAL_SOURCE,
    in_roles,
    judge_document,
    pck_extension,
    present_document,
)
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
        genuine &= in_roles(path, ("PCK Certificate", "PCK"), checks, f"{name}.pck")
    document = present_document(collateral, checks, name)
    if document is None:
        return Verified(quote, pck, None, genuine)
    information, identity = judge_document(document, path, root, now, checks, name)
    tcb = None
    if information is not None and identity is not None and genuine:
        tcb = _tcb(quote, pck, information, identity, checks, name)
    return Verified(quote, pck, tcb, genuine)


# -- the quote -----------------------------------------------------------------


def _pck_extension(leaf: Certificate) -> PckExtension:
    octets = extension(leaf, SGX_EXTENSION)
    if octets is None:
        raise EvidenceMalformed("PCK certificate: the SGX extension is missing", hint="the chain must begin at a PCK")
    with at_the_door("PCK certificate"):
        return pck_extension(octets)


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
