"""Cases of an evidence manifest as what the SNP, Azure and TPM verifiers take, and how they are judged here.

The schema is the manifest README's. An unknown role or parameter is an error.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from strongroom.encoding import Fields, b64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.azure import AzureSnpVerifier, AzureTdxVerifier
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.tpm_structures import TpmPublic
from strongroom.evidence.types import Checklist, Claims, Endorsements, Evidence, Verifier


@dataclass(frozen=True)
class Case:
    """One verdict of a manifest, ready to be judged."""

    name: str
    evidence: Evidence | None
    endorsements: Endorsements
    table: dict[str, Any]
    report_data: bytes | None
    now: datetime
    accept: bool
    words: frozenset[str]
    failed_check: str | None
    claims: dict[str, Any]
    verifier: Verifier


SNP_RENAMED = {
    "expected_csp_id": "csp_ids", "expected_host_data": "host_data", "expected_measurement": "measurements",
}  # fmt: skip
SNP_SAME = {"allow_debug", "allow_migration", "max_vmpl", "allow_vlek", "min_tcb", "require_revocation_status"}


def case_snp(files: dict[str, bytes], params: dict[str, Any]) -> tuple[Evidence, Endorsements, dict[str, Any]]:
    table: dict[str, Any] = {}
    for name, value in params.items():
        if name in SNP_SAME:
            table[name] = value
        elif name in SNP_RENAMED:
            table[SNP_RENAMED[name]] = [value]
        elif name not in ("expected_report_data", "endorsements_only"):
            raise KeyError(f"unknown parameter {name}")
    endorsements = {role: octets for role, octets in files.items() if role in ("vcek", "vlek", "security_policy")}
    body = {"report": b64(files["report"])} if "report" in files else {}
    return Evidence("snp", body), Endorsements(endorsements), table


BANKS = ("sha1", "sha256", "sha384")
TPM_SAME = {"pcr_bank", "allow_empty_nonce", "ak_trust", "require_revocation_status"}


def case_tpm(files: dict[str, bytes], params: dict[str, Any]) -> tuple[Evidence, Endorsements, dict[str, Any]]:
    table: dict[str, Any] = {}
    for name, value in params.items():
        if name in TPM_SAME:
            table[name] = value
        elif name == "expected_pcrs":
            table["pcrs"] = dict(value)
        elif name != "expected_nonce":
            raise KeyError(f"unknown parameter {name}")
    if table.get("ak_trust") == "pinned":  # the AK given is itself trusted
        spki = files.get("ak_spki")
        table["pinned_aks"] = [
            hashlib.sha256(spki).hexdigest() if spki else TpmPublic.parse(files["ak_pub"]).name.hex()
        ]
    if "ek_ca_chain" in files:
        table["ek_roots"] = files["ek_ca_chain"].decode("ascii", "replace")
    body: dict[str, Any] = {name: b64(files[name]) for name in ("ak_pub", "ak_spki", "ek_cert") if name in files}
    body |= {"event_log": b64(files["event_log"])} if "event_log" in files else {}
    body |= {"ak_name": files["ak_name"].hex()} if "ak_name" in files else {}
    quotes: dict[str, dict[str, Any]] = {}
    for bank in BANKS:
        for role, name in (("quote", "message"), ("signature", "signature")):
            if f"{role}_{bank}" in files:
                quotes.setdefault(bank, {})[name] = b64(files[f"{role}_{bank}"])
        if f"pcrs_{bank}" in files:
            quotes.setdefault(bank, {})["pcrs"] = json.loads(files[f"pcrs_{bank}"])
    endorsements = {"ak_cert": files["ak_cert"]} if "ak_cert" in files else {}
    return Evidence("tpm", {**body, "quotes": quotes}), Endorsements(endorsements), table


AZURE_ROLES = {"hcl_report", "report", "tdreport", "runtime_data", "tpm_quote", "tpm_signature", "quote"}
DCAP_SAME = {"profile", "allowed_tcb_statuses", "allowed_mr_servicetd"}


def case_azure(
    tee: str, files: dict[str, bytes], params: dict[str, Any]
) -> tuple[Evidence, Endorsements, dict[str, Any]]:
    table: dict[str, Any] = {}
    for name, value in params.items():
        if name in SNP_SAME | DCAP_SAME:
            table[name] = value
        elif name in SNP_RENAMED:
            table[SNP_RENAMED[name]] = [value]
        elif name == "expected_pcrs":
            table["pcrs"] = dict(value)
        elif name == "expected_user_data":
            table["user_data"] = [value]
        elif name != "expected_nonce":
            raise KeyError(f"unknown parameter {name}")
    body: dict[str, Any] = {name: b64(octets) for name, octets in files.items() if name in AZURE_ROLES}
    body |= {"pcrs": json.loads(files["pcrs"])} if "pcrs" in files else {}
    endorsements = {role: octets for role, octets in files.items() if role in ("vcek", "collateral")}
    return Evidence(tee, body), Endorsements(endorsements), table


CASES: dict[str, tuple[Any, Any]] = {
    "sev-snp": (case_snp, SnpVerifier()),
    "tpm": (case_tpm, TpmVerifier()),
    "az-snp-vtpm": (partial(case_azure, "az-snp-vtpm"), AzureSnpVerifier()),
    "az-tdx-vtpm": (partial(case_azure, "az-tdx-vtpm"), AzureTdxVerifier()),
}


def load(folder: Path, tees: set[str]) -> list[Case]:
    """Every verdict of the manifest's cases for these TEEs."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["format"] == 2
    return [
        _case(folder, case, verdict)
        for case in manifest["cases"]
        if case["tee"] in tees
        for verdict in case["expected"]
    ]


def _case(folder: Path, case: dict[str, Any], verdict: dict[str, Any]) -> Case:
    roles = {**case["roles"], **verdict["files_override"]}
    files = {role: (folder / case["path"] / name).read_bytes() for role, name in roles.items()}
    params = dict(verdict["policy_params"])
    inputs = case["inputs"]
    for name, value in inputs.items():  # a parameter stands in place of the input
        if name in ("host_data", "user_data"):
            params.setdefault(f"expected_{name}", value)
    expected = params.get("expected_report_data", inputs.get("report_data"))
    expected = params.get("expected_nonce", inputs.get("nonce", expected))
    make, verifier = CASES[case["tee"]]
    evidence, endorsements, table = make(files, params)
    return Case(
        name=f"{case['path']}: {verdict['policy']}",
        evidence=None if params.get("endorsements_only") else evidence,
        endorsements=endorsements,
        table=table,
        report_data=None if expected is None else bytes.fromhex(expected),
        now=datetime.fromisoformat(verdict["time"]),
        accept=verdict["verdict"] == "accept",
        words=frozenset([verdict["failed_check"], *verdict.get("also_fails", [])]) - {None},
        failed_check=verdict["failed_check"],
        claims=case.get("claims", {}),
        verifier=verifier,
    )


def try_case(case: Case) -> tuple[Checklist, Claims | None]:
    """Verify, appraise and compare the binding; a refusal to parse is a failed ``format`` check."""
    checks, claims = Checklist(), None
    try:
        read = Fields(case.table, where="policy")
        policy = case.verifier.policy(read)
        read.done()
        if case.evidence is None:
            case.verifier.verify_endorsements(case.endorsements, case.now, policy, checks)
            return checks, None
        claims = case.verifier.verify(case.evidence, case.endorsements, case.now, policy, checks)
        case.verifier.appraise(claims, policy, checks)
    except (EvidenceMalformed, MalformedInput) as error:
        checks.that(False, "format", "format", expected="evidence that can be read", found=str(error))
        return checks, None
    if case.report_data is not None:
        checks.that(
            claims.report_data == case.report_data, "binding", claims.binding_word,
            expected=case.report_data.hex(), found=claims.report_data.hex(),
        )  # fmt: skip
    return checks, claims


def assert_verdict(case: Case) -> None:
    """The README's rule: right verdict, and only words that the manifest states, its first one among them."""
    checks, _ = try_case(case)
    failed = {str(check.word) for check in checks.failed}
    told = [f"{check.name}: expected {check.expected}, found {check.found}" for check in checks.failed]
    assert case.accept == (not failed), told
    if not case.accept:
        assert failed <= case.words, told
        assert case.failed_check in failed or "format" in failed, told
    assert len(checks.all) >= 2
