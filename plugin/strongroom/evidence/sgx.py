"""Verify an Intel SGX quote (DCAP, version 3; also 4 and 5 around an enclave).

docs/attestation/sgx.md is the page for people. Evidence body (tee ``sgx``): ``{"quote": base64}``.
Endorsement: ``collateral``, the nine-member JSON document of `dcap_collateral`. The signatures, the
chain and the TCB are `dcap`'s; what an enclave is asked is here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography.x509 import Certificate

from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.allowlist import HexSet, check_allowed, hex_set
from strongroom.evidence.dcap import Verified, parse_quote, verify_quote
from strongroom.evidence.dcap_policy import (
    TcbPolicy,
    appraise_padding,
    appraise_platform,
    appraise_tcb,
    device_id,
    tcb_claims,
)
from strongroom.evidence.dcap_quote import LONGEST_QUOTE, EnclaveReport, TdReport
from strongroom.evidence.door import at_the_door, base64_field
from strongroom.evidence.roots import root
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, Word

_SDM = "Intel SDM volume 3D, section 37.15 (REPORT)"
_LISTS = {  # policy key → (sizes in bytes, claim)
    "measurements": ((32,), "mr_enclave"),
    "mr_signers": ((32,), "mr_signer"),
    "config_ids": ((64,), "config_id"),
    "family_ids": ((16,), "isv_family_id"),
}


@dataclass(frozen=True, slots=True)
class SgxPolicy:
    """A parsed ``[sgx]`` table; the defaults are the strict ones. Lists hold lower-case hex, None asks nothing.

    `min_isv_svn` and `isv_prod_ids` say something only together with `mr_signers`: the signer alone
    gives them their meaning.
    """

    tcb: TcbPolicy = field(default_factory=TcbPolicy)
    allow_debug: bool = False
    measurements: HexSet | None = None
    mr_signers: HexSet | None = None
    isv_prod_ids: frozenset[int] | None = None
    min_isv_svn: int = 0
    config_ids: HexSet | None = None
    family_ids: HexSet | None = None

    @classmethod
    def read(cls, table: Fields) -> SgxPolicy:
        """Take the SGX keys out of `table`; the caller refuses what is left. Raises `MalformedInput`."""
        return cls(
            tcb=TcbPolicy.read(table),
            allow_debug=table.truth("allow_debug", default=False),
            isv_prod_ids=_numbers(table, "isv_prod_ids"),
            min_isv_svn=table.number("min_isv_svn", default=0, high=0xFFFF),
            **{name: hex_set(table, name, sizes=sizes) for name, (sizes, _) in _LISTS.items()},
        )


def _numbers(table: Fields, name: str) -> frozenset[int] | None:
    if not table.has(name):
        return None
    values = table.value(name)
    read = Fields({str(place): each for place, each in enumerate(values)} if isinstance(values, list) else values,
                  where=f"{table.where}: {name}")  # fmt: skip
    return frozenset(read.number(place, high=0xFFFF) for place in read.left())


@dataclass(frozen=True, slots=True)
class SgxClaims(Claims):
    """Claims that keep the verified quote they came from."""

    verified: Verified | None = None


class SgxVerifier:
    """The verifier of SGX enclaves; the root is Intel's unless tests hand in another."""

    tee = "sgx"

    def __init__(self, *, intel_root: Certificate | None = None) -> None:
        self._root = intel_root

    def policy(self, table: Fields) -> SgxPolicy:
        """Parse the ``[sgx]`` table of a policy file; raises `MalformedInput`."""
        policy = SgxPolicy.read(table)
        table.done()
        return policy

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: SgxPolicy, checks: Checklist
    ) -> SgxClaims:
        """Signatures, chain, revocation, collateral and TCB level; raises `EvidenceMalformed`."""
        with at_the_door("SGX evidence"):
            read = Fields(evidence.body, where="SGX evidence")
            quote = parse_quote(base64_field(read, "quote", limit=LONGEST_QUOTE))
            read.done()
        if isinstance(quote.body, TdReport):
            raise EvidenceMalformed("SGX evidence: the quote is a TD's", hint="present it as tee 'tdx'")
        verified = verify_quote(
            quote, endorsements.get("collateral"), root=self._root or root("intel_sgx_root_ca.der"), now=now,
            checks=checks, name="sgx",
        )  # fmt: skip
        return SgxClaims(
            tee="sgx",
            values={name: Claim(value) for name, value in _values(verified, quote.body).items()},
            report_data=quote.body.report_data,
            device_id=device_id(verified),
            verified=verified,
        )

    def appraise(self, claims: Claims, policy: SgxPolicy, checks: Checklist) -> None:
        """TCB status, debug and who the enclave is, against `policy`."""
        if not isinstance(claims, SgxClaims) or claims.verified is None:
            raise EvidenceMalformed(f"claims of {claims.tee} are not those of an SGX quote")
        report = claims.verified.quote.body
        if claims.verified.genuine and isinstance(report, EnclaveReport):
            appraise_tcb(claims.verified, policy.tcb, checks, "sgx")
            appraise_platform(claims.verified, policy.tcb, checks, "sgx")
            _appraise_enclave(report, claims, policy, checks)
        appraise_padding(claims.verified, checks, "sgx")


def _appraise_enclave(report: EnclaveReport, claims: SgxClaims, policy: SgxPolicy, checks: Checklist) -> None:
    checks.that(
        policy.allow_debug or not report.debug, "sgx.debug", Word.DEBUG, expected="attribute DEBUG (bit 1) clear",
        found=f"attributes {report.attributes.hex()}", source=_SDM,
        hint="a debug enclave's memory is open to its host: build and sign it for production",
    )  # fmt: skip
    for key, (_, claim) in _LISTS.items():
        check_allowed(
            getattr(policy, key), claims[claim], checks, name=f"sgx.{claim.replace('_', '-')}",
            word=Word.MEASUREMENT, key=key, source=_SDM,
        )  # fmt: skip
    if policy.isv_prod_ids is not None:
        checks.that(
            report.isv_prod_id in policy.isv_prod_ids, "sgx.isv-prod-id", Word.MEASUREMENT,
            expected="one of " + (", ".join(map(str, sorted(policy.isv_prod_ids))) or "none: the list is empty"),
            found=str(report.isv_prod_id), source=_SDM, hint="another product of the same signer",
        )  # fmt: skip
    if policy.min_isv_svn:
        checks.that(
            report.isv_svn >= policy.min_isv_svn, "sgx.isv-svn", Word.MEASUREMENT,
            expected=f"ISVSVN {policy.min_isv_svn} or later", found=str(report.isv_svn), source=_SDM,
            hint="this enclave is an older release of its author: update it",
        )  # fmt: skip


def _values(verified: Verified, report: EnclaveReport) -> dict[str, object]:
    return {
        **tcb_claims(verified),
        "cpu_svn": report.cpu_svn.hex(),
        "attributes": report.attributes.hex(),
        "debug": report.debug,
        "mr_enclave": report.mr_enclave.hex(),
        "measurement": report.mr_enclave.hex(),
        "mr_signer": report.mr_signer.hex(),
        "isv_prod_id": report.isv_prod_id,
        "isv_svn": report.isv_svn,
        "isv_ext_prod_id": report.isv_ext_prod_id.hex(),
        "isv_family_id": report.isv_family_id.hex(),
        "config_id": report.config_id.hex(),
        "config_svn": report.config_svn,
        "report_data": report.report_data.hex(),
    }
