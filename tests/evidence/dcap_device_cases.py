"""Cases of an evidence manifest for SGX, TDX, NVIDIA and CCA; judged by the rules of `snp_tpm_cases`."""

from __future__ import annotations

from typing import Any

from evidence.snp_tpm_cases import CASES
from strongroom.encoding import b64
from strongroom.evidence.cca import CcaVerifier
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.sgx import SgxVerifier
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.types import Endorsements, Evidence

DCAP_SAME = {"allow_debug", "allow_migration", "profile", "allowed_tcb_statuses", "allowed_mr_servicetd"}


def _table(params: dict[str, Any], same: set[str], judged_elsewhere: set[str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in params.items():
        if name in same:
            table[name] = value
        elif name == "expected_measurement":
            table["measurements"] = [value]
        elif name not in judged_elsewhere:
            raise KeyError(f"unknown parameter {name}")
    return table


def case_dcap(tee: str, files: dict[str, bytes], params: dict[str, Any]):
    body: dict[str, Any] = {"quote": b64(files["quote"])}
    if tee == "tdx":
        body["cc_eventlog"] = b64(files["event_log"]) if "event_log" in files else None
    endorsements = {role: files[role] for role in ("collateral",) if role in files}
    return Evidence(tee, body), Endorsements(endorsements), _table(params, DCAP_SAME, {"expected_report_data"})


CASES["tdx"] = (lambda files, params: case_dcap("tdx", files, params), TdxVerifier())
CASES["sgx"] = (lambda files, params: case_dcap("sgx", files, params), SgxVerifier())


def case_cca(files: dict[str, bytes], params: dict[str, Any]):
    endorsements = {role: files[role] for role in ("cpak",) if role in files}
    table = _table(params, set(), {"expected_nonce"})
    return Evidence("cca", {"token": list(files["token"])}), Endorsements(endorsements), table


CASES["cca"] = (case_cca, CcaVerifier())


def case_nvidia(files: dict[str, bytes], params: dict[str, Any]):
    same = {"required_rims", "allow_trailing_bytes", "require_revocation_status"}
    table = _table(params, same, {"expected_nonce", "endorsements_only"})
    endorsements = {role: files[role] for role in ("driver_rim", "vbios_rim") if role in files}
    body = {}
    if "evidence" in files:
        device = {"arch": "", "uuid": "", "evidence": b64(files["evidence"]), "certificate": b64(files["cert_chain"])}
        body = {"device_evidence_list": [device]}
    return Evidence("nvidia", body), Endorsements(endorsements), table


CASES["nvidia"] = (case_nvidia, NvidiaVerifier())
