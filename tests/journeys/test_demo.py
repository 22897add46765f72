"""The demo is a promise on the README's first screen; here it is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.journey, pytest.mark.alone]


def left_behind() -> set[str]:
    return {str(path) for place in (Path("/dev/shm"), Path("/tmp")) for path in place.glob("strongroom-*")}


@pytest.fixture(scope="module")
def told():
    before = left_behind()
    done = subprocess.run(
        [sys.executable, "-m", "strongroom.cli", "demo", "--json"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr, left_behind() - before


def test_the_demo_tells_its_whole_story(told):
    facts = told[0]
    assert list(facts) == ["model", "owner", "sealed", "server", "checks", "answers", "leaks", "refusals", "seconds"]
    assert facts["answers"]["right"] >= 8
    assert facts["leaks"]["hits"] == 0
    assert facts["leaks"]["planted"] == 1
    assert all(check["ok"] for check in facts["checks"])


def test_each_of_the_four_attacks_is_refused_with_a_next_step(told):
    refusals = told[0]["refusals"]
    assert [refusal["what"] for refusal in refusals] == [
        "An archive with one bit flipped",
        "An archive by an unknown author",
        "A keeper whose measurement the policy does not list",
        "A request that the host sends twice",
    ]
    assert all(refusal["said"] and refusal["hint"] for refusal in refusals)
    assert "not the one that was signed" in refusals[0]["said"]
    assert "nobody here trusts" in refusals[1]["said"]


def test_the_demo_warns_of_the_simulated_tee(told):
    assert "SIMULATED TEE" in told[1]


def test_the_demo_leaves_nothing_behind(told):
    assert told[2] == set()
