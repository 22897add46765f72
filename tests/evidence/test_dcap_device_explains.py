"""A refusal tells a tired reader what was expected, what was found, where that is written, and what to do next."""

from __future__ import annotations

import evidence.dcap_device_cases  # noqa: F401
import pytest
from conftest import SHARED
from evidence.snp_tpm_cases import load, try_case

FOLDER = SHARED / "evidence"
CASES = load(FOLDER, {"tdx", "sgx", "nvidia", "cca"}) if (FOLDER / "MANIFEST.json").is_file() else []


@pytest.mark.parametrize("case", [case for case in CASES if not case.accept], ids=lambda case: case.name)
def test_every_failure_says_what_to_do_next(case, shared_evidence):
    checks, claims = try_case(case)
    failed = [check for check in checks.failed if check.name not in ("format", "binding")]
    for check in failed:
        assert all((check.expected, check.found, check.source, check.hint)), check
        assert check.expected != check.found, check
    assert failed or claims is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_check_has_a_name_of_its_kind_and_names_its_source(case, shared_evidence):
    checks, _ = try_case(case)
    for check in checks.all:
        assert check.name.split(".")[0] in ("tdx", "sgx", "nvidia", "cca", "format", "binding")
        assert check.name in ("format", "binding") or check.source, check
        assert check.ok or check.hint or check.name in ("format", "binding"), check
        assert not check.ok or not check.hint
