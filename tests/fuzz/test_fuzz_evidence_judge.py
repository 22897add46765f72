"""The fuzz targets run: over their seeds always, and under atheris for two minutes each in the long run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.fuzz_evidence_judge import TARGETS, one, seeds

HARNESS = Path(__file__).with_name("fuzz_evidence_judge.py")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_their_neighbours(name):
    for seed in seeds(name):
        one(TARGETS[name], seed)
        for at in range(0, len(seed), max(1, len(seed) // 50)):
            one(TARGETS[name], seed[:at] + bytes((seed[at] ^ 0x41,)) + seed[at + 1 :])
            one(TARGETS[name], seed[:at])


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_two_minutes_of_fuzzing_find_nothing(name):
    pytest.importorskip("atheris", reason="SKIPPED LOUDLY: atheris is not installed")
    done = subprocess.run(
        [sys.executable, str(HARNESS), name, "-max_total_time=120", "-rss_limit_mb=2048"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
