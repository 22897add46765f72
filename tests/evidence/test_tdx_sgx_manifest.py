"""Every TDX and SGX verdict of the shared manifest, for the right reason, and the claims it states."""

from __future__ import annotations

import evidence.dcap_device_cases  # noqa: F401
import pytest
from conftest import SHARED
from evidence.snp_tpm_cases import assert_verdict, load, try_case

FOLDER = SHARED / "evidence"
CASES = load(FOLDER, {"tdx", "sgx"}) if (FOLDER / "MANIFEST.json").is_file() else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_is_the_manifests_and_for_its_reason(case, shared_evidence):
    assert_verdict(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_claims_are_what_the_manifest_says(case, shared_evidence):
    _, claims = try_case(case)
    stated = {name: value for name, value in case.claims.items() if name != "body_type"}
    assert stated
    assert {name: claims[name] for name in stated} == stated
