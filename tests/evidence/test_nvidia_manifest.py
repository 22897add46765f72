"""Every NVIDIA verdict of the shared manifest, for the right reason."""

from __future__ import annotations

import evidence.dcap_device_cases  # noqa: F401
import pytest
from conftest import SHARED
from evidence.snp_tpm_cases import assert_verdict, load

FOLDER = SHARED / "evidence"
CASES = load(FOLDER, {"nvidia"}) if (FOLDER / "MANIFEST.json").is_file() else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_is_the_manifests_and_for_its_reason(case, shared_evidence):
    assert_verdict(case)
