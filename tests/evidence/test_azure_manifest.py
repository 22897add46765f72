"""Every verdict for Azure guests of the shared manifest, for the right reason."""

from __future__ import annotations

import pytest
from conftest import SHARED
from evidence.snp_tpm_cases import assert_verdict, load

FOLDER = SHARED / "evidence"
CASES = load(FOLDER, {"az-snp-vtpm", "az-tdx-vtpm"}) if (FOLDER / "MANIFEST.json").is_file() else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_is_the_manifests_and_for_its_reason(case, shared_evidence):
    assert_verdict(case)
