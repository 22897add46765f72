"""A model under a lease: renewed, withdrawn, given back, and never prolonged by a slow broker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from doubles.models import Author, sealed_toy
from strongroom.archive.unseal import SealedArchive
from strongroom.channel.bundle import ServedModel
from strongroom.errors import BrokerUnreachable, ModelUnavailable, ReleaseDenied
from strongroom.keeper import models
from strongroom.keeper.asking import Asking
from strongroom.keeper.keyring import Allowance, HostKeys, RequestKeys
from strongroom.keeper.leases import boottime
from strongroom.keeper.models import HeldModel
from strongroom.keeper.peers import Peer, _stat
from strongroom.keeper.release import Released
from strongroom.launch.config import Channel

HERE = Peer(os.getpid(), os.geteuid(), 0)


class Desk:
    """A broker in memory: what it answers is set by the test."""

    def __init__(self, sealed, lease_s=2):
        self.sealed, self.lease_s, self.refusal, self.asked = sealed, lease_s, None, 0
        self.hangs = threading.Event()

    def __call__(self):
        self.asked += 1
        if self.hangs.is_set():
            time.sleep(30)
        if self.refusal is not None:
            raise self.refusal
        return Released(
            self.sealed.digest, self.sealed.key, boottime(), lease_s=self.lease_s, broker_time=int(time.time())
        )


@pytest.fixture
def opened(tmp_path):
    made = []

    def make(*, lease_s=2, grace=1, **sealing):
        author = Author.make(tmp_path)
        sealed = sealed_toy(tmp_path, author, weights=b"weights" * 1000, **sealing)
        desk = Desk(sealed, lease_s)
        verified = SealedArchive.open(sealed.path).verified((author.key.public,), now=datetime.now(UTC))
        source = HostKeys(Channel(("x25519",), "host", 86400, 7200, 300))
        keys = RequestKeys(ServedModel("toy", "1.0", sealed.digest), None, None, source, Allowance(1, 1))
        model = HeldModel("toy", verified, keys, desk, grace=grace)
        made.append(model)
        model.start()
        model.wait(10)
        return model, desk

    yield make
    for model in made:
        model.close()


def until(condition, seconds=8.0):
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if condition():
            return time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError(f"it did not happen in {seconds} s")


def is_open(model):
    try:
        model.check_open()
    except ModelUnavailable:
        return False
    return True


def test_a_renewed_lease_keeps_the_model_open(opened):
    model, desk = opened()
    until(lambda: desk.asked >= 3)
    assert is_open(model)
    assert model.status()["lease"] == 2


def test_a_refused_renewal_withdraws_the_model_at_once_and_a_grant_brings_it_back(opened):
    model, desk = opened(grace=300)
    desk.refusal = ReleaseDenied("revoked")
    assert until(lambda: not is_open(model)) < 2.5
    assert model.status()["state"] == "withdrawn"
    with pytest.raises(ModelUnavailable, match="ReleaseDenied"):
        model.check_held()
    with pytest.raises(ModelUnavailable), model.lent(HERE):
        pass
    desk.refusal = None
    until(lambda: is_open(model))
    model.check_held()


def test_an_outage_shorter_than_lease_and_grace_changes_nothing(opened):
    model, desk = opened(grace=3)
    desk.refusal = BrokerUnreachable("gone")
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert is_open(model)
        time.sleep(0.05)
    desk.refusal = None
    asked = desk.asked
    until(lambda: desk.asked > asked + 1)
    assert is_open(model)


def test_a_longer_outage_ends_it_after_lease_and_grace(opened):
    model, desk = opened(lease_s=1, grace=1)
    desk.refusal = BrokerUnreachable("gone")
    assert 0.5 < until(lambda: not is_open(model)) < 3
    assert model.status()["state"] == "withdrawn"


def test_a_broker_that_answers_too_slowly_prolongs_nothing(opened):
    model, desk = opened(lease_s=1, grace=1)
    desk.hangs.set()
    assert until(lambda: not is_open(model)) < 3


def test_a_question_that_was_given_up_is_not_asked_again_before_it_ended():
    asked = []

    def hang():
        asked.append(1)
        time.sleep(1)

    asking = Asking(hang, seconds=0.1)
    for _ in range(3):
        with pytest.raises(BrokerUnreachable):
            asking()
    assert len(asked) == 1


def test_what_is_no_answer_of_a_broker_counts_as_none():
    def broken():
        raise ZeroDivisionError("secret")

    with pytest.raises(BrokerUnreachable, match="ZeroDivisionError") as refusal:
        Asking(broken)()
    assert "secret" not in str(refusal.value)


def test_without_a_lease_nothing_is_renewed(opened):
    model, desk = opened(lease_s=None)
    time.sleep(0.5)
    assert is_open(model)
    assert desk.asked == 1


def test_an_archive_that_demands_a_lease_is_not_opened_without_one(opened):
    model, _ = opened(lease_s=None, lease_required=True)
    assert not is_open(model)
    assert "only under a lease" in model.status()["reason"]


def test_an_archive_that_demands_a_lease_is_opened_under_one(opened):
    model, _ = opened(lease_s=2, lease_required=True)
    assert is_open(model)


def test_files_lent_to_a_worker_stay_the_same_files_when_the_model_is_withdrawn_meanwhile(opened):
    model, _ = opened()
    with model.lent(HERE) as files:
        model._withdraw(ReleaseDenied("revoked"))
        others = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]  # would get the numbers that became free
        weights = next(each for each in files if each.name == "toy.pt")
        assert os.pread(weights.descriptor, 7, 0) == b"weights"
        for each in others:
            os.close(each)


def test_a_worker_that_keeps_a_withdrawn_model_is_killed(opened, monkeypatch):
    monkeypatch.setattr(models, "FAREWELL_S", 0.5)
    model, _ = opened(lease_s=300)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        peer = Peer(worker.pid, os.geteuid(), _stat(worker.pid)[1])
        another_life = Peer(bystander.pid, os.geteuid(), _stat(bystander.pid)[1] - 1)
        for each in (peer, another_life):
            with model.lent(each):
                pass
        model._withdraw(ReleaseDenied("revoked"))
        assert worker.wait(5) == -9
        assert bystander.poll() is None
    finally:
        worker.kill()
        bystander.kill()
        worker.wait()
        bystander.wait()
