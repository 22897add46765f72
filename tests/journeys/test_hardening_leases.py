"""Taken back while it serves: clear 503s, no worker keeps the model; given back: it answers by itself."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import requests
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from leaks.hunt import canary
from strongroom.adapters.torchserve.launcher import keeper_status
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import COMMAND
from strongroom.errors import StrongroomError

pytestmark = pytest.mark.journey

HANDLER = Path(__file__).parents[1] / "doubles" / "loud_handler.py"
LEASE_S, GRACE_S = 6, 5
CANARY = canary("asked")
ADMIN = ("--admin-key", "broker/admin.key")


@pytest.fixture(scope="module")
def leased():
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        plain = plain_archive(
            stage.owner / "digits.mar",
            {"loud_handler.py": HANDLER.read_bytes()},
            name="digits",
            handler="loud_handler.py",
        )
        stage.seal(plain, "--lease", str(LEASE_S), "--lease-required")
        stage.start_server(grace_s=GRACE_S)
        stage.wait_until_ready()
        yield stage
    finally:
        stage.close()


def administer(stage, verb) -> None:
    command = [*COMMAND, "release", verb, "lineage", "default/digits", "--broker", stage.broker_url, *ADMIN]
    subprocess.run(command, cwd=stage.owner, check=True, capture_output=True)


def status(stage) -> dict:
    folder = next(each for each in stage.host_places() if (each / "keeper.sock").exists() and belongs(each, stage))
    return keeper_status(folder / "keeper.sock")[0]


def belongs(folder, stage) -> bool:
    children = psutil.Process(stage.launcher.pid).children(recursive=True)
    return any(str(folder) in " ".join(child.cmdline()) for child in children)


def holders(stage) -> list[int]:
    """Workers that have a memory file of a model open."""
    found = []
    for each in psutil.Process(stage.launcher.pid).children(recursive=True):
        try:
            if "model_service_worker" in " ".join(each.cmdline()):
                folder = f"/proc/{each.pid}/fd"
                if any("memfd:strongroom" in os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)):
                    found.append(each.pid)
        except (psutil.NoSuchProcess, OSError):
            continue
    return found


def answer(stage, session) -> int:
    """The status of one request, as a client sees it; 0 where there was no answer at all."""
    try:
        asked = session.post(f"{stage.url}/predictions/digits", json={"answer": CANARY}, timeout=30)
        assert asked.status_code != 200 or asked.json() == {"answered": hashlib.sha256(CANARY.encode()).hexdigest()}
        return asked.status_code
    except StrongroomError as error:
        return getattr(error, "status", 503) or 503
    except requests.RequestException:
        return 0


def until(condition, seconds):
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if condition():
            return time.monotonic() - began
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s")


@pytest.fixture
def session(leased):
    session = requests.Session()
    session.mount(leased.url, SealedAdapter(policy=leased.client_policy()))
    return session


def test_a_revocation_ends_serving_within_lease_and_grace_and_a_restoration_begins_it_again(leased, session):
    until(lambda: answer(leased, session) == 200, 60)
    assert len(holders(leased)) == 2
    administer(leased, "revoke")
    took = until(lambda: answer(leased, session) != 200, 60)
    assert took < LEASE_S + GRACE_S
    until(lambda: not holders(leased), 20)
    assert status(leased)["state"] == "withdrawn"
    until(lambda: answer(leased, session) == 503, 60)
    for _ in range(5):
        before = time.monotonic()
        assert answer(leased, session) == 503
        assert time.monotonic() - before < 10
    with pytest.raises(StrongroomError) as refused:
        session.post(f"{leased.url}/predictions/digits", json={}, timeout=30)
    assert "503" in str(refused.value) and "the model is not available at the moment" in refused.value.hint
    assert "model digits is withdrawn: ReleaseDenied" in leased.log()
    administer(leased, "restore")
    until(lambda: answer(leased, session) == 200, 120)


def test_an_outage_of_the_broker_shorter_than_lease_and_grace_changes_nothing(leased, session):
    until(lambda: answer(leased, session) == 200, 120)
    broker = leased.processes[0]
    os.killpg(broker.pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + LEASE_S
        while time.monotonic() < deadline:
            assert answer(leased, session) == 200
            time.sleep(0.3)
    finally:
        os.killpg(broker.pid, signal.SIGCONT)
    deadline = time.monotonic() + LEASE_S + GRACE_S
    while time.monotonic() < deadline:
        assert answer(leased, session) == 200
        time.sleep(0.3)
