"""Every SEV-SNP verdict of the shared manifest, for the right reason, and the claims it states."""

from __future__ import annotations

import json

import pytest
from conftest import SHARED
from evidence.snp_tpm_cases import assert_verdict, load, try_case

FOLDER = SHARED / "evidence"
CASES = load(FOLDER, {"sev-snp"}) if (FOLDER / "MANIFEST.json").is_file() else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_is_the_manifests_and_for_its_reason(case, shared_evidence):
    assert_verdict(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.accept and case.evidence], ids=lambda case: case.name)
def test_the_claims_are_what_the_manifest_says(case, shared_evidence):
    _, claims = try_case(case)
    assert claims is not None
    assert case.claims, json.dumps(case.claims)
    assert {name: claims[name] for name in case.claims} == case.claims
