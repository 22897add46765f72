"""Our TCB status against dcap-qvl's, an independent implementation, on every quote of the manifest."""

from __future__ import annotations

import json
from datetime import datetime

import dcap_qvl
import pytest
from conftest import SHARED
from strongroom.evidence.dcap import Verified, parse_quote, verify_quote
from strongroom.evidence.roots import root
from strongroom.evidence.types import Checklist, Word

FOLDER = SHARED / "evidence"


def quotes():
    if not (FOLDER / "MANIFEST.json").is_file():
        return []
    manifest = json.loads((FOLDER / "MANIFEST.json").read_text())
    return [
        pytest.param(case, when, id=f"{case['path']} at {when}")
        for case in manifest["cases"]
        if case["tee"] in ("tdx", "sgx", "az-tdx-vtpm")
        for when in sorted({case["verification_time"], *(each["time"] for each in case["expected"])})
    ]


def theirs(quote: bytes, collateral: str, now: datetime) -> tuple[str, list[str]] | str:
    """Status and advisories, or what dcap-qvl says where it refuses altogether."""
    parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral)
    try:
        report = dcap_qvl.verify(quote, parsed, int(now.timestamp()))
    except ValueError as error:
        return str(error)
    return report.status, sorted(report.advisory_ids)


def refused_alike(said: str, ours: Verified, checks: Checklist) -> bool:
    """dcap-qvl stops at its first objection, of which some are a policy's matter here (docs/adr/0038)."""
    body = ours.quote.body
    if "No matching TCB level" in said:
        return ours.tcb.overall == "NotSupported"
    if "Debug mode" in said:
        return body.debug
    if "MR service TD" in said:
        return any(body.mr_servicetd)
    if "SEPT_VE_DISABLE" in said:
        return not body.attribute(28)
    if "expired" in said.lower():
        return {check.word for check in checks.failed} == {Word.VALIDITY_PERIOD}
    return False


@pytest.mark.parametrize(("case", "when"), quotes())
def test_status_and_advisories_agree_with_dcap_qvl(case, when, shared_evidence):
    folder = shared_evidence / case["path"]
    quote, collateral = ((folder / case["roles"][role]).read_bytes() for role in ("quote", "collateral"))
    now, checks = datetime.fromisoformat(when), Checklist()
    ours = verify_quote(
        parse_quote(quote), collateral, root=root("intel_sgx_root_ca.der"), now=now, checks=checks, name="dcap"
    )
    other = theirs(quote, collateral.decode(), now)
    if isinstance(other, str):
        assert refused_alike(other, ours, checks), other
    else:
        assert not checks.failed
        assert (str(ours.tcb.overall), list(ours.tcb.advisories)) == other
    assert ours.tcb.overall == case["tcb_status"]
    assert ours.tcb.module is None or "module_status" not in case or ours.tcb.module == case["module_status"]
    assert "qe_status" not in case or ours.tcb.qe == case["qe_status"]
