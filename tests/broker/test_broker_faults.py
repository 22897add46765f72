"""A broker that is killed, that has no disk left, whose clock steps: nothing acknowledged is lost, nothing leaks."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import requests
from broker.broker_in_a_room import APPRAISAL, MEASUREMENT, Clock, broker_room
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker import directory, tiles
from strongroom.broker.audit import NoteKey
from strongroom.broker.client import BrokerAdmin, register_model_key
from strongroom.broker.directory import open_broker
from strongroom.broker.document import model_key_name
from strongroom.broker.protocol import Resource
from strongroom.encoding import b64url
from strongroom.errors import ReleaseDenied, ReleaseError, ResourceMissing, StrongroomError
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest, ModelKey


class BrokerProcess:
    """``strongroom broker serve`` as a process that can be killed and started again on the same port."""

    def __init__(self, folder, listen="127.0.0.1:0"):
        self.folder, self.listen, self.process = folder, listen, None

    def start(self):
        words = [sys.executable, "-m", "strongroom.cli", "broker", "serve", str(self.folder), "--listen", self.listen]
        with (self.folder.parent / "broker.log").open("a") as log:
            self.process = subprocess.Popen([*words, "--json"], stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        assert line, (self.folder.parent / "broker.log").read_text()[-2000:]
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


def check_nothing_lost(folder, seen):
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
        exported = folder.parent / f"log-{time.monotonic_ns()}"
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
    from strongroom.broker.serve import set_policies

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


def test_a_full_disk_refuses_releases_says_why_and_heals(tmp_path):
    with broker_room(tmp_path) as room:
        name, archive, _ = room.register(1)
        client = room.client()
        client.fetch(tuple(name), archive)
        pages = room.broker.store.rows("PRAGMA page_count")[0][0]
        # SQLite's own limit stands in for the disk's: the same error, at the same place.
        room.broker.store.rows(f"PRAGMA max_page_count={pages}")
        with pytest.raises(ReleaseError):
            for _ in range(200):
                client.fetch(tuple(name), archive)
        health = requests.get(f"{room.url}/healthz", timeout=10)
        assert health.status_code == 503 and "full" in health.text
        room.broker.store.rows("PRAGMA max_page_count=1000000")
        assert requests.get(f"{room.url}/healthz", timeout=10).status_code == 200
        client.fetch(tuple(name), archive)


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


# -- clocks ------------------------------------------------------------------------------


def test_a_broker_clock_that_steps_back_frees_no_lease_and_lengthens_none_for_keepers(tmp_path):
    clock = Clock(time.time())
    with broker_room(tmp_path, clock=lambda: clock.wall, steady=lambda: clock.steady) as room:
        name, archive, _ = room.register(1, lease_s=600)
        room.admin().set_limit("acme/digits", keepers=1)
        from broker.test_leases_and_limits import named

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
        from broker.test_leases_and_limits import named

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
