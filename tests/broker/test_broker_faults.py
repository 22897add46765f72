"""A broker that is killed, that has no disk left, whose clock steps: nothing acknowledged is lost, nothing leaks."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import requests
from broker.broker_in_a_room import APPRAISAL, MEASUREMENT, Clock, broker_room
from broker.test_leases_and_limits import named
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker import directory, rego, tiles
from strongroom.broker.audit import NoteKey
from strongroom.broker.client import BrokerAdmin, register_model_key
from strongroom.broker.directory import open_broker
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.broker.engine import Engine
from strongroom.broker.protocol import Resource
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.serve import set_policies
from strongroom.encoding import b64url
from strongroom.errors import BrokerUnreachable, ReleaseDenied, ReleaseError, ResourceMissing, StrongroomError
from strongroom.keeper.leases import Tenure
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest, ModelKey


class BrokerProcess:
    """``strongroom broker serve`` as a process that can be killed and started again on the same port."""

    def __init__(self, folder, listen="127.0.0.1:0", *, log=None, before=None):
        self.folder, self.listen, self.process = folder, listen, None
        self.log, self.before = log or folder.parent / "broker.log", before

    def start(self):
        words = [sys.executable, "-m", "strongroom.cli", "broker", "serve", str(self.folder), "--listen", self.listen]
        words += ["--json", "--pace", "0"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=self.before
            )
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-2000:]
        self.url = json.loads(line)["url"]
        self.listen = self.url.removeprefix("http://")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


class Acknowledged:
    """What the broker said yes to, from many threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.keys, self.released, self.revoked = {}, [], []


def busy(broker, seen, stop, number):
    """Register keys, fetch them, revoke some, as fast as the broker goes; failures are the test's purpose."""
    client = ReleaseClient(
        broker.url, attester=SimulatedAttester(measurement=MEASUREMENT), attempts=1, timeout=5, pause_s=0.01
    )
    admin_key = broker.folder / "admin.key"
    count = time.monotonic_ns()  # a name of its own in every round: what is overwritten proves nothing
    while not stop.is_set():
        count += 1
        archive = ArchiveDigest(bytes([number]) + count.to_bytes(31, "big"))
        name, key = model_key_name("acme", f"lineage{number}", 1, archive), ModelKey.generate()
        try:
            register_model_key(broker.url, admin_key, tuple(name), archive, key, version=1)
            with seen.lock:
                seen.keys[str(name)] = key.reveal()
            released = client.fetch(tuple(name), archive)
            assert released.key.reveal() == key.reveal()
            with seen.lock:
                seen.released.append(released.lease)
            if count % 2 == 0:
                BrokerAdmin(broker.url, admin_key).revoke("archive", str(archive))
                with seen.lock:
                    seen.revoked.append(str(archive))
        except StrongroomError:
            time.sleep(0.05)


def check_nothing_lost(folder, seen, exports=None):
    """Open the killed broker's store and hold everything that was acknowledged against it."""
    broker = open_broker(folder)
    try:
        for name, key in seen.keys.items():
            stored = broker.store.resource(Resource.parse(name))
            assert stored is not None, f"{name} was acknowledged and is gone"
            assert json.loads(stored)["key"] == b64url(key)
        for archive in seen.revoked:
            assert broker.store.revoked("archive", archive)
        entries = [json.loads(each) for each in broker.audit.entries()]
        logged = {each.get("lease") for each in entries if each["event"] == "release" and each["decision"] == "granted"}
        assert set(seen.released) <= logged, "a key left without an audit entry"
        key = NoteKey.parse(broker.audit.key.serialise())
        exported = (exports or folder.parent) / f"log-{time.monotonic_ns()}"
        tiles.write(exported, broker.audit.entries(), broker.audit.checkpoint())
        tiles.read(exported, key)
        assert broker.store.rows("PRAGMA integrity_check") == [("ok",)]
    finally:
        broker.store.close()


def kill_loop(tmp_path, seconds, seed):
    folder = tmp_path / "broker"
    directory.init(folder)
    (tmp_path / "appraisal.toml").write_text(APPRAISAL)
    opened = open_broker(folder)
    set_policies(opened, tmp_path / "appraisal.toml", "development")
    opened.store.close()
    chance, seen, rounds = random.Random(seed), Acknowledged(), 0
    broker = BrokerProcess(folder)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        broker.start()
        stop = threading.Event()
        threads = [threading.Thread(target=busy, args=(broker, seen, stop, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        before, patience = len(seen.released) + len(seen.revoked), time.monotonic() + 20
        while len(seen.released) + len(seen.revoked) < before + 4 and time.monotonic() < patience:
            time.sleep(0.02)  # on a busy machine too, every round acknowledges something before it ends
        time.sleep(chance.uniform(0.0, 1.0))
        broker.kill()
        stop.set()
        for thread in threads:
            thread.join()
        check_nothing_lost(folder, seen)
        rounds += 1
    assert rounds and seen.keys and seen.released and seen.revoked
    print(f"{rounds} kills, {len(seen.keys)} keys, {len(seen.released)} releases acknowledged, none lost")


def test_a_broker_killed_under_load_loses_nothing_acknowledged(tmp_path):
    kill_loop(tmp_path, seconds=8, seed=1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_broker_killed_for_five_minutes_loses_nothing_acknowledged(tmp_path):
    kill_loop(tmp_path, seconds=300, seed=2)


# -- a full disk -----------------------------------------------------------------------


@contextmanager
def small_disk(folder, size="4m"):
    """A file system of its own, of that size; None where the kernel does not let us mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def fill(folder, leave):
    """Take all of a file system but some bytes of it."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(max(0, free - leave)))


def limited(size):
    """Before a broker starts: no file of it may grow beyond that many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def prepared(folder):
    """A broker with policies and a key, not running; (name, archive, key)."""
    directory.init(folder)
    (folder.parent / "appraisal.toml").write_text(APPRAISAL)
    broker = open_broker(folder)
    set_policies(broker, folder.parent / "appraisal.toml", "development")
    archive, key = ArchiveDigest(b"\1" * 32), ModelKey(b"\2" * 32)
    name = model_key_name("acme", "digits", 1, archive)
    broker.store.put_resource(name, ModelKeyDocument(archive, key, version=1, lease_s=60).serialise(), at=0)
    broker.close()
    return name, archive, key


def keeper_of(broker):
    return ReleaseClient(broker.url, attester=SimulatedAttester(measurement=MEASUREMENT), attempts=1, timeout=20)


def until_refused(client, name, archive, tries=400):
    """Fetch until the broker cannot write any more; what it then says."""
    for _ in range(tries):
        try:
            client.fetch(tuple(name), archive)
        except StrongroomError as error:
            return error
    raise AssertionError("the disk never filled")


def test_a_full_disk_refuses_releases_says_why_keeps_running_and_heals(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        if disk is None:  # nothing may be mounted here: then a limit on file sizes has to stand in
            test_a_file_that_may_not_grow_refuses_releases_and_keeps_running(tmp_path)
            return
        name, archive, key = prepared(disk / "broker")
        broker = BrokerProcess(disk / "broker", log=tmp_path / "broker.log")
        broker.start()
        try:
            client = keeper_of(broker)
            assert client.fetch(tuple(name), archive).key.reveal() == key.reveal()
            fill(disk, leave=150_000)
            refused = until_refused(client, name, archive)
            # No decision was made, so a keeper under a lease goes on: this is an outage and not a refusal.
            assert isinstance(refused, BrokerUnreachable) and "cannot decide" in str(refused)
            for _ in range(5):
                health = requests.get(f"{broker.url}/healthz", timeout=10)
                assert health.status_code == 503 and "cannot be recorded" in health.text
                with pytest.raises(BrokerUnreachable):
                    client.fetch(tuple(name), archive)
            with pytest.raises(ReleaseError):
                BrokerAdmin(broker.url, disk / "broker" / "admin.key").revoke("archive", "00" * 32)
            assert broker.process.poll() is None
            assert "full" in (tmp_path / "broker.log").read_text()
            assert requests.get(f"{broker.url}/metrics", timeout=10).status_code == 200
            (disk / "filler").unlink()
            assert requests.get(f"{broker.url}/healthz", timeout=10).status_code == 200
            assert client.fetch(tuple(name), archive).key.reveal() == key.reveal()
        finally:
            broker.kill()
        seen = Acknowledged()
        seen.keys[str(name)] = key.reveal()
        check_nothing_lost(disk / "broker", seen, exports=tmp_path)


def test_a_file_that_may_not_grow_refuses_releases_and_keeps_running(tmp_path):
    name, archive, key = prepared(tmp_path / "broker")
    size = (tmp_path / "broker" / "store.db").stat().st_size
    broker = BrokerProcess(tmp_path / "broker", before=limited(size + 300_000))
    broker.start()
    try:
        client = keeper_of(broker)
        assert client.fetch(tuple(name), archive).key.reveal() == key.reveal()
        assert isinstance(until_refused(client, name, archive), BrokerUnreachable)
        health = requests.get(f"{broker.url}/healthz", timeout=10)
        assert health.status_code == 503 and health.text
        assert broker.process.poll() is None
    finally:
        broker.kill()
    broker = BrokerProcess(tmp_path / "broker")
    broker.start()
    try:
        assert keeper_of(broker).fetch(tuple(name), archive).key.reveal() == key.reveal()
    finally:
        broker.kill()
    check_nothing_lost(tmp_path / "broker", Acknowledged())


def test_a_full_disk_lets_a_keeper_hold_its_model_until_lease_and_grace_are_over(tmp_path):
    """What the keeper makes of it: the difference between a refusal and an outage."""
    with broker_room(tmp_path) as room:
        name, archive, _ = room.register(1, lease_s=1)
        client, events = room.client(attempts=1), []
        tenure = Tenure(
            client.fetch(tuple(name), archive), lambda: client.fetch(tuple(name), archive),
            drop=events.append, restore=events.append, grace_s=3600,
        )  # fmt: skip
        pages = room.broker.store.rows("PRAGMA page_count")[0][0]
        room.broker.store.rows(f"PRAGMA max_page_count={pages}")
        with pytest.raises(ReleaseError):
            for _ in range(200):
                client.fetch(tuple(name), archive)
        time.sleep(1.1)
        tenure.step()
        assert tenure.held and not events
        room.broker.store.rows("PRAGMA max_page_count=1000000")
        room.admin().revoke("archive", str(archive))
        tenure._next = 0.0
        tenure.step()
        assert not tenure.held and isinstance(events[0], ReleaseDenied)


def test_a_log_that_cannot_be_written_keeps_the_key(tmp_path):
    with broker_room(tmp_path) as room:
        name, archive, _ = room.register(1)
        second = sqlite3.connect(room.folder / "store.db", isolation_level=None)
        second.execute("CREATE TRIGGER no_entries BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END")
        with pytest.raises(StrongroomError):
            room.client().fetch(tuple(name), archive)
        second.execute("DROP TRIGGER no_entries")
        second.close()
        room.client().fetch(tuple(name), archive)


def test_an_interpreter_that_dies_or_hangs_is_an_outage_and_no_refusal(tmp_path, monkeypatch):
    """So that an overloaded machine does not end the models of keepers that would have been renewed."""
    engine = Engine(seconds=2.0)
    monkeypatch.setattr(rego, "ENGINE", engine)
    with broker_room(tmp_path) as room:
        name, archive, key = room.register(1)
        room.client().fetch(tuple(name), archive)
        good = room.broker.policies.release
        for text in (
            "allow if { some key; data[key] }",  # ends the interpreter
            'allow if { replace("a", "", "b") == "" }',  # never ends
        ):
            room.broker.policies.release = ReleasePolicy(f"package policy\n\nimport rego.v1\n\n{text}\n")
            with pytest.raises(BrokerUnreachable, match="cannot decide"):
                room.client(attempts=1).fetch(tuple(name), archive)
            last = json.loads(room.broker.audit.entries()[-1])
            assert last["decision"] == "refused" and "interpreter" in last["reason"]
            room.broker.policies.release = good
            assert room.client().fetch(tuple(name), archive).key.reveal() == key.reveal()
    engine.close()


# -- clocks ------------------------------------------------------------------------------


def test_a_broker_clock_that_steps_back_frees_no_lease_and_lengthens_none_for_keepers(tmp_path):
    clock = Clock(time.time())
    with broker_room(tmp_path, clock=lambda: clock.wall, steady=lambda: clock.steady) as room:
        name, archive, _ = room.register(1, lease_s=600)
        room.admin().set_limit("acme/digits", keepers=1)
        first = room.client(statement=named(1)).fetch(tuple(name), archive)
        clock.wall -= 20  # within what an administrator's token forgives
        with pytest.raises(ReleaseDenied):
            room.client(statement=named(2)).fetch(tuple(name), archive)
        assert first.lease_s == 600  # the keeper counts on its own CLOCK_BOOTTIME


def test_a_lease_whose_time_is_over_by_the_brokers_clock_no_longer_counts(tmp_path):
    clock = Clock(time.time())
    with broker_room(tmp_path, clock=lambda: clock.wall, steady=lambda: clock.steady) as room:
        name, archive, _ = room.register(1, lease_s=600)
        room.admin().set_limit("acme/digits", keepers=1)
        room.client(statement=named(1)).fetch(tuple(name), archive)
        clock.pass_(601)
        room.client(statement=named(2)).fetch(tuple(name), archive)


def test_a_broker_that_restarts_asks_everybody_to_attest_again(tmp_path):
    from strongroom.broker.serve import running

    with broker_room(tmp_path) as room:
        name, archive, _ = room.register(1)
        folder = room.folder
    with running(folder) as (url, _):
        client = ReleaseClient(url, attester=SimulatedAttester(measurement=MEASUREMENT), pause_s=0.01)
        client.fetch(tuple(name), archive)
        with pytest.raises(ResourceMissing):
            client.fetch(("acme", "digits", f"2-{archive}"), archive)
