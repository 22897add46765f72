"""Faults around a whole server, first before its model is open and then while it serves, on one server in turn.

Its log files lie on a disk that is full from the beginning (/dev/full), and everything it writes, says and sends
is watched for canaries. The same faults around the keeper alone, and while a model opens: tests/faults/.
What needs minutes or a privilege: test_faults_host.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import requests
from doubles.crowds import half_open_clients
from doubles.ground import Ground
from doubles.keepers import flip_every_block, until
from strongroom.adapters.torchserve.launcher import keeper_status
from strongroom.errors import KeeperUnavailable

pytestmark = [
    pytest.mark.journey,
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: the hunt needs root to look everywhere"),
]

LOGS = ("ts_log.log", "model_log.log", "access_log.log", "ts_metrics.log", "model_metrics.log")
IDLE_S = 6


@pytest.fixture(scope="module")
def ground():
    ground = Ground("digits", "spare")
    try:
        logs = ground.stage.host / "logs"
        logs.mkdir()
        for name in LOGS:
            (logs / name).symlink_to("/dev/full")
        with ground.watched():
            freeze(ground)
            ground.serve("default_workers_per_model=1\n", settings=f"\n[keeper]\nidle_s = {IDLE_S}\n", workers=1)
            yield ground
    finally:
        ground.close()


def freeze(ground):
    """The broker accepts connections, as the kernel does for it, and never answers."""
    os.killpg(ground.stage.processes[0].pid, signal.SIGSTOP)


def thaw(ground):
    os.killpg(ground.stage.processes[0].pid, signal.SIGCONT)


def state(ground, name="digits"):
    """What the keeper says of a model; empty while there is none that answers."""
    with contextlib.suppress(IndexError, psutil.Error, KeeperUnavailable):
        words = ground.tree("keeper")[0].cmdline()
        told = keeper_status(Path(words[words.index("--socket") + 1]))
        return next(each["state"] for each in told if each["name"] == name)
    return ""


def refused_in_time(ground, session):
    before = time.monotonic()
    status = ground.status(session)
    assert status in (0, 503), status
    assert time.monotonic() - before < 15


# -- before the model is open -----------------------------------------------------------------------


def test_while_the_broker_is_silent_requests_get_a_clear_503(ground):
    session = ground.session()
    for _ in range(3):
        refused_in_time(ground, session)


def test_clients_that_send_half_a_request_delay_no_refusal(ground):
    with half_open_clients(ground.stage.inference, 5):
        refused_in_time(ground, ground.session())


def test_a_worker_and_a_keeper_that_die_before_the_model_is_open_come_back_to_a_clear_503(ground):
    for victim in ("worker", "keeper"):
        dead = ground.kill(victim)
        until(lambda victim=victim, dead=dead: [each for each in ground.tree(victim) if each.pid != dead])
    until(lambda: ground.status(ground.session()) == 503)


def test_when_the_broker_answers_at_last_so_does_the_server(ground):
    thaw(ground)
    ground.until_answered(ground.session())


# -- while it serves ----------------------------------------------------------------------------------


def test_clients_that_send_half_a_request_delay_no_answer_and_leave_no_descriptor(ground):
    session = ground.session()
    ground.until_answered(session)
    java = ground.tree("java")[0]
    before = java.num_fds()
    with half_open_clients(ground.stage.inference, 20):
        for _ in range(20):
            began = time.monotonic()
            assert ground.status(session) == 200
            assert time.monotonic() - began < 10
    until(lambda: java.num_fds() <= before + 8)


def test_a_handler_that_gets_no_memory_is_an_encrypted_507_and_its_worker_serves_on(ground):
    session = ground.session()
    ground.until_answered(session)
    [worker] = [each for each in ground.tree("worker") if serves(each, "digits", ground)]
    _, hard = resource.prlimit(worker.pid, resource.RLIMIT_AS)
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (worker.memory_info().vms + (256 << 20), hard))
    try:
        answer = session.post(ground.url(), json={"take": 4096}, timeout=60)
        assert answer.status_code == 507
        assert ground.status(session) == 200
    finally:
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (hard, hard))
    assert worker.is_running()


def serves(worker, name, ground):
    """Whether a worker process belongs to that model: TorchServe knows its number."""
    return worker.pid in [each["pid"] for each in ground.stage.workers(name)]


def test_a_damaged_archive_changes_nothing_until_the_keeper_dies_and_then_is_a_clear_503_until_it_is_mended(ground):
    session, path = ground.session(), ground.archive()
    kept = path.with_suffix(".kept")
    shutil.copyfile(path, kept)
    flip_every_block(path, keep_front=True)
    assert ground.status(session) == 200
    dead = ground.kill("keeper")
    until(lambda: [each for each in ground.tree("keeper") if each.pid != dead])
    until(lambda: ground.status(session) == 503)
    until(lambda: "ArchiveTampered" in ground.stage.log())
    for _ in range(3):
        refused_in_time(ground, session)
    kept.replace(path)
    ground.until_answered(session)


def test_a_model_that_is_scaled_to_no_workers_gives_its_memory_back_and_serves_again_when_it_is_scaled_up(ground):
    management = f"http://127.0.0.1:{ground.stage.management}/models/spare"
    session = ground.session()
    ground.until_answered(session, "spare")
    requests.put(f"{management}?min_worker=0&max_worker=0&synchronous=true", timeout=60)
    until(lambda: state(ground, "spare") == "idle", 90)
    assert state(ground) == "open"
    requests.put(f"{management}?min_worker=1&max_worker=1&synchronous=true", timeout=60)
    ground.until_answered(session, "spare")
    assert state(ground, "spare") == "open"


def test_after_all_of_these_there_is_no_canary_anywhere_and_no_descriptor_too_many(ground):
    ground.talk()
    assert ground.search() == []
    assert ground.hunt.searched["bytes of loopback traffic"] > 10_000
    for kind, most in (("keeper", 60), ("launcher", 40)):
        for process in ground.tree(kind):
            assert process.num_fds() < most
