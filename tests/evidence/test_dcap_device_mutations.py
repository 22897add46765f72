"""Mutants of every accepted SGX, TDX, NVIDIA and CCA case: none is accepted."""

from __future__ import annotations

import pytest
from conftest import SHARED
from evidence.dcap_device_mutants import accepted_cases, mutants

FOLDER = SHARED / "evidence"
CASES = accepted_cases(FOLDER) if (FOLDER / "MANIFEST.json").is_file() else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_mutant_of_an_accepted_case_is_accepted(case, shared_evidence):
    found = list(mutants(case, CASES, 4))
    every_nth = found[:: max(len(found) // 60, 1)]
    assert case.accepts()
    assert [label for label, mutant in every_nth if mutant.accepts()] == []


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_none_of_at_least_300_mutants_of_an_accepted_case_is_accepted(case, shared_evidence):
    found = list(mutants(case, CASES, 40))
    assert len({repr((sorted(mutant.files.items()), mutant.expected, mutant.now)) for _, mutant in found}) >= 300
    assert [label for label, mutant in found if mutant.accepts()] == []
