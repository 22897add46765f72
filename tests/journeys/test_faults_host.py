"""What a host does to a whole server with its privileges: full disks, little memory, other clocks, frozen processes.

Each ends in the right answer or a clear error in bounded time, heals when its cause is gone, and leaves no canary.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from doubles.ground import Ground
from doubles.keepers import until
from doubles.surroundings import (
    FILL_THIS_FOLDER,
    PRELOADED,
    SMALL_MEMORY_DISK,
    fill_up,
    launched_after,
    little_memory,
    small_disk,
)
from doubles.wall_clock import WallClock
from strongroom.adapters.torchserve.launcher import keeper_status
from strongroom.errors import KeeperUnavailable

pytestmark = [pytest.mark.journey, pytest.mark.long]

DAY = 86400
HEALS_S = 180


@pytest.fixture
def ground():
    with standing() as ground:
        yield ground


@contextlib.contextmanager
def standing(**wishes):
    ground = Ground(**wishes)
    try:
        yield ground
    finally:
        ground.close()


def answered_or_refused(ground, session, *, within: float = 40) -> int:
    """One request: 200 with the right answer or a clear refusal, in bounded time."""
    before = time.monotonic()
    status = ground.status(session, timeout=within)
    assert status in (0, 200, 503, 507), status  # TorchServe says 507 where a worker found no memory
    assert time.monotonic() - before < within + 5
    return status


def nothing_leaked(ground) -> None:
    assert ground.search() == []


# -- disks ---------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_while_the_server_serves_ends_nothing_and_keeps_nothing_from_coming_back(ground):
    with small_disk(ground.stage.host, "8m"), ground.watched():
        ground.serve()
        session = ground.session()
        ground.until_answered(session)
        junk = fill_up(ground.stage.host)
        for _ in range(20):
            assert ground.status(session) == 200
        for victim in ("worker", "keeper", "java"):
            ground.kill(victim)
            ground.until_answered(session, seconds=HEALS_S)
        assert os.statvfs(ground.stage.host).f_bavail == 0
        junk.unlink()
        ground.until_answered(session)
        nothing_leaked(ground)


def test_a_server_whose_disk_is_full_from_the_beginning_starts_and_serves(ground):
    with small_disk(ground.stage.host, "1m"), launched_after(FILL_THIS_FOLDER):
        ground.serve()
        ground.until_answered(ground.session())
        assert os.statvfs(ground.stage.host).f_bavail == 0


def test_a_launch_without_room_in_memory_says_where_room_is_missing_and_leaves_nothing(ground):
    with launched_after(SMALL_MEMORY_DISK, "16k"):
        ground.stage.start_server()
        assert ground.stage.launcher.wait(120) == 1
    assert "/dev/shm" in ground.stage.log()
    assert "No space left on device" in ground.stage.log()
    assert "hint: make room" in ground.stage.log()
    assert "Traceback" not in ground.stage.log()


def test_memory_disks_that_fill_up_while_the_server_serves_end_in_answers_or_clear_refusals(ground):
    with launched_after(SMALL_MEMORY_DISK, "64m"), ground.watched():
        ground.serve()
        session = ground.session()
        ground.until_answered(session)
        memory = Path(f"/proc/{ground.stage.launcher.pid}", "root", "dev", "shm")
        junk = fill_up(memory)
        for _ in range(10):
            assert answered_or_refused(ground, session) == 200
        for victim in ("worker", "java"):
            ground.kill(victim)
            for _ in range(5):
                answered_or_refused(ground, session)
                time.sleep(1)
        junk.unlink()
        ground.until_answered(session, seconds=HEALS_S)
        ground.hunt.files([memory])
        nothing_leaked(ground)


# -- the wall clock ---------------------------------------------------------------------------------


def test_a_wall_clock_that_steps_under_the_whole_server_ends_no_lease_and_heals_when_it_is_set_right():
    with standing(lease_s=3) as ground:
        clock, place = WallClock(ground.stage.owner), ground.stage.owner / "etc"
        with launched_after(PRELOADED, place, clock.shim), ground.watched():
            ground.serve(grace_s=5)
            old = ground.session()
            ground.until_answered(old)
            for step in (DAY, -DAY, 30 * DAY, 200, -200):
                clock.set(step)
                seen = {answered_or_refused(ground, each) for each in (old, ground.session()) for _ in range(3)}
                if abs(step) < 300:
                    assert seen == {200}, f"{step}: within what clients forgive"
                time.sleep(9)  # longer than lease and grace by any clock
                assert model_state(ground) == "open"
                clock.set(0)
                ground.until_answered(old)
                ground.until_answered(ground.session())
            nothing_leaked(ground)


def model_state(ground) -> str:
    with contextlib.suppress(IndexError, psutil.Error, KeeperUnavailable):
        words = ground.tree("keeper")[0].cmdline()
        root = Path(f"/proc/{ground.stage.launcher.pid}/root")
        told = keeper_status(root / words[words.index("--socket") + 1].lstrip("/"))
        return str(told[0]["state"])
    return ""


# -- memory, and processes that stop without dying ----------------------------------------------------


@pytest.fixture(scope="module")
def patient():
    """A server that gives up a worker after eight seconds without an answer."""
    with standing() as ground:
        ground.serve("default_response_timeout=8\n")
        yield ground


def test_a_worker_that_the_kernel_kills_for_memory_is_replaced_and_the_others_serve(patient):
    session = patient.session()
    patient.until_answered(session)
    workers = [each.pid for each in patient.tree("worker")]
    used = max(psutil.Process(each).memory_info().rss for each in workers)
    with little_memory(workers, used * len(workers) + (128 << 20)):
        with contextlib.suppress(Exception):
            session.post(patient.url(), json={"fill": 2048}, timeout=60)
        until(lambda: not set(workers) <= {each.pid for each in patient.tree("worker")})
        patient.until_answered(session, seconds=HEALS_S)
    patient.until_answered(session, seconds=HEALS_S)


def test_a_keeper_that_hangs_is_a_clear_503_and_then_another_keeper(patient):
    session = patient.session()
    patient.until_answered(session)
    [keeper] = patient.tree("keeper")
    os.kill(keeper.pid, signal.SIGSTOP)
    assert answered_or_refused(patient, session, within=60) != 200
    until(lambda: [each for each in patient.tree("keeper") if each.pid != keeper.pid], 120)
    patient.until_answered(session, seconds=HEALS_S)
    assert "the keeper has not answered" in patient.stage.log()


def test_a_worker_that_hangs_is_given_up_by_the_server_and_the_others_serve(patient):
    session = patient.session()
    patient.until_answered(session)
    worker = patient.tree("worker")[0]
    os.kill(worker.pid, signal.SIGSTOP)
    for _ in range(4):
        answered_or_refused(patient, session)
    patient.until_answered(session, seconds=HEALS_S)
    until(lambda: not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE, 120)


def test_a_java_that_hangs_for_a_while_goes_on_where_it_was(patient):
    session = patient.session()
    patient.until_answered(session)
    [java] = patient.tree("java")
    os.kill(java.pid, signal.SIGSTOP)
    assert answered_or_refused(patient, session, within=10) == 0
    os.kill(java.pid, signal.SIGCONT)
    patient.until_answered(session, seconds=HEALS_S)
    nothing_leaked(patient)
