"""A hostile worker at the keeper's socket, and a hostile broker behind the keeper."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import cbor2
import pytest
from doubles.models import Author, sealed_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from keeper.test_keeper_service import CHANNEL
from strongroom.attest.simulated import SimulatedAttester
from strongroom.channel.bundle import AdmittedArchive, ServedModel
from strongroom.errors import (
    BrokerUnreachable,
    KeeperRefused,
    KeeperUnavailable,
    MalformedInput,
    ModelUnavailable,
    StrongroomError,
)
from strongroom.keeper import service as keeper_service
from strongroom.keeper import wire
from strongroom.keeper.keyring import Allowance, HostKeys, RequestKeys, Surroundings
from strongroom.keeper.leases import boottime
from strongroom.keeper.models import HeldModel
from strongroom.keeper.release import ReleaseClient, Released
from strongroom.keeper.service import KeeperService
from strongroom.keys import ArchiveDigest, ModelKey
from strongroom.launch.admission import Gate
from strongroom.launch.config import Admission, Worker
from strongroom.worker.link import Link


class Keeper:
    """One model, one socket; `release` is what the broker answers."""

    def __init__(self, folder, *, release=None, confined=False) -> None:
        author = Author.make(folder)
        self.sealed = sealed_toy(folder, author, weights=os.urandom(50_000))
        around = Surroundings(
            (AdmittedArchive(self.sealed.digest, author.key.public.id, "toy", 1),), bytes(32), bytes(32)
        )
        served = ServedModel("toy", "1.0", self.sealed.digest)
        keys = RequestKeys(served, around, SimulatedAttester(), HostKeys(CHANNEL), Allowance(10, 10))
        verified = Gate(Admission((author.public,), {}, False)).verified(self.sealed.path)
        self.model = HeldModel("toy", self.sealed.digest, lambda: verified, keys, release or self.honest)
        self.path = folder / "keeper.sock"
        self.service = KeeperService(self.path, {self.model.archive: self.model}, None, Worker(), confined=confined)
        threading.Thread(target=self.service.run, daemon=True).start()
        self.model.start()
        self.model.wait(20)

    def honest(self) -> Released:
        return Released(self.sealed.digest, self.sealed.key, boottime())

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(str(self.path))
        return connection

    def link(self) -> Link:
        return Link(self.sealed.digest, self.path, seconds=10)

    def close(self) -> None:
        self.service.close()
        self.model.close()


@pytest.fixture
def keeper(tmp_path):
    made = []

    def make(**wishes) -> Keeper:
        made.append(Keeper(tmp_path, **wishes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def still_serves(keeper: Keeper) -> None:
    files = keeper.link().model()
    assert {each.name for each in files} >= {"toy.py", "toy.pt"}
    for each in files:
        os.close(each.descriptor)


# -- workers --------------------------------------------------------------------------------------

RUBBISH = {
    "a length of 4 GiB": b"\xff\xff\xff\xff" + b"x" * 100,
    "one byte over the limit": (wire.LIMIT + 1).to_bytes(4, "big"),
    "no CBOR": b"\x00\x00\x00\x04\xff\xff\xff\xff",
    "a list a million deep": (1_000_000).to_bytes(4, "big") + b"\x81" * 1_000_000,
    "a claim of 2^60 bytes": b"\x00\x00\x00\x09" + b"\x5b" + (1 << 60).to_bytes(8, "big"),
    "a claim of 2^60 items": b"\x00\x00\x00\x09" + b"\x9b" + (1 << 60).to_bytes(8, "big"),
    "a number": b"\x00\x00\x00\x01\x07",
    "a pattern": b"\x00\x00\x00\x08\xd8\x23\x65(((((",
    "half a frame": b"\x00\x00\x10\x00abc",
    "nothing": b"",
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_ends_a_connection_and_nothing_else(keeper, name):
    keeper = keeper()
    with keeper.connect() as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(RUBBISH[name])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    still_serves(keeper)


SLOW_NUMBER = b"\xc4\x82\x01\xc2\x5a" + (4 << 20).to_bytes(4, "big") + b"\xff" * (4 << 20)
"""A decimal fraction over an integer of 4 MiB: as a number it takes half an hour, in which no other thread runs."""


def test_a_frame_that_would_keep_the_interpreter_busy_is_not_worked_out():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frame = len(SLOW_NUMBER).to_bytes(4, "big") + SLOW_NUMBER
        sender = threading.Thread(target=theirs.sendall, args=(frame,))
        sender.start()
        assert wire.receive(ours).tag == 4
        sender.join()


def test_a_peer_that_has_claimed_nothing_sends_no_large_frame(keeper):
    keeper = keeper()
    with keeper.connect() as connection:
        connection.sendall((wire.FIRST_LIMIT + 1).to_bytes(4, "big"))
        assert connection.recv(1) == b""
    still_serves(keeper)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_frame_raises_anything_but_our_own_error(octets):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(len(octets).to_bytes(4, "big") + octets)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(MalformedInput, KeeperUnavailable):
            wire.receive(ours)


QUESTIONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=40) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    op=st.sampled_from(["claim", "model", "open", "bundle", "status", "settings", "held", "", "x"]),
    rest=st.dictionaries(st.sampled_from(["archive", "heads", "nonce", "op2"]), QUESTIONS, max_size=3),
)
def test_a_claimed_worker_that_asks_nonsense_gets_refusals_and_breaks_nothing(nonsense_keeper, op, rest):
    with nonsense_keeper.connect() as connection:
        wire.send(connection, {"op": "claim", "archive": bytes(nonsense_keeper.sealed.digest)})
        assert wire.receive(connection) == {}
        wire.send(connection, {"op": op, **rest})
        answer = wire.receive(connection)
        assert isinstance(answer, dict)
        secret = nonsense_keeper.sealed.key.reveal()
        assert secret not in cbor2.dumps(answer)
        for each in wire.receive_descriptors(connection, len(answer.get("files", []))):
            os.close(each)
        wire.send(connection, {"op": "status"})
        assert wire.receive(connection)["models"][0]["state"] == "open"


@settings(max_examples=60, deadline=None)
@given(settled=QUESTIONS.filter(lambda settled: settled != []), op=st.sampled_from(["settle", "open"]))
def test_a_crooked_settlement_ends_its_own_connection(nonsense_keeper, settled, op):
    with nonsense_keeper.connect() as connection:
        wire.send(connection, {"op": "claim", "archive": bytes(nonsense_keeper.sealed.digest)})
        assert wire.receive(connection) == {}
        wire.send(connection, {"op": op, "settled": settled} | ({"heads": []} if op == "open" else {}))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    still_serves(nonsense_keeper)


@pytest.fixture(scope="module")
def nonsense_keeper(tmp_path_factory):
    keeper = Keeper(tmp_path_factory.mktemp("nonsense"))
    yield keeper
    keeper.close()


def test_a_peer_that_claims_nothing_is_let_go(keeper, monkeypatch):
    monkeypatch.setattr(keeper_service, "UNCLAIMED_S", 0.3)
    keeper = keeper()
    with keeper.connect() as connection:
        before = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - before < 5


def test_a_peer_that_sends_a_byte_at_a_time_is_let_go(keeper, monkeypatch):
    monkeypatch.setattr(keeper_service, "UNCLAIMED_S", 0.3)
    keeper = keeper()
    with keeper.connect() as connection:
        connection.sendall(b"\x00\x00")
        assert connection.recv(1) == b""
    still_serves(keeper)


def test_more_connections_than_there_are_places_are_closed_and_the_first_go_on(keeper, monkeypatch):
    monkeypatch.setattr(keeper_service, "MOST_CONNECTIONS", 8)
    keeper = keeper()
    link = keeper.link()
    link.bundle(None)
    crowd = [keeper.connect() for _ in range(20)]
    time.sleep(0.5)
    assert link.bundle(None)
    for each in crowd:
        each.close()
    time.sleep(0.5)
    still_serves(keeper)


def test_the_socket_is_of_its_owner_alone(keeper):
    assert keeper().path.stat().st_mode & 0o777 == 0o600


def test_with_a_user_for_workers_only_that_user_may_claim(tmp_path):
    """The launcher named uid 65534; this process stands where a worker stands, and is root or a developer."""
    from strongroom.keeper.peers import Lineage, Peers, peer_of

    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
        Peers(Lineage(os.getppid(), 1, os.geteuid(), os.getegid())).admit(peer)
        with pytest.raises(KeeperRefused, match="workers as 65534"):
            Peers(Lineage(os.getppid(), 1, 65534, 65534)).admit(peer)


def test_the_socket_is_open_to_the_workers_group_and_to_nobody_else(tmp_path):
    from strongroom.keeper.peers import Lineage

    service = KeeperService(tmp_path / "sock", {}, Lineage(os.getpid(), 3, os.geteuid(), os.getegid()))
    status = (tmp_path / "sock").stat()
    service.close()
    assert (status.st_mode & 0o777, status.st_gid) == (0o660, os.getegid())


def test_a_process_that_has_not_given_up_its_rights_gets_no_file_and_no_context(keeper):
    link = keeper(confined=True).link()
    link.settings()
    link.bundle(None)
    with pytest.raises(KeeperRefused, match="no_new_privs"):
        link.model()
    with pytest.raises(KeeperRefused):
        link.open([(bytes(7), b"x", False)])


HARDENED = """
import sys
from pathlib import Path
from strongroom.keys import ArchiveDigest
from strongroom.launch.hardening import harden, harden_worker
from strongroom.worker.link import Link
{how}
link = Link(ArchiveDigest(bytes.fromhex(sys.argv[1])), Path(sys.argv[2]))
print(len(link.model()))
"""


@pytest.mark.parametrize(
    ("how", "served"), [("harden_worker(network=False, disk=False)", True), ("harden()", False), ("", False)]
)
def test_the_kernel_is_asked_and_not_the_worker(keeper, how, served):
    keeper = keeper(confined=True)
    command = [sys.executable, "-c", HARDENED.format(how=how), str(keeper.sealed.digest), str(keeper.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) is served, done.stderr
    assert served or "KeeperRefused" in done.stderr


# -- brokers --------------------------------------------------------------------------------------


def test_a_key_that_is_not_this_archives_opens_nothing(keeper):
    def wrong() -> Released:
        return Released(ArchiveDigest(bytes(32)), ModelKey(os.urandom(32)), boottime(), lease_s=3600)

    keeper = keeper(release=wrong)
    with pytest.raises(ModelUnavailable):
        keeper.model.check_open()
    with pytest.raises(ModelUnavailable):
        keeper.link().model()


class Impostor:
    """A TCP server that answers every connection with the same bytes, at a given pace."""

    def __init__(self, octets: bytes, *, pause: float = 0.0) -> None:
        self._octets, self._pause = octets, pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                step = 1 if self._pause else 1 << 16
                for at in range(0, len(self._octets), step):
                    connection.sendall(self._octets[at : at + step])
                    time.sleep(self._pause)
            except OSError:
                pass

    def close(self) -> None:
        self._socket.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ANSWERS = {
    "silence": b"",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
    "a page": OK + b"Content-Length: 5\r\n\r\n<html",
    "half an answer": OK + b"Content-Length: 5000\r\n\r\n{",
    "a challenge without a nonce": OK + b"Content-Length: 2\r\n\r\n{}",
    "8 MiB of spaces": OK + b"Content-Length: 8388608\r\n\r\n" + b" " * (8 << 20),
    "a bomb": OK
    + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n"
    + __import__("gzip").compress(bytes(64 << 20)),
    "elsewhere": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "a head without end": OK + b"X-A: " + b"a" * 200_000,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_impostor_in_the_brokers_place_is_an_error_with_a_next_step_and_costs_little(name):
    impostor = Impostor(ANSWERS[name])
    try:
        client = ReleaseClient(impostor.url, attester=SimulatedAttester(), attempts=1, timeout=3)
        before = time.monotonic()
        with pytest.raises(StrongroomError) as refusal:
            client.fetch(("default", "toy", "1-" + "00" * 32), ArchiveDigest(bytes(32)))
        assert time.monotonic() - before < 20
        assert isinstance(refusal.value, BrokerUnreachable) or refusal.value.hint
    finally:
        impostor.close()
