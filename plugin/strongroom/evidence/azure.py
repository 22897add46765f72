"""Verify confidential guests on Azure: hardware report, runtime data, and the virtual TPM behind them.

docs/attestation/azure.md is the page for people. The guest cannot choose the hardware's report data: the
paravisor puts the hash of its runtime data there, which names the virtual TPM's attestation key, and that key
quotes the relying party's nonce. So three links are checked: hardware → runtime data → key → quote.

Bodies are `azure_evidence`'s. Endorsements: ``vcek`` and ``crl`` for SNP, ``collateral`` for TDX. The hardware
half is `snp`'s and `tdx`'s, under the same rules as without a paravisor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import rsa

from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.allowlist import HexSet, check_allowed, hex_set, text_set
from strongroom.evidence.azure_evidence import BANK, AzureEvidence
from strongroom.evidence.azure_hcl import ATTESTATION_KEY, SHA256, SNP, TDX, HclReport, RuntimeData, runtime_digest
from strongroom.evidence.snp import SnpClaims, verify_report
from strongroom.evidence.snp_certificate import Issuers, amd_issuers
from strongroom.evidence.snp_policy import SnpPolicy
from strongroom.evidence.tdx import TdxClaims, TdxPolicy, appraise_td, verify_td_quote
from strongroom.evidence.tpm_quote import PcrPolicy, check_nonce, check_pcrs, check_signature
from strongroom.evidence.tpm_structures import RSASSA, Quote, TpmSignature
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, Word

_GUEST = "Microsoft Learn, Guest attestation for confidential VMs: design"


@dataclass(frozen=True, slots=True)
class AzurePolicy:
    """A parsed ``[az-snp-vtpm]`` or ``[az-tdx-vtpm]`` table: the hardware's keys and the virtual TPM's."""

    hardware: SnpPolicy | TdxPolicy
    pcrs: PcrPolicy = field(default_factory=PcrPolicy)
    user_data: HexSet | None = None
    vm_ids: frozenset[str] | None = None
    require_secure_boot: bool = False
    allow_empty_nonce: bool = False


@dataclass(frozen=True, slots=True)
class AzureClaims(Claims):
    """Claims of the whole, with the hardware's own beside them; `hardware` is None where none was given."""

    hardware: SnpClaims | TdxClaims | None = None


class AzureVerifier:
    """What both kinds of Azure guest share; use `AzureSnpVerifier` or `AzureTdxVerifier`."""

    tee: str
    _kind: int

    def policy(self, table: Fields) -> AzurePolicy:
        """Parse the table of a policy file that is named after the TEE; raises `MalformedInput`."""
        policy = AzurePolicy(
            hardware=self._hardware_policy(table),
            pcrs=PcrPolicy.read(table),
            user_data=hex_set(table, "user_data", sizes=(64,)),
            vm_ids=text_set(table, "vm_ids"),
            require_secure_boot=table.truth("require_secure_boot", default=False),
            allow_empty_nonce=table.truth("allow_empty_nonce", default=False),
        )
        table.done()
        return policy

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: AzurePolicy, checks: Checklist
    ) -> Claims:
        """The chain from the hardware's root to the nonce; raises `EvidenceMalformed`."""
        body = AzureEvidence.parse(evidence.body)
        hcl = self._hcl(body, checks)
        own, beside = (body.report, "report") if self._kind == SNP else (body.tdreport, "tdreport")
        _check_same(own, None if hcl is None else hcl.hardware, beside, checks)
        _check_same(body.runtime_data, None if hcl is None else hcl.runtime_data, "runtime_data", checks)
        runtime_data = hcl.runtime_data if hcl is not None else body.runtime_data
        hardware = self._hardware(body, hcl, endorsements, now, policy, checks)
        values: dict[str, Claim] = {}
        runtime = None
        if hardware is not None:
            values |= hardware.values
            if runtime_data is not None and _check_runtime_data(hardware.report_data, runtime_data, checks):
                runtime = RuntimeData.parse(runtime_data)
                values |= _runtime_claims(runtime)
        key = None if runtime is None else _attestation_key(runtime, checks)
        quote, covered = _check_quote(body, key, policy, checks)
        if covered is not None:
            values["pcrs"] = Claim({str(index): value.hex() for index, value in covered.items()})
        return AzureClaims(
            tee=self.tee,
            values=values,
            report_data=b"" if quote is None else quote.extra_data,
            binding_word=Word.EVIDENCE_MISSING if quote is None else Word.NONCE,
            device_id="" if hardware is None else hardware.device_id,
            hardware=hardware,
        )

    def appraise(self, claims: Claims, policy: AzurePolicy, checks: Checklist) -> None:
        """The hardware by its own rules, then PCRs, user data, VM identity and secure boot."""
        if not isinstance(claims, AzureClaims):
            raise EvidenceMalformed(f"claims of {claims.tee} are not those of an Azure guest")
        if isinstance(claims.hardware, SnpClaims) and isinstance(policy.hardware, SnpPolicy):
            claims.hardware.appraise(policy.hardware, checks)
        elif isinstance(claims.hardware, TdxClaims) and isinstance(policy.hardware, TdxPolicy):
            appraise_td(claims.hardware, policy.hardware, checks)
        policy.pcrs.appraise(claims.get("pcrs"), checks, name="azure")
        check_allowed(
            policy.user_data, claims.get("user_data", ""), checks, name="azure.user-data", word=Word.BINDING,
            key="user_data", source=_GUEST,
        )  # fmt: skip
        check_allowed(
            policy.vm_ids, claims.get("vm_id", ""), checks, name="azure.vm-id", word=Word.IDENTITY, key="vm_ids",
            source=_GUEST,
        )  # fmt: skip
        if policy.require_secure_boot:
            checks.that(
                claims.get("secure_boot") is True, "azure.secure-boot", Word.POLICY_BITS,
                expected="secure boot on, as the paravisor states it", found=str(claims.get("secure_boot")),
                source=_GUEST, hint="make the VM again with secure boot on",
            )  # fmt: skip

    def _hcl(self, body: AzureEvidence, checks: Checklist) -> HclReport | None:
        hcl = None if body.hcl_report is None else HclReport.parse(body.hcl_report)
        found = "given" if hcl is not None else "its runtime data" if body.runtime_data is not None else "none"
        checks.that(
            found != "none", "azure.hcl-report", Word.EVIDENCE_MISSING, expected="an HCL report, or its parts",
            found=found, source=_GUEST, hint="read NV index 0x01400001 of the vTPM",
        )  # fmt: skip
        if hcl is not None:
            checks.that(
                hcl.kind == self._kind, "azure.kind", Word.FORMAT, expected=f"report type {self._kind}",
                found=str(hcl.kind), source=_GUEST, hint="send it as the kind of guest that it is",
            )  # fmt: skip
            checks.that(
                hcl.hash_type == SHA256, "azure.hash-type", Word.ALGORITHM, expected="1 (SHA-256)",
                found=str(hcl.hash_type), source=_GUEST, hint="no paravisor known here hashes otherwise",
            )  # fmt: skip
        return hcl

    def _hardware_policy(self, table: Fields) -> SnpPolicy | TdxPolicy:
        raise NotImplementedError

    def _hardware(
        self, body: AzureEvidence, hcl: HclReport | None, endorsements: Endorsements, now: datetime,
        policy: AzurePolicy, checks: Checklist,
    ) -> SnpClaims | TdxClaims | None:  # fmt: skip
        raise NotImplementedError


class AzureSnpVerifier(AzureVerifier):
    """The verifier of SEV-SNP guests on Azure; roots are AMD's unless others are handed in."""

    tee = "az-snp-vtpm"
    _kind = SNP

    def __init__(self, *, issuers: Issuers = amd_issuers) -> None:
        self._issuers = issuers

    def _hardware_policy(self, table: Fields) -> SnpPolicy:
        return SnpPolicy.read(table)

    def _hardware(
        self, body: AzureEvidence, hcl: HclReport | None, endorsements: Endorsements, now: datetime,
        policy: AzurePolicy, checks: Checklist,
    ) -> SnpClaims | TdxClaims | None:  # fmt: skip
        held = hcl.hardware if hcl is not None and hcl.kind == SNP else None
        report = held or body.report
        if not _hardware_given(report, "an SEV-SNP report", checks) or report is None:
            return None
        if not isinstance(policy.hardware, SnpPolicy):
            raise EvidenceMalformed("the policy is not one for SEV-SNP")
        items = dict(endorsements.items)
        if body.vcek is not None:
            items.setdefault("vcek", body.vcek)
        return verify_report(report, items, now=now, policy=policy.hardware, checks=checks, issuers=self._issuers)


class AzureTdxVerifier(AzureVerifier):
    """The verifier of TDX guests on Azure. A TDREPORT says nothing to anyone outside: a TD quote is needed."""

    tee = "az-tdx-vtpm"
    _kind = TDX

    def _hardware_policy(self, table: Fields) -> TdxPolicy:
        return TdxPolicy.read(table)

    def _hardware(
        self, body: AzureEvidence, hcl: HclReport | None, endorsements: Endorsements, now: datetime,
        policy: AzurePolicy, checks: Checklist,
    ) -> SnpClaims | TdxClaims | None:  # fmt: skip
        if not _hardware_given(body.quote, "a TD quote", checks) or body.quote is None:
            return None
        return verify_td_quote(body.quote, endorsements.get("collateral"), now=now, checks=checks)


def _hardware_given(octets: bytes | None, what: str, checks: Checklist) -> bool:
    return checks.that(
        octets is not None, "azure.hardware", Word.EVIDENCE_MISSING, expected=what,
        found="given" if octets is not None else "none", source=_GUEST,
        hint="without the hardware's own evidence the virtual TPM is only software",
    )  # fmt: skip


def _check_same(sent: bytes | None, held: bytes | None, what: str, checks: Checklist) -> None:
    if sent is not None and held is not None:
        checks.that(
            sent == held, f"azure.{what.replace('_', '-')}", Word.BINDING, expected=f"the {what} of the HCL report",
            found="the same" if sent == held else "another", source=_GUEST, hint="send the HCL report alone",
        )  # fmt: skip


def _check_runtime_data(report_data: bytes, runtime_data: bytes, checks: Checklist) -> bool:
    expected = runtime_digest(runtime_data)
    return checks.that(
        report_data == expected, "azure.runtime-data-hash", Word.BINDING, expected=expected.hex(),
        found=report_data.hex(), source=_GUEST,
        hint="hardware report and runtime data are of two guests, or of two boots: read both again",
    )  # fmt: skip


def _attestation_key(runtime: RuntimeData, checks: Checklist) -> rsa.RSAPublicKey | None:
    keys = runtime.attestation_keys
    one = checks.that(
        len(keys) == 1, "azure.attestation-key", Word.BINDING, expected=f"exactly one {ATTESTATION_KEY}",
        found=str(len(keys)), source=_GUEST, hint="no paravisor known here names more than one",
    )  # fmt: skip
    return keys[0] if one else None


def _check_quote(
    body: AzureEvidence, key: rsa.RSAPublicKey | None, policy: AzurePolicy, checks: Checklist
) -> tuple[Quote | None, dict[int, bytes] | None]:
    message, signature = body.tpm_quote, body.tpm_signature
    checks.that(
        message is not None and signature is not None, "azure.quote", Word.EVIDENCE_MISSING,
        expected="a TPM quote and its signature",
        found=f"quote {'given' if message is not None else 'missing'}, "
        f"signature {'given' if signature is not None else 'missing'}",
        source=_GUEST, hint="quote with the key at handle 0x81000003 of the vTPM",
    )  # fmt: skip
    if message is None:
        return None, None
    quote = Quote.parse(message)
    check_nonce(quote, checks, name="azure", allow_empty=policy.allow_empty_nonce)
    if signature is not None and key is not None:
        check_signature(message, TpmSignature(RSASSA, BANK, (signature,)), key, checks, name="azure")
    return quote, check_pcrs(quote, body.pcrs, BANK, BANK, checks, name="azure")


def _runtime_claims(runtime: RuntimeData) -> dict[str, Claim]:
    """The paravisor's words; the hardware vouches for the paravisor, whose measurement the report has."""
    return {
        "user_data": Claim(runtime.user_data.hex()),
        "vm_id": Claim(runtime.vm_id),
        "secure_boot": Claim(runtime.configuration.get("secure-boot") is True),
        "console_enabled": Claim(runtime.configuration.get("console-enabled") is not False),
    }
