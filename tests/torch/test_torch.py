"""The mapping hook, the way to a device and sealed checkpoints; each case of the case files is a test here."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest


def names(file: str) -> list[str]:
    """The functions of a case file: those with the one argument `folder`, but for helpers that give something."""
    bodies = ast.parse((Path(__file__).parent / file).read_text()).body
    return [
        each.name
        for each in bodies
        if isinstance(each, ast.FunctionDef)
        and [argument.arg for argument in each.args.args] == ["folder"]
        and each.returns is None
    ]


@functools.cache
def results(file: str) -> dict[str, str]:
    """All cases of a file, run once in a process of their own."""
    command = [sys.executable, str(Path(__file__).parent / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_case_was_run():
    assert set(results("torch_cases.py")) == set(names("torch_cases.py"))


@pytest.mark.parametrize("name", names("torch_cases.py"))
def test_case(name):
    assert results("torch_cases.py")[name] == ""


@pytest.mark.gpu
@pytest.mark.parametrize("name", names("gpu_cases.py"))
def test_case_on_a_device(name):
    assert results("gpu_cases.py")[name] == ""
