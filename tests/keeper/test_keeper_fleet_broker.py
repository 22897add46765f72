"""Mode fleet with a real broker over HTTP: seeds come, forged ones do not count, and the keys go with the model."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest
from broker.broker_in_a_room import MEASUREMENT, broker_room
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from doubles.direct_link import QuietAttester
from doubles.models import Author, sealed_toy
from strongroom.archive.unseal import SealedArchive
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker.client import register_model_key
from strongroom.broker.epochs import EPOCH_S, EpochSeed
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.statement import KeeperStatement
from strongroom.channel import ohttp
from strongroom.channel.bundle import KeyBundle, ServedModel
from strongroom.channel.kem import X25519
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import DateRefused, ModelUnavailable, ReplayRefused
from strongroom.keeper import fleet
from strongroom.keeper.fleet import FleetKeys
from strongroom.keeper.keyring import Allowance, RequestKeys, Surroundings
from strongroom.keeper.models import HeldModel
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest
from strongroom.launch.config import Channel

CHANNEL = Channel(("x25519",), "fleet", 86400, 7200, 300)
ONLY_MODEL_KEYS = """package policy
import rego.v1
default allow := false
allow if data.plugin == "resource"
"""


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s"
        time.sleep(0.05)


class Fleet:
    """A real broker, one archive, and as many keepers of it as a test wants."""

    def __init__(self, room, folder, lease_s=None) -> None:
        self.room, self.keepers = room, []
        self.author = Author.make(folder)
        public = load_pem_public_key((room.folder / "broker.pub").read_bytes())
        key = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.sealed = sealed_toy(folder, self.author, weights=b"weights", broker_key=key)
        admin = room.folder / "admin.key"
        register_model_key(
            room.url, admin, self.sealed.resource, self.sealed.digest, self.sealed.key, version=1, lease_s=lease_s
        )

    def keeper(self) -> HeldModel:
        """One that is only just starting."""
        statement = KeeperStatement(bytes([len(self.keepers)]) * 16)
        attester = SimulatedAttester(measurement=MEASUREMENT)
        client = ReleaseClient(self.room.url, attester=attester, statement=statement, attempts=1)
        verified = SealedArchive.open(self.sealed.path).verified((self.author.key.public,), now=datetime.now(UTC))
        core = verified.core
        release = partial(client.fetch, core.resource, core.digest)
        seeds = partial(client.fetch_epoch, core.resource, core.digest, core.broker_key)
        source = FleetKeys("toy", core.digest, CHANNEL, seeds, release)
        served = ServedModel("toy", "1.0", core.digest)
        keys = RequestKeys(served, Surroundings((), bytes(32), bytes(32)), QuietAttester(), source, Allowance(1e6, 1e6))
        model = HeldModel("toy", core.digest, lambda: verified, keys, release, grace=1)
        self.keepers.append(model)
        model.start()
        return model

    def close(self) -> None:
        for each in self.keepers:
            each.close()


@pytest.fixture
def clock():
    """The broker's clock, which a test may turn on."""
    offset = [0.0]

    def now() -> float:
        return time.time() + offset[0]

    now.offset = offset
    return now


@pytest.fixture
def quick(monkeypatch):
    """A keeper that starts is closed for a shorter while than outside of tests; its time may lag by more than 1 s."""
    monkeypatch.setattr(fleet, "AHEAD_S", 1.5)


@pytest.fixture
def standing(tmp_path, clock, quick):
    made = []
    with broker_room(tmp_path, clock=clock) as room:

        def make(**options):
            made.append(Fleet(room, tmp_path, **options))
            return made[-1]

        yield make
        for each in made:
            each.close()


def state(model) -> tuple[str, str]:
    status = model.status()
    return status["state"], status["reason"]


def is_open(model) -> bool:
    return state(model)[0] == "open"


def sealed_to(model):
    config, pair = KeyList.parse(KeyBundle.parse(model.keys.bundle(None)).parts.ohttp_keys).choose((X25519,))
    message, _ = ohttp.encapsulate(config, pair, b"secret")
    head, enc, sealed = RequestHead.parse(message)
    return head.serialise(), enc, sealed


def opened(model, request, date):
    head, enc, sealed = request
    reservation, context = model.keys.open(head, enc, Form.SINGLE)
    from strongroom.channel.hpke import RecipientContext

    plain = bytes(ohttp.open_request(RecipientContext.parse(context), sealed))
    model.keys.settle(reservation, opened=True, date=date)
    return plain


def test_keepers_of_one_archive_open_each_others_requests_once(standing, clock):
    fleet = standing()
    one, two = fleet.keeper(), fleet.keeper()
    until(lambda: is_open(one) and is_open(two))
    assert one.status()["epoch"] == two.status()["epoch"] == int(clock()) // EPOCH_S
    request = sealed_to(one)
    assert opened(two, request, int(clock())) == b"secret"
    with pytest.raises(ReplayRefused):
        opened(two, request, int(clock()))


def test_a_keeper_that_starts_anew_refuses_what_was_opened_before(standing, clock):
    fleet = standing()
    first = fleet.keeper()
    until(lambda: is_open(first))
    request, date = sealed_to(first), int(clock())
    assert opened(first, request, date) == b"secret"
    first.close()
    second = fleet.keeper()
    with pytest.raises(ModelUnavailable):
        opened(second, request, date)
    until(lambda: is_open(second))
    with pytest.raises(DateRefused):
        opened(second, request, date)
    assert opened(second, sealed_to(second), int(clock())) == b"secret"


def bent(monkeypatch, bend):
    """The broker signs every seed as it does, and somebody then changes what is sent."""
    make = EpochSeed.make
    monkeypatch.setattr(
        EpochSeed, "make", classmethod(lambda cls, private, *facts: bend(make(private, *facts), private))
    )


def signed(seed, private, **changes):
    changed = replace(seed, **changes)
    return replace(changed, signature=private.sign(changed._signed()))


FORGERIES = {
    "by another key": lambda seed, _: signed(seed, Ed25519PrivateKey.generate()),
    "with a bit of the signature flipped": lambda seed, _: replace(
        seed, signature=bytes([seed.signature[0] ^ 1]) + seed.signature[1:]
    ),
    "with another seed": lambda seed, _: replace(seed, seed=bytes(32)),
    "of another archive": lambda seed, private: signed(seed, private, archive=ArchiveDigest(bytes(32))),
    "of another epoch": lambda seed, private: signed(
        seed,
        private,
        epoch=seed.epoch - 1,
        not_before=seed.not_before - EPOCH_S,
        not_after=seed.not_after - EPOCH_S,
    ),
    "of another time": lambda seed, private: signed(seed, private, broker_time=seed.broker_time - 3 * EPOCH_S),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_seed_opens_nothing_and_a_true_one_does_soon_after(standing, monkeypatch, forgery):
    fleet = standing()
    with monkeypatch.context() as patched:
        bent(patched, FORGERIES[forgery])
        model = fleet.keeper()
        until(lambda: "seed" in state(model)[1] and "ReleaseError" in state(model)[1])
        assert state(model)[0] == "waiting"
        with pytest.raises(ModelUnavailable):
            model.keys.bundle(None)
    until(lambda: is_open(model))


def test_a_policy_that_gives_model_keys_but_no_seeds_leaves_the_model_closed(standing):
    fleet = standing()
    fleet.room.broker.policies.release = ReleasePolicy.parse(ONLY_MODEL_KEYS)
    model = fleet.keeper()
    until(lambda: "ReleaseDenied" in state(model)[1])
    assert state(model)[0] == "waiting"
    with pytest.raises(ModelUnavailable):
        model.keys.bundle(None)


def test_the_keys_go_when_the_model_is_withdrawn_and_come_back_with_it(standing):
    fleet = standing(lease_s=2)
    model = fleet.keeper()
    until(lambda: is_open(model))
    request = sealed_to(model)
    fleet.room.admin().revoke("archive", str(fleet.sealed.digest))
    until(lambda: state(model)[0] == "withdrawn")
    with pytest.raises(ModelUnavailable):
        model.keys.open(*request[:2], Form.SINGLE)
    assert model.keys.source._tenure is None and model.keys.source._keys is None
    fleet.room.admin().unrevoke("archive", str(fleet.sealed.digest))
    until(lambda: is_open(model))


def test_at_the_turn_of_the_brokers_day_keepers_serve_clients_of_both_days(standing, clock):
    fleet = standing(lease_s=2)
    clock.offset[0] = EPOCH_S - time.time() % EPOCH_S - 300  # five minutes to the broker's midnight
    one, two = fleet.keeper(), fleet.keeper()
    until(lambda: is_open(one) and is_open(two))
    today, old = one.status()["epoch"], sealed_to(one)
    until(lambda: all(each.keys.source.present().generations == {today, today + 1} for each in (one, two)))
    clock.offset[0] += (today + 1) * EPOCH_S - clock()
    until(lambda: one.status()["epoch"] == two.status()["epoch"] == today + 1)
    assert opened(two, old, int(clock())) == b"secret"
    assert opened(one, sealed_to(two), int(clock())) == b"secret"
