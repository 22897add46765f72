"""The mapping hook and sealed checkpoints; each case of torch_cases.py is a test here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "torch_cases.py"
NAMES = [
    each.name
    for each in ast.parse(CASES.read_text()).body
    if isinstance(each, ast.FunctionDef) and [argument.arg for argument in each.args.args] == ["folder"]
]


@pytest.fixture(scope="module")
def results():
    done = subprocess.run([sys.executable, str(CASES)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_case_was_run(results):
    assert set(results) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_case(results, name):
    assert results[name] == ""
