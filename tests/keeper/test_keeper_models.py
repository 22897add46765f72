"""A model under a lease: renewed, withdrawn, given back, and never prolonged by a slow broker."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from doubles.models import Author, sealed_toy
from strongroom.archive.unseal import SealedArchive
from strongroom.channel.bundle import ServedModel
from strongroom.errors import BrokerUnreachable, ModelOpening, ModelUnavailable, ReleaseDenied, StrongroomError
from strongroom.keeper import holders, models
from strongroom.keeper.asking import Asking
from strongroom.keeper.keyring import Allowance, HostKeys, RequestKeys
from strongroom.keeper.leases import boottime
from strongroom.keeper.models import HeldModel
from strongroom.keeper.peers import Peer, _stat
from strongroom.keeper.release import Released
from strongroom.keeper.room import OpenRoom
from strongroom.keys import ModelKey
from strongroom.launch.config import Channel

HERE = Peer(os.getpid(), os.geteuid(), 0)


class Desk:
    """A broker in memory: what it answers is set by the test."""

    def __init__(self, sealed, lease_s=2):
        self.sealed, self.lease_s, self.refusal, self.asked = sealed, lease_s, None, 0
        self.ahead = 0
        self.hangs = threading.Event()
        self.opens = threading.Event()
        self.opens.set()

    def __call__(self):
        self.asked += 1
        if self.hangs.is_set():
            time.sleep(30)
        self.opens.wait(20)
        if self.refusal is not None:
            raise self.refusal
        now = int(time.time()) + self.ahead
        return Released(self.sealed.digest, self.sealed.key, boottime(), lease_s=self.lease_s, broker_time=now)


@pytest.fixture
def opened(tmp_path):
    made = []

    def make(*, lease_s=2, grace=1, held=None, waits=False, **sealing):
        author = Author.make(tmp_path)
        sealed = sealed_toy(tmp_path, author, weights=b"weights" * 1000, **sealing)
        desk = Desk(sealed, lease_s)
        if waits:
            desk.opens.clear()

        def find():
            return SealedArchive.open(sealed.path).verified((author.key.public,), now=datetime.now(UTC))

        source = HostKeys(Channel(("x25519",), "host", 86400, 7200, 300))
        keys = RequestKeys(ServedModel("toy", "1.0", sealed.digest), None, None, source, Allowance(1, 1))
        model = HeldModel("toy", sealed.digest, find, keys, desk, grace=grace, **(held or {}))
        made.append(model)
        model.start()
        if not waits:
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


def test_a_worker_that_waits_gets_the_model_as_soon_as_it_is_open(opened):
    model, desk = opened(waits=True)
    threading.Timer(0.3, desk.opens.set).start()
    began = time.monotonic()
    with model.lent(HERE, patience=15) as room:
        assert room.files
    assert time.monotonic() - began < 10


def test_a_worker_waits_no_longer_than_it_said(opened):
    model, _ = opened(waits=True)
    with pytest.raises(ModelUnavailable), model.lent(HERE, patience=1):
        pass


def test_a_worker_does_not_wait_for_an_attempt_that_has_failed(opened):
    model, desk = opened(waits=True)
    desk.refusal = ReleaseDenied("no")
    desk.opens.set()
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match="ReleaseDenied"), model.lent(HERE, patience=15):
        pass
    assert time.monotonic() - began < 10


def test_a_model_whose_key_is_there_says_that_it_is_being_opened(opened, monkeypatch):
    opening = threading.Event()
    real = OpenRoom.open.__func__

    def slow(cls, archive, **keywords):
        opening.wait(20)
        return real(cls, archive, **keywords)

    monkeypatch.setattr(OpenRoom, "open", classmethod(slow))
    model, desk = opened(waits=True)
    desk.opens.set()
    until(lambda: model._opening)
    with pytest.raises(ModelOpening), model.lent(HERE, patience=0):
        pass
    opening.set()
    with model.lent(HERE, patience=15) as room:
        assert room.files


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
        model.check_held(HERE)
    with pytest.raises(ModelUnavailable), model.lent(HERE):
        pass
    desk.refusal = None
    until(lambda: is_open(model))
    model.check_held(HERE)


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


def test_a_broker_that_never_answers_does_not_keep_the_memory_of_a_model_that_no_worker_asks_for(opened):
    model, desk = opened(lease_s=1, grace=1)
    desk.hangs.set()
    until(lambda: model.status()["state"] == "withdrawn", 5)
    assert "LeaseExpired" in model.status()["reason"]


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
    with model.lent(HERE) as room:
        model._withdraw(ReleaseDenied("revoked"))
        others = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]  # would get the numbers that became free
        weights = next(each for each in room.files if each.name == "toy.pt")
        assert os.pread(weights.descriptor, 7, 0) == b"weights"
        for each in others:
            os.close(each)


def test_a_worker_that_keeps_a_withdrawn_model_is_killed(opened, monkeypatch):
    monkeypatch.setattr(holders, "FAREWELL_S", 0.5)
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


# -- a keeper that was started again, and workers that have the model from the one before ----------


@pytest.fixture
def soon(monkeypatch):
    """Whoever has to end and does not is killed soon."""
    monkeypatch.setattr(holders, "FAREWELL_S", 0.5)


@pytest.fixture
def later(monkeypatch):
    """Moves the clock by which an answer to an earlier keeper's workers is awaited."""
    ahead = [0.0]
    monkeypatch.setattr(models, "boottime", lambda: boottime() + ahead[0])

    def move(seconds):
        ahead[0] += seconds

    return move


def test_a_worker_of_an_earlier_keeper_that_keeps_a_refused_model_is_killed(opened, process, soon):
    worker, peer = process()
    model, desk = opened(waits=True)
    model.check_held(peer)
    desk.refusal = ReleaseDenied("revoked")
    desk.opens.set()
    assert worker.wait(20) == -9


def test_a_worker_of_an_earlier_keeper_that_asks_after_the_refusal_is_killed_too(opened, process, soon, monkeypatch):
    monkeypatch.setattr(models, "FIRST_PAUSE", 3600)  # no later attempt finds it
    worker, peer = process()
    model, desk = opened(waits=True)
    desk.refusal = ReleaseDenied("revoked")
    desk.opens.set()
    until(lambda: model.status()["state"] == "withdrawn", 20)
    with pytest.raises(ModelUnavailable, match="ReleaseDenied"):
        model.check_held(peer)
    assert worker.wait(20) == -9


def test_a_worker_of_an_earlier_keeper_that_keeps_a_model_whose_lease_here_ended_is_killed(opened, process, soon):
    worker, peer = process()
    model, _ = opened(lease_s=300)
    model.check_held(peer)  # it was lent nothing here
    model._withdraw(ReleaseDenied("revoked"))
    assert worker.wait(20) == -9


def test_an_outage_shorter_than_the_grace_ends_no_worker_of_an_earlier_keeper(opened, process, quick, later):
    worker, peer = process()
    model, desk = opened(waits=True, grace=300, lease_s=900)
    desk.refusal = BrokerUnreachable("gone")
    desk.opens.set()
    later(300)
    until(lambda: desk.asked > 2, 20)
    model.check_held(peer)
    desk.refusal = None
    until(lambda: is_open(model), 20)
    later(600)  # the lease of this keeper counts from now on
    model.check_held(peer)
    assert worker.poll() is None


@pytest.mark.parametrize("grace", [0, 300])
def test_a_worker_of_an_earlier_keeper_ends_when_no_answer_comes_for_longer(opened, process, quick, later, soon, grace):
    worker, peer = process()
    model, desk = opened(waits=True, grace=grace)
    desk.refusal = BrokerUnreachable("gone")
    desk.opens.set()
    model.check_held(peer)
    later(grace + models.FIRST_ANSWER_S)
    assert worker.wait(20) == -9, "whether it asks again or not"
    assert model.status()["state"] == "waiting"
    with pytest.raises(ModelUnavailable, match="BrokerUnreachable"):
        model.check_held(process()[1])


def test_what_takes_long_to_open_ends_no_worker_of_an_earlier_keeper_while_the_lease_lasts(
    opened, process, later, monkeypatch
):
    _, peer = process()
    opening, real = threading.Event(), OpenRoom.open.__func__

    def slow(cls, archive, **keywords):
        opening.wait(20)
        return real(cls, archive, **keywords)

    monkeypatch.setattr(OpenRoom, "open", classmethod(slow))
    model, desk = opened(waits=True, grace=1, lease_s=900)
    desk.opens.set()
    until(lambda: model._opening and model._unproven_until > boottime() + 600)
    later(600)
    model.check_held(peer)
    later(400)
    with pytest.raises(ModelUnavailable):
        model.check_held(peer)
    opening.set()


def test_an_answer_without_the_archives_key_prolongs_nothing_for_them(opened, process, quick, later, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Desk", Forger)
    _, peer = process()
    model, desk = opened(waits=True, grace=1)
    desk.forging = True
    desk.opens.set()
    until(lambda: desk.forged > 2, 20)
    model.check_held(peer)
    later(1 + models.FIRST_ANSWER_S)
    with pytest.raises(ModelUnavailable):
        model.check_held(peer)


def test_a_worker_that_asks_again_and_again_is_told_to_end_once(opened, process, monkeypatch):
    told = []
    monkeypatch.setattr(holders, "_end", lambda model, peers, patience: told.append(peers))
    _, peer = process()
    model, desk = opened(waits=True)
    desk.refusal = ReleaseDenied("revoked")
    desk.opens.set()
    until(lambda: model.status()["state"] == "withdrawn", 20)
    for _ in range(20):
        with pytest.raises(ModelUnavailable):
            model.check_held(peer)
    until(lambda: told)
    assert told == [{peer}]


class Grave(BaseException):
    """What nobody expects, and nobody handles."""


def fails(*_):
    raise Grave


def test_what_nobody_handles_withdraws_the_model_and_ends_its_workers(opened, process, soon, monkeypatch):
    worker, peer = process()
    model, desk = opened(lease_s=1, grace=300)
    with model.lent(peer):
        pass
    desk.refusal = BrokerUnreachable("gone")  # so that it is not opened again at once
    monkeypatch.setattr(model._holders, "forget_the_dead", fails)
    assert worker.wait(20) == -9
    assert model._room is None
    assert model.status()["state"] == "withdrawn"
    with pytest.raises(ModelUnavailable):
        model.check_held(peer)


@pytest.mark.parametrize("what", ["nothing", "its workers cannot be told", "its room cannot be closed"])
def test_after_what_nobody_handles_the_model_is_opened_again_whatever_else_fails(opened, monkeypatch, what):
    model, desk = opened(lease_s=1, grace=300)
    room = model._room
    desk.refusal = BrokerUnreachable("gone")
    with monkeypatch.context() as patched:
        patched.setattr(model._holders, "forget_the_dead", fails)
        if what == "its workers cannot be told":
            patched.setattr(model._holders, "dismiss", fails)
        if what == "its room cannot be closed":
            patched.setattr(room, "close", fails)
        until(lambda: model._room is None, 20)
        until(lambda: model.status()["state"] == "withdrawn", 20)
    desk.refusal = None
    until(lambda: is_open(model), 20)
    assert model._room is not room
    room.close()


# -- nobody needs it ------------------------------------------------------------------------------


@pytest.fixture
def process():
    made = []

    def make():
        made.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return made[-1], Peer(made[-1].pid, os.geteuid(), _stat(made[-1].pid)[1])

    yield make
    for each in made:
        each.kill()
        each.wait()


def memory_files():
    links = (os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return sum("memfd:strongroom" in link for link in links)


def test_a_model_that_no_process_needs_is_closed_and_its_memory_given_back(opened, later):
    gc.collect()  # what earlier tests of this process left unclosed
    before = memory_files()
    model, desk = opened(lease_s=300, held={"idle": 0.4})
    assert memory_files() > before
    until(lambda: model.status()["state"] == "idle")
    assert memory_files() <= before
    with pytest.raises(ModelUnavailable, match="not open"):
        model.check_open()
    later(10_000)
    model.check_held(HERE)  # no right was taken back
    assert desk.asked == 1


def test_the_next_claim_opens_it_again_with_a_key_released_anew(opened, process):
    model, desk = opened(lease_s=300, held={"idle": 0.4})
    until(lambda: model.status()["state"] == "idle")
    model.claimed(process()[1])
    model.wait(8)
    assert is_open(model)
    assert desk.asked == 2
    assert model.status()["lease"] == 300


def test_a_process_that_only_claimed_keeps_it_open_for_as_long_as_it_lives(opened, process):
    model, _ = opened(lease_s=300, held={"idle": 0.4})
    worker, peer = process()
    model.claimed(peer)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert is_open(model)
        time.sleep(0.05)
    worker.kill()  # and nobody has waited for it yet
    until(lambda: model.status()["state"] == "idle")


def test_a_claim_that_is_refused_by_the_broker_is_told_so_and_not_that_the_model_rests(opened, process):
    model, desk = opened(lease_s=300, held={"idle": 0.4})
    until(lambda: model.status()["state"] == "idle")
    desk.refusal = ReleaseDenied("revoked meanwhile")
    model.claimed(process()[1])
    until(lambda: model.status()["state"] == "withdrawn")
    assert "revoked meanwhile" in model.status()["reason"]


def test_the_broker_is_no_longer_asked_for_a_model_that_nobody_needs(opened):
    model, desk = opened(lease_s=300, held={"idle": 0.4})
    until(lambda: model.status()["state"] == "idle")
    desk.refusal = BrokerUnreachable("gone")
    asked = desk.asked
    time.sleep(1.5)
    assert desk.asked == asked


def test_a_model_that_never_opened_and_that_nobody_needs_rests_too(opened, process):
    model, desk = opened(lease_s=None, lease_required=True, held={"idle": 0.4})
    until(lambda: model.status()["state"] == "idle")
    desk.lease_s = 300
    model.claimed(process()[1])
    until(lambda: is_open(model))


def test_without_a_setting_a_model_is_kept_whoever_needs_it(opened):
    model, _ = opened(lease_s=300)
    time.sleep(1)
    assert is_open(model)


@pytest.fixture
def unneeded(opened, process):
    """A model that nobody needs any longer, and what `then` does happens right after its thread saw that."""

    def make(then, **wishes):
        worker, peer = process()
        model, desk = opened(held={"idle": 0.4}, **wishes)
        model.claimed(peer)
        until(lambda: is_open(model))
        look, interrupted = model._demand.over, threading.Event()

        def over():
            seen = look()
            if seen and not interrupted.is_set():
                then(model, desk)
                interrupted.set()
            return seen

        model._demand.over = over
        worker.kill()
        assert interrupted.wait(20)
        return model, desk

    return make


def test_a_model_that_was_claimed_while_it_was_about_to_rest_is_not_served_after_a_refusal(unneeded, process):
    _, newcomer = process()

    def claimed(model, desk):
        model.claimed(newcomer)
        desk.refusal = ReleaseDenied("revoked")

    model, _ = unneeded(claimed, lease_s=1, grace=300)
    until(lambda: model.status()["state"] == "withdrawn", 20)
    with pytest.raises(ModelUnavailable, match="ReleaseDenied"):
        model.check_open()


def test_a_worker_that_is_lent_a_model_which_was_about_to_rest_keeps_it_under_its_lease(unneeded, process):
    _, newcomer = process()
    rooms = []

    def lent(model, desk):
        rooms.append(model._room)
        with model.lent(newcomer) as room:
            assert room.files

    model, desk = unneeded(lent, lease_s=300)
    asked, again, look = desk.asked, threading.Event(), model._demand.over

    def over():
        again.set()
        return look()

    model._demand.over = over
    assert again.wait(20), "it is not looked again at whether anybody needs the model"
    assert model._room is rooms[0]
    assert model.status()["lease"] == 300
    assert desk.asked == asked


def test_what_fails_while_a_model_is_open_leaves_no_room_open(opened, monkeypatch):
    model, desk = opened(lease_s=1, grace=300)
    room = model._room

    def told(*times):
        raise StrongroomError("its time was of no use")

    monkeypatch.setattr(model.keys.source, "told", told)
    until(lambda: room.files == (), 20)
    until(lambda: desk.asked > 2, 20)  # and it is asked for again


# -- the archive is damaged while it is held -------------------------------------------------------


def withdrawn(model, desk):
    desk.refusal = ReleaseDenied("for a while")
    until(lambda: not is_open(model))


def flip(path):
    with SealedArchive.open(path) as archive:
        at = archive._storage.payload_at + 5
    with path.open("r+b") as file:
        file.seek(at)
        octet = file.read(1)
        file.seek(at)
        file.write(bytes([octet[0] ^ 1]))


DAMAGES = {
    "a flipped byte": flip,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1000),
    "emptied": lambda path: os.truncate(path, 0),
}


@pytest.fixture
def quick(monkeypatch):
    """Attempts follow upon each other at once."""
    monkeypatch.setattr(models, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(models, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(models, "LONGEST_PAUSE_AFTER_NO", 0.02)


@pytest.mark.parametrize("name", DAMAGES)
def test_an_open_model_is_not_touched_by_what_happens_to_its_file(opened, name):
    model, desk = opened(grace=300)
    DAMAGES[name](desk.sealed.path)
    assert is_open(model)
    with model.lent(HERE) as room:
        weights = next(each for each in room.files if each.name == "toy.pt")
        assert os.pread(weights.descriptor, 7, 0) == b"weights"


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "written back") for name in DAMAGES), ("a flipped byte", "replaced"), ("emptied", "renamed over")],
)
def test_a_damaged_file_is_refused_when_it_is_opened_again_and_a_good_one_heals_it(opened, quick, name, how):
    model, desk = opened(lease_s=1, grace=300)
    path = desk.sealed.path
    good = path.read_bytes()
    DAMAGES[name](path)
    withdrawn(model, desk)
    desk.refusal = None
    until(lambda: "Archive" in model.status()["reason"])
    assert not is_open(model)
    if how == "replaced":
        path.unlink()
    if how == "renamed over":
        (path.parent / "fresh").write_bytes(good)
        (path.parent / "fresh").rename(path)
    else:
        path.write_bytes(good)
    until(lambda: is_open(model), 20)


def test_a_file_that_is_gone_is_still_there_for_the_keeper_that_has_it_open(opened, quick):
    model, desk = opened(lease_s=1, grace=300)
    desk.sealed.path.unlink()
    withdrawn(model, desk)
    desk.refusal = None
    until(lambda: is_open(model))


def test_attempts_at_a_damaged_file_leave_no_descriptor_open(opened, quick):
    model, desk = opened(lease_s=1, grace=300)
    flip(desk.sealed.path)
    withdrawn(model, desk)
    desk.refusal = None
    until(lambda: "Archive" in model.status()["reason"])
    before, asked = len(os.listdir("/proc/self/fd")), desk.asked
    until(lambda: desk.asked > asked + 40)
    more = len(os.listdir("/proc/self/fd")) - before
    assert more < 20, "one left at each of 40 attempts would be 40; an attempt under way holds a few"


def test_the_reason_why_a_model_is_not_open_keeps_no_frame_that_had_the_key(opened, quick):
    model, desk = opened(lease_s=1, grace=300)
    flip(desk.sealed.path)
    withdrawn(model, desk)
    desk.refusal = None
    until(lambda: "Archive" in model.status()["reason"])
    reason = model._reason
    assert (reason.__traceback__, reason.__cause__, reason.__context__) == (None, None, None)


class Forger(Desk):
    """Answers in the broker's place once `forging` is set: it sees who asks, and knows no model key."""

    forging = False
    forged = 0

    def __call__(self):
        released = super().__call__()
        if not self.forging:
            return released
        self.forged += 1
        return Released(self.sealed.digest, ModelKey(bytes(32)), boottime(), lease_s=None, broker_time=10**9)


def test_a_renewal_without_the_archives_key_prolongs_nothing_and_tells_no_time(opened, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Desk", Forger)
    model, desk = opened(lease_s=2, grace=1)
    told = []
    monkeypatch.setattr(model.keys.source, "told", lambda *times: told.append(times[0]))
    assert is_open(model)
    desk.forging = True
    until(lambda: not is_open(model))
    assert desk.forged and 10**9 not in told
    desk.forging = False
    until(lambda: is_open(model), 20)


def test_a_renewal_without_a_lease_ends_a_model_that_demands_one(opened):
    model, desk = opened(lease_s=2, grace=60, lease_required=True)
    assert is_open(model)
    desk.lease_s = None
    until(lambda: not is_open(model))
    assert "ReleaseDenied" in model.status()["reason"]


def test_a_model_ends_with_its_archives_expiry_and_is_not_opened_again(opened):
    model, desk = opened(lease_s=3, grace=1, expiry=datetime.now(UTC) + timedelta(seconds=4))
    assert is_open(model)
    until(lambda: not is_open(model), 12)
    until(lambda: "ArchiveExpired" in model.status()["reason"])
    asked = desk.asked
    time.sleep(2)
    assert desk.asked == asked and not is_open(model)


def test_an_archive_that_has_expired_by_the_brokers_clock_is_not_opened_when_the_guests_is_behind(
    opened, quick, monkeypatch
):
    rooms = []
    real = OpenRoom.open.__func__

    def counted(cls, archive, **keywords):
        rooms.append(archive)
        return real(cls, archive, **keywords)

    monkeypatch.setattr(OpenRoom, "open", classmethod(counted))
    model, desk = opened(waits=True, expiry=datetime.now(UTC) + timedelta(days=1))
    desk.ahead = 2 * 86400
    desk.opens.set()
    until(lambda: desk.asked > 2, 20)
    assert "ArchiveExpired" in model.status()["reason"]
    assert not rooms
    desk.ahead = 0
    until(lambda: is_open(model), 20)
