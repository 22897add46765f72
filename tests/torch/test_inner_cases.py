"""The service around the user's handler; each test of inner_cases.py is a test here, for all of its parameters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

CASES = Path(__file__).parent / "inner_cases.py"
NAMES = [
    each.name
    for each in ast.parse(CASES.read_text()).body
    if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[str]]:
    """By test: for each of its parameters what failed, or nothing."""
    report = tmp_path_factory.mktemp("inner") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        said = [f"{case.get('name')}: {each.get('message')}" for each in case if each.tag != "system-out"]
        found.setdefault(case.get("name", "").partition("[")[0], []).extend(said or [""])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_case(outcomes, name):
    assert set(outcomes[name]) == {""}
