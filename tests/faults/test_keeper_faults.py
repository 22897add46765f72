"""Faults around a real keeper process and a real broker: before a model is open, while it opens, while it serves.

Each ends in the right files or in a clear error, and what was wrong heals when its cause is gone. The same
faults around a whole server are in tests/journeys/test_faults_serving.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from doubles.keepers import KeeperProcess, Worker, administer, flip_every_block, until
from doubles.models import plain_archive
from doubles.wall_clock import WallClock
from leaks.hunt import Hunt, canary
from strongroom.adapters.torchserve.launcher import keeper_status
from strongroom.archive.unseal import SealedArchive
from strongroom.channel.bundle import KeyBundle
from strongroom.demo.stage import Stage, run
from strongroom.errors import KeeperUnavailable
from strongroom.keeper import wire
from strongroom.keys import ArchiveDigest
from strongroom.worker.link import Link

MEBIBYTE = 1 << 20
LARGE = 128 * MEBIBYTE
LEASE_S, GRACE_S = 3, 2


class Ground:
    """A broker, and two sealed archives in the host's store: `small` under a lease, `large` without one."""

    def __init__(self) -> None:
        self.stage = Stage.make()
        self.canary = canary("model")
        self.hunt = Hunt({"the model": self.canary}, spared=(self.stage.owner,))
        self.weights = {
            "small": self.canary.encode() * 200,
            "large": (self.canary.encode() + bytes(MEBIBYTE - len(self.canary))) * (LARGE // MEBIBYTE),
        }
        self.digests: dict[str, ArchiveDigest] = {}
        self.keepers: list[KeeperProcess] = []
        self.clock = WallClock(self.stage.owner)

    def build(self) -> None:
        stage = self.stage
        stage.make_author()
        stage.start_broker()
        (stage.host / "model_store").mkdir()
        flags = ["--author", "author.key", "--broker", stage.broker_url, "--admin-key", "broker/admin.key"]
        for name, lease in (("small", ["--lease", str(LEASE_S)]), ("large", [])):
            files = {"toy.py": b"def handle(data, context):\n    return data\n", "weights.bin": self.weights[name]}
            plain = plain_archive(stage.owner / f"{name}.mar", files, name=name)
            output = stage.host / "model_store" / f"{name}.mar"
            run("seal", str(plain), *flags, *lease, "-o", str(output), folder=stage.owner)
            plain.unlink()
            with SealedArchive.open(output) as archive:
                self.digests[name] = archive.core.digest

    def keeper(self, *names: str, settings: str = "") -> KeeperProcess:
        keeper = KeeperProcess(self.stage, {name: f"{name}.mar" for name in names}, settings=settings, grace_s=GRACE_S)
        self.keepers.append(keeper)
        return keeper

    @contextlib.contextmanager
    def frozen_broker(self):
        """It accepts connections, as the kernel does for it, and never answers."""
        os.killpg(self.stage.processes[0].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.stage.processes[0].pid, signal.SIGCONT)

    def right(self, keeper: KeeperProcess, name: str) -> None:
        """A worker gets exactly what the author sealed."""
        worker = Worker(keeper.socket, self.digests[name])
        try:
            assert worker.told.get("weights.bin") == hashlib.sha256(self.weights[name]).hexdigest(), worker.told
        finally:
            worker.close()

    def refused(self, keeper: KeeperProcess, name: str, word: str) -> None:
        """A worker is told why not, by class, and at once."""
        before = time.monotonic()
        worker = Worker(keeper.socket, self.digests[name])
        try:
            assert worker.told.get("error") == "ModelUnavailable", worker.told
            assert word in worker.told["message"]
            assert time.monotonic() - before < 30
        finally:
            worker.close()

    def archive(self, name: str) -> Path:
        return self.stage.host / "model_store" / f"{name}.mar"


@pytest.fixture(scope="module")
def ground():
    ground = Ground()
    try:
        ground.build()
        yield ground
    finally:
        ground.stage.close()


@pytest.fixture(autouse=True)
def no_keeper_stays(ground):
    yield
    for keeper in ground.keepers:
        keeper.stop()
    ground.keepers.clear()
    ground.clock.set(0)


@pytest.fixture
def damaged(ground):
    """The large archive may be damaged; afterwards it is as it was, and where it was."""
    path = ground.archive("large")
    kept = path.with_suffix(".kept")
    shutil.copyfile(path, kept)
    yield path, kept
    kept.replace(path)


# -- the broker ---------------------------------------------------------------------------------


def test_a_broker_that_accepts_and_never_answers_delays_nobodys_refusal_and_is_heard_when_it_does(ground):
    keeper = ground.keeper("small")
    with ground.frozen_broker():
        keeper.start()
        ground.refused(keeper, "small", "not open")
    keeper.until_open("small")
    ground.right(keeper, "small")


def test_a_broker_that_freezes_while_a_model_is_open_ends_it_after_lease_and_grace_and_not_before(ground):
    keeper = ground.keeper("small")
    keeper.start()
    keeper.until_open("small")
    with ground.frozen_broker():
        began = time.monotonic()
        until(lambda: keeper.state("small") == "withdrawn", 40)
        assert time.monotonic() - began > GRACE_S
        assert not keeper.memory_files()
        ground.refused(keeper, "small", "LeaseExpired")
    # The question that was never answered is given up after 60 s at the latest; here the broker answers it.
    keeper.until_open("small")


# -- memory, threads and descriptors ---------------------------------------------------------------


def test_no_memory_before_a_model_opens_is_said_and_tried_again(ground):
    keeper = ground.keeper("small", "large")
    with ground.frozen_broker():
        keeper.start()
        # Stacks and arenas of threads count too, so this is enough for the small one and never for the large one.
        keeper.limit(resource.RLIMIT_AS, keeper.address_space() + 100 * MEBIBYTE)
    keeper.until_open("small")
    status = keeper.until_said("large", "RoomUnavailable")
    assert "Cannot allocate memory" in status["reason"]
    assert "RLIMIT_AS" in status["hint"]
    ground.right(keeper, "small")
    keeper.unlimit(resource.RLIMIT_AS)
    keeper.until_open("large")
    ground.right(keeper, "large")


def test_threads_and_memory_that_run_out_while_a_model_serves_end_nothing(ground):
    keeper = ground.keeper("small")
    keeper.start()
    keeper.until_open("small")
    keeper.limit(resource.RLIMIT_AS, keeper.address_space())  # no stack for another thread
    for _ in range(5):
        with contextlib.suppress(KeeperUnavailable):
            keeper_status(keeper.socket)
    keeper.unlimit(resource.RLIMIT_AS)
    ground.right(keeper, "small")
    keeper.until_open("small")


def test_a_keeper_without_a_free_descriptor_lets_peers_wait_and_goes_on(ground):
    keeper = ground.keeper("small")
    keeper.start()
    keeper.until_open("small")
    keeper.limit(resource.RLIMIT_NOFILE, max(keeper.descriptors()) + 1)
    crowd = []
    for _ in range(10):
        crowd.append(socket.socket(socket.AF_UNIX))
        crowd[-1].connect(str(keeper.socket))
    time.sleep(1)
    assert keeper.process.poll() is None
    for each in crowd:
        each.close()
    keeper.unlimit(resource.RLIMIT_NOFILE)
    ground.right(keeper, "small")


# -- the archive ----------------------------------------------------------------------------------


DAMAGES = {
    "changed": (flip_every_block, "ArchiveTampered"),
    "truncated": (lambda path: os.truncate(path, 1000), "ArchiveTruncated"),
    "replaced": (lambda path: (path.unlink(), path.write_bytes(b"another file")), ""),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_archive_that_is_damaged_while_it_is_opened_opens_whole_or_not_at_all(ground, damaged, name):
    path, kept = damaged
    damage, word = DAMAGES[name]
    keeper = ground.keeper("large")
    with ground.frozen_broker():
        keeper.start()
    assert keeper.pause_while_opening(MEBIBYTE)
    damage(path)
    keeper.go_on()
    if word and keeper.until_said("large", word):
        assert not keeper.memory_files()
        ground.refused(keeper, "large", word)
        shutil.copyfile(kept, path)
    keeper.until_open("large")
    ground.right(keeper, "large")


def test_a_damaged_archive_is_found_when_a_withdrawn_model_is_opened_again(ground):
    path = ground.archive("small")
    good = path.read_bytes()
    keeper = ground.keeper("small")
    keeper.start()
    keeper.until_open("small")
    administer(ground.stage, "revoke", "small")
    try:
        until(lambda: keeper.state("small") == "withdrawn")
        flip_every_block(path)
    finally:
        administer(ground.stage, "restore", "small")
    keeper.until_said("small", "ArchiveTampered", 90)
    ground.refused(keeper, "small", "ArchiveTampered")
    path.unlink()
    path.write_bytes(good)
    keeper.until_open("small", 90)
    ground.right(keeper, "small")


# -- what is killed while a model opens -------------------------------------------------------------


def test_a_broker_that_dies_while_a_model_opens_is_no_longer_needed(ground):
    keeper = ground.keeper("large")
    with ground.frozen_broker():
        keeper.start()
    assert keeper.pause_while_opening(MEBIBYTE)
    broker = ground.stage.processes[0]
    os.killpg(broker.pid, signal.SIGKILL)
    broker.wait()
    keeper.go_on()
    keeper.until_open("large")
    ground.right(keeper, "large")
    del ground.stage.processes[0]
    ground.stage.start_broker()


def test_a_keeper_that_dies_while_it_opens_leaves_nothing_and_the_next_one_opens(ground):
    first = ground.keeper("large")
    first.start()
    assert first.pause_while_opening(MEBIBYTE)
    first.stop()
    second = ground.keeper("large")
    second.start()
    second.until_open("large")
    ground.right(second, "large")


# -- peers ------------------------------------------------------------------------------------------


def crowd_of_peers(keeper, digest):
    """Every way to hold a line open and say nothing useful; five of each."""
    peers = []
    for _ in range(5):
        for kind in ("silent", "half a length", "half a frame", "claimed and silent", "claimed and half", "deaf"):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(10)
            peer.connect(str(keeper.socket))
            if kind.startswith(("claimed", "deaf")):
                wire.send(peer, {"op": "claim", "archive": bytes(digest)})
                assert wire.receive(peer) == {}
            if kind == "half a length":
                peer.sendall(b"\0\0")
            if kind.endswith(("half a frame", "and half")):
                peer.sendall(b"\0\0\x10\0abc")
            if kind == "deaf":
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(3000):
                        wire_question = b"\0\0\0\x0b" + b"\xa1bopfbundle"[:11]
                        peer.send(wire_question)
            peers.append(peer)
    return peers


@pytest.mark.parametrize("stage", ["before", "while", "serving"])
def test_peers_that_say_half_or_nothing_or_never_listen_keep_nobody_else(ground, stage):
    keeper = ground.keeper("small", "large")
    if stage == "serving":
        keeper.start()
        keeper.until_open("large")
        peers = crowd_of_peers(keeper, ground.digests["small"])
    else:
        with ground.frozen_broker():
            keeper.start()
            peers = crowd_of_peers(keeper, ground.digests["small"]) if stage == "before" else []
        if stage == "while":
            assert keeper.pause_while_opening(MEBIBYTE)
            keeper.go_on()
            peers = crowd_of_peers(keeper, ground.digests["small"])
    keeper.until_open("small")
    keeper.until_open("large")
    ground.right(keeper, "small")
    ground.right(keeper, "large")
    for each in peers:
        each.close()
    until(lambda: sum("socket:" in target for target in keeper.descriptors().values()) <= 4)


# -- the disk of the log ------------------------------------------------------------------------------


def test_a_log_on_a_full_disk_keeps_no_model_from_opening_and_serving(ground):
    keeper = ground.keeper("small")
    keeper.start(log=Path("/dev/full"))
    keeper.until_open("small")
    ground.right(keeper, "small")
    time.sleep(LEASE_S)  # renewals attest too
    assert keeper.state("small") == "open"


# -- the wall clock -----------------------------------------------------------------------------------

DAY = 86400


def test_a_wall_clock_that_steps_changes_no_lease_and_bundles_follow_it(ground):
    keeper = ground.keeper("small")
    keeper.start(environment=ground.clock.environment)
    keeper.until_open("small")
    link = Link(ground.digests["small"], keeper.socket, seconds=10)
    for step in (DAY, -DAY, 0):
        ground.clock.set(step)
        deadline = time.monotonic() + LEASE_S  # a renewal falls into each
        while time.monotonic() < deadline:
            assert keeper.state("small") == "open", (keeper.status("small"), keeper.log.read_text()[-1500:])
            assert abs(KeyBundle.parse(link.bundle(None)).parts.not_before - (time.time() + step)) < 30
            time.sleep(0.3)
    ground.right(keeper, "small")
    link.close()


def test_a_wall_clock_that_is_wrong_while_a_model_opens_keeps_nothing_from_opening(ground):
    ground.clock.set(-20 * 365 * DAY)
    keeper = ground.keeper("small")
    keeper.start(environment=ground.clock.environment)
    keeper.until_open("small")
    ground.right(keeper, "small")


# -- models that nobody needs --------------------------------------------------------------------------


def test_a_model_without_workers_gives_its_memory_back_and_is_there_for_the_next_worker(ground):
    keeper = ground.keeper("small", "large", settings="[keeper]\nidle_s = 2\n")
    keeper.start()
    keeper.until_open("large")
    first = Worker(keeper.socket, ground.digests["large"], patience=60)
    assert "weights.bin" in first.told
    until(lambda: keeper.state("small") == "idle")
    time.sleep(3)
    assert keeper.state("large") == "open"  # somebody needs it
    first.close()
    until(lambda: keeper.state("large") == "idle")
    assert not keeper.memory_files()
    second = Worker(keeper.socket, ground.digests["large"], patience=60)
    try:
        assert second.told.get("weights.bin") == hashlib.sha256(ground.weights["large"]).hexdigest()
    finally:
        second.close()


# -- after all of it ------------------------------------------------------------------------------------


def test_after_all_of_these_no_plaintext_is_in_any_file_or_environment(ground):
    ground.hunt.files()
    ground.hunt.processes(int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
    assert ground.hunt.found == []
    assert ground.hunt.searched["files"] > 3
