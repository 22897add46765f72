"""A keeper that hangs is ended and started again; one that answers, or is still starting, is left alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
from strongroom.keeper.pulse import Pulse
from strongroom.launch.supervisor import Child, Supervisor

KEEPER = """
import sys, time
from pathlib import Path
from strongroom.keeper.service import KeeperService
time.sleep(float(sys.argv[2]))
KeeperService(Path(sys.argv[1]), {}, None).run()
"""


class House:
    def __init__(self, folder, *, start_takes=0.0):
        self.said = []
        self.child = Child(
            "the keeper",
            [sys.executable, "-c", KEEPER, str(folder / "keeper.sock"), str(start_takes)],
            dict(os.environ),
            folder,
        )
        self.supervisor = Supervisor(self.said.append)
        pulse = Pulse(folder / "keeper.sock", lambda: self.child.process, self.said.append, every=0.05, within=0.5)
        self.pulse = pulse
        self.supervisor.also(pulse)
        self.supervisor.start(self.child)

    def tend(self, until, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.supervisor.tend()
            if until():
                return
            time.sleep(0.02)
        raise AssertionError(f"it did not happen in {seconds} s: {self.said}")


@pytest.fixture
def house(tmp_path):
    made = []

    def make(**wishes):
        made.append(House(tmp_path, **wishes))
        return made[-1]

    yield make
    for each in made:
        each.supervisor.stop()


def test_a_keeper_that_no_longer_answers_is_ended_and_the_next_one_answers(house):
    house = house()
    house.tend(lambda: house.pulse.answered and not house.pulse.missed)
    first = house.child.process.pid
    os.kill(first, signal.SIGSTOP)
    house.tend(lambda: house.child.process is not None and house.child.process.pid != first)
    house.tend(lambda: house.pulse.answered and not house.pulse.missed)
    assert any("has not answered" in each for each in house.said)
    assert any("by SIGKILL" in each for each in house.said)


def test_a_keeper_that_answers_again_in_time_is_left_alone(house):
    house = house()
    house.tend(lambda: house.pulse.answered and not house.pulse.missed)
    first = house.child.process.pid
    os.kill(first, signal.SIGSTOP)
    house.tend(lambda: house.pulse.missed)
    os.kill(first, signal.SIGCONT)
    house.tend(lambda: house.pulse.answered and not house.pulse.missed)
    assert house.child.process.pid == first
    assert house.said == []


def test_a_keeper_that_takes_long_to_start_is_waited_for(house):
    house = house(start_takes=2)
    first = house.child.process.pid
    house.tend(lambda: house.pulse.answered and not house.pulse.missed)
    assert house.child.process.pid == first
    assert house.said == []


def test_asking_never_waits(house):
    house = house()
    house.tend(lambda: house.pulse.answered and not house.pulse.missed)
    os.kill(house.child.process.pid, signal.SIGSTOP)
    threads = threading.active_count()
    for _ in range(20):
        before = time.monotonic()
        house.pulse()
        assert time.monotonic() - before < 0.4
        time.sleep(0.02)
    assert threading.active_count() <= threads  # and takes no thread: the launcher forks
