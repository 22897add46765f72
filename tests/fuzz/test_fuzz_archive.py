"""The archive's fuzz targets: a quick seeded round in every run, atheris for two minutes each in the long one."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.fuzz_archive import TARGETS, attempt, seeds

PROGRAM = Path(__file__).with_name("fuzz_archive.py")


def mutate(octets: bytes, chance: random.Random) -> bytes:
    """A few of libFuzzer's own tricks."""
    changed = bytearray(octets)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        trick = chance.randrange(5)
        if trick == 0:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        elif trick == 1:
            changed[at : at + chance.choice([1, 2, 4, 8])] = chance.choice([b"\xff", b"\0"]) * chance.choice(
                [1, 2, 4, 8]
            )
        elif trick == 2:
            del changed[at : at + chance.randrange(1, 40)]
        elif trick == 3:
            start = chance.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + chance.randrange(1, 40)]
        else:
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutated_part_brings_out_an_error_of_another_tree(name):
    chance = random.Random(name)
    corpus = list(seeds(name))
    accepted = sum(attempt(TARGETS[name], each) for each in corpus)
    for _ in range(400):
        attempt(TARGETS[name], mutate(chance.choice(corpus), chance))

    # A target that refuses every seed would test one refusal only.
    assert accepted or name in {"bodies", "slots"}


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing_in_two_minutes(name, tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("SKIPPED LOUDLY: atheris is not installed, so nothing was fuzzed")
    command = [sys.executable, str(PROGRAM), name, "-max_total_time=120", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=360, check=False, cwd=tmp_path)

    assert done.returncode == 0, done.stderr[-3000:]
