"""The keeper over its real socket: what a worker gets, and what it does not get by asking."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from doubles.models import Author, sealed_toy
from strongroom.attest.simulated import SimulatedAttester
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request
from strongroom.channel.bundle import AdmittedArchive, KeyBundle, ServedModel
from strongroom.channel.hpke import RecipientContext
from strongroom.channel.kem import X25519, XWING
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import RequestHead
from strongroom.errors import (
    BrokerUnreachable,
    DateRefused,
    KeeperRefused,
    KeeperUnavailable,
    KeyUnknown,
    ModelUnavailable,
    NonceRateExceeded,
    ReplayRefused,
)
from strongroom.keeper.keyring import Allowance, HostKeys, RequestKeys, Surroundings
from strongroom.keeper.leases import boottime
from strongroom.keeper.models import HeldModel
from strongroom.keeper.peers import Lineage
from strongroom.keeper.release import Released
from strongroom.keeper.service import KeeperService
from strongroom.keys import ArchiveDigest
from strongroom.launch.admission import Gate
from strongroom.launch.config import Admission, Channel
from strongroom.worker.link import Link, Settled

CHANNEL = Channel(("x-wing", "x25519"), "host", 86400, 7200, 300)


class House:
    """A keeper with two open models."""

    def __init__(self, folder: Path, *, lineage: Lineage | None = None, broker_is_up: bool = True) -> None:
        self.broker_is_up = broker_is_up
        author = Author.make(folder)
        gate = Gate(Admission((author.public,), {}, False))
        attester = SimulatedAttester()
        self.sealed = {
            name: sealed_toy(folder, author, name=name, weights=os.urandom(100_000)) for name in ("one", "two")
        }
        admitted = tuple(
            sorted(AdmittedArchive(each.digest, author.key.public.id, n, 1) for n, each in self.sealed.items())
        )
        around = Surroundings(admitted, bytes(32), bytes(32))
        allowance = Allowance(1, 5)
        self.models = {}
        for name, sealed in self.sealed.items():
            keys = RequestKeys(ServedModel(name, "1.0", sealed.digest), around, attester, HostKeys(CHANNEL), allowance)
            verified = gate.verified(sealed.path)
            self.models[name] = HeldModel(
                name,
                sealed.digest,
                lambda verified=verified: verified,
                keys,
                lambda sealed=sealed: self.release(sealed),
            )
        self.path = folder / "keeper.sock"
        self.service = KeeperService(self.path, {each.archive: each for each in self.models.values()}, lineage)
        threading.Thread(target=self.service.run, daemon=True).start()
        for model in self.models.values():
            model.start()
            model.wait(20)

    def release(self, sealed):
        if not self.broker_is_up:
            raise BrokerUnreachable("nobody answers")
        return Released(sealed.digest, sealed.key, boottime())

    def link(self, name: str) -> Link:
        return Link(self.sealed[name].digest, self.path, seconds=10)

    def bundle(self, name: str, nonce: bytes | None = None) -> KeyBundle:
        return KeyBundle.parse(self.link(name).bundle(nonce))

    def request(self, name: str, kem: int = XWING) -> tuple[bytes, bytes, memoryview, ohttp.ResponseOpener]:
        config, pair = KeyList.parse(self.bundle(name).parts.ohttp_keys).choose((kem,))
        inner = Request("POST", "https", "host", f"/predictions/{name}", (), b"secret")
        message, opener = ohttp.encapsulate(config, pair, inner.serialise())
        head, enc, rest = RequestHead.parse(bytes(message))
        return head.serialise(), enc, rest, opener

    def close(self) -> None:
        self.service.close()
        for model in self.models.values():
            model.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    house.close()


def test_a_worker_gets_its_models_files_as_sealed_memory(house):
    files = {each.name: each for each in house.link("one").model()}
    weights = files["toy.pt"]
    assert weights.size == 100_000
    assert "MAR-INF/MANIFEST.json" in files
    assert fcntl.fcntl(weights.descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    with pytest.raises(PermissionError):
        os.pwrite(weights.descriptor, b"x", 0)
    for each in files.values():
        os.close(each.descriptor)


@pytest.mark.parametrize("kem", [XWING, X25519])
def test_a_context_from_the_keeper_opens_one_request_and_its_response(house, kem):
    link = house.link("one")
    head, enc, rest, opener = house.request("one", kem)
    [(reservation, context)] = link.open([(head, enc, False)])
    recipient = RecipientContext.parse(context)
    assert Request.parse(ohttp.open_request(recipient, rest)).content == b"secret"
    assert link.settle([Settled(reservation, True, int(time.time()))]) == [None]
    assert opener.open(ohttp.seal_response(recipient, enc, b"answer")) == b"answer"


def test_the_same_request_is_not_opened_twice_whichever_worker_asks(house):
    first, second = house.link("one"), house.link("one")
    head, enc, _, _ = house.request("one")
    [(reservation, _)] = first.open([(head, enc, False)])
    [pending] = second.open([(head, enc, False)])
    assert isinstance(pending, ReplayRefused)
    first.settle([Settled(reservation, True, None)])
    [settled] = second.open([(head, enc, False)])
    assert isinstance(settled, ReplayRefused)


def test_a_request_that_did_not_open_may_be_sent_again(house):
    link = house.link("one")
    head, enc, _, _ = house.request("one")
    [(reservation, _)] = link.open([(head, enc, False)])
    link.settle([Settled(reservation, False, None)])
    [(reservation, _)] = link.open([(head, enc, False)])
    link.settle([Settled(reservation, True, None)])


def test_a_worker_that_dies_between_opening_and_settling_leaves_its_request_used(house):
    link = house.link("one")
    head, enc, _, _ = house.request("one")
    link.open([(head, enc, False)])
    link.close()
    time.sleep(0.3)
    [again] = house.link("one").open([(head, enc, False)])
    assert isinstance(again, ReplayRefused)


def untold(house, enc):
    """Whether the keeper still waits to hear what became of this request to the model `one`."""
    digest = hashlib.sha256(enc).digest()[:16]
    return digest in {each.digest for each in house.models["one"].keys.source.memory._pending}


def test_what_opened_is_settled_with_the_next_question(house):
    link = house.link("one")
    head, enc, _, _ = house.request("one")
    [(reservation, _)] = link.open([(head, enc, False)])
    link.settle([Settled(reservation, True, int(time.time()))])
    assert untold(house, enc)
    [again] = house.link("one").open([(head, enc, False)])
    assert isinstance(again, ReplayRefused)
    other_head, other_enc, _, _ = house.request("one")
    [(other, _)] = link.open([(other_head, other_enc, False)])
    assert not untold(house, enc)
    link.settle([Settled(other, False, None)])
    [again] = house.link("one").open([(head, enc, False)])
    assert isinstance(again, ReplayRefused)


def test_a_settlement_is_told_by_the_flush_that_nobody_has_to_wait_for(house):
    link = house.link("one")
    head, enc, _, _ = house.request("one")
    [(reservation, _)] = link.open([(head, enc, False)])
    link.settle([Settled(reservation, True, int(time.time()))])
    link.flush()
    link.settings()  # answered after what was flushed
    assert not untold(house, enc)


def test_an_untold_settlement_of_a_broken_connection_leaves_its_request_used(house):
    link = house.link("one")
    head, enc, _, _ = house.request("one")
    [(reservation, _)] = link.open([(head, enc, False)])
    link.settle([Settled(reservation, True, int(time.time()))])
    link._connection.close()
    other_head, other_enc, _, _ = house.request("one")
    [(other, _)] = link.open([(other_head, other_enc, False)])  # on a new connection
    link.settle([Settled(other, True, None)])
    time.sleep(0.3)
    [again] = link.open([(head, enc, False)])
    assert isinstance(again, ReplayRefused)


def test_an_old_date_is_refused_at_the_settlement(house):
    link = house.link("one")
    head, enc, _, _ = house.request("one")
    [(reservation, _)] = link.open([(head, enc, False)])
    [refused] = link.settle([Settled(reservation, True, int(time.time()) - 4000)])
    assert isinstance(refused, DateRefused)


def test_a_reservation_cannot_be_settled_by_another_worker(house):
    first, second = house.link("one"), house.link("one")
    head, enc, _, _ = house.request("one")
    [(reservation, _)] = first.open([(head, enc, False)])
    second.bundle(None)
    with pytest.raises(KeeperRefused):
        second.settle([Settled(reservation, False, None)])
    second._reserved.add(reservation)  # a worker that says so all the same
    second.settle([Settled(reservation, False, None)])
    second.bundle(None)  # on a new connection: the keeper ended the old one
    [pending] = house.link("one").open([(head, enc, False)])
    assert isinstance(pending, ReplayRefused)
    assert first.settle([Settled(reservation, False, None)]) == [None]


def test_a_process_bound_to_one_model_cannot_claim_another(house):
    """This process claimed 'one' above; a child of its own may claim 'two', and then nothing else."""
    house.link("one").bundle(None)
    other = house.link("two")
    with pytest.raises(KeeperRefused):
        other.model()
    with pytest.raises(KeeperRefused):
        other.bundle(None)


def test_what_was_sealed_to_one_model_is_not_opened_for_a_worker_of_another(tmp_path):
    house = House(tmp_path)
    try:
        # The request is made by a child, so that this process stays a worker of 'two' only.
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            head, enc, _, _ = house.request("one")
            os.write(write, head + enc)
            os._exit(0)
        os.waitpid(child, 0)
        octets = os.read(read, 65536)
        [refused] = house.link("two").open([(octets[:7], octets[7:], False)])
        assert isinstance(refused, KeyUnknown)
    finally:
        house.close()


@pytest.mark.parametrize(
    "op", ["private_key", "keys", "export", "model_key", "contexts", "release", "claim_all", "__class__", ""]
)
def test_no_question_brings_out_a_private_key(house, op):
    link = house.link("one")
    link.bundle(None)
    with pytest.raises(KeeperRefused):
        link._ask({"op": op})


def test_the_frames_of_every_answer_hold_no_private_key(house, monkeypatch):
    from strongroom.channel.hpke import RecipientContext
    from strongroom.keeper import wire

    frames = []
    receive = wire.receive
    monkeypatch.setattr(wire, "receive", lambda *given, **limit: frames.append(receive(*given, **limit)) or frames[-1])
    link = house.link("one")
    head, enc, _, _ = house.request("one")
    for descriptor in link.model():
        os.close(descriptor.descriptor)
    [(reservation, context)] = link.open([(head, enc, False)])
    link.settle([Settled(reservation, True, None)])
    link.bundle(None)
    everything = b"".join(repr(frame).encode() + _octets(frame) for frame in frames)
    secrets = [held.private_key for held in house.models["one"].keys.source.present()._held]
    assert secrets
    for key in secrets:
        for octets in _private_octets(key):
            assert octets not in everything
    assert RecipientContext.parse(context).suite  # the one secret that does come out, for one request


def _octets(value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"".join(_octets(each) for each in value.values())
    return b"".join(_octets(each) for each in value) if isinstance(value, list) else b""


def _private_octets(key) -> list[bytes]:
    """Every 32-byte secret that a private key object holds, found by its own serialisation."""
    found = []
    for name in dir(key):
        value = getattr(key, name, None)
        if isinstance(value, bytes) and len(value) in (32, 64) and "public" not in name:
            found.append(value)
        if hasattr(value, "private_bytes_raw"):
            found.append(value.private_bytes_raw())
    assert found, "this test no longer finds the private octets"
    return found


def test_the_first_question_must_be_a_claim(house):
    link = house.link("one")
    link._connection = link._connect()
    with pytest.raises(KeeperRefused, match="claim"):
        link._answer({"op": "model"})


def test_an_archive_that_was_not_admitted_is_not_served(house):
    with pytest.raises(KeeperRefused, match="no such archive"):
        Link(ArchiveDigest(bytes(32)), house.path).model()


def test_evidence_over_a_nonce_is_made_at_a_bounded_rate(house):
    link = house.link("one")
    with pytest.raises(NonceRateExceeded):
        for _ in range(50):
            link.bundle(os.urandom(32))
    assert link.bundle(None)


def test_a_bundle_names_every_admitted_archive(house):
    parts = house.bundle("one").parts
    assert {each.archive for each in parts.admitted} == {each.digest for each in house.sealed.values()}


def test_a_process_outside_the_launchers_lineage_is_refused(tmp_path):
    house = House(tmp_path, lineage=Lineage(os.getpid(), 3))
    try:
        with pytest.raises(KeeperRefused, match="not a worker"):
            house.link("one").model()
    finally:
        house.close()


def test_a_model_whose_key_does_not_come_is_refused_at_once_and_opens_later(tmp_path):
    house = House(tmp_path, broker_is_up=False)
    try:
        link = house.link("one")
        before = time.monotonic()
        with pytest.raises(ModelUnavailable, match="BrokerUnreachable"):
            link.model()
        assert time.monotonic() - before < 1
        house.broker_is_up = True
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                files = link.model()
                break
            except ModelUnavailable:
                time.sleep(0.1)
        for each in files:
            os.close(each.descriptor)
    finally:
        house.close()


def test_no_keeper_is_said_with_the_next_step(tmp_path):
    with pytest.raises(KeeperUnavailable) as refusal:
        Link(ArchiveDigest(bytes(32)), tmp_path / "nobody").model()
    assert "launch" in refusal.value.hint
