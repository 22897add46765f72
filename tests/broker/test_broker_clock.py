"""The broker's wall clock steps, in both directions, by a day or by years: what that may change and what not.

Sessions go by a steady clock. Leases, tokens and evidence go by the date, so a step is seen there, and never gives more
than it should for good.
"""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from broker.broker_in_a_room import Clock, Peer, broker_room, error_of
from broker.test_composite import APPRAISAL as SNP_APPRAISAL
from broker.test_composite import Cpu
from broker.test_leases_and_limits import broker_key, named
from doubles.amd_keys import NOW, amd_keys
from strongroom.broker import tiles
from strongroom.broker.audit import NoteKey
from strongroom.broker.directory import open_broker
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.broker.protocol import SESSION_SECONDS, Challenge, Request
from strongroom.broker.sessions import Sessions
from strongroom.broker.store import Revocation
from strongroom.errors import AttestationFailed, ReleaseDenied
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.types import Endorsements
from strongroom.hookspecs import VerifierOffer
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest, ModelKey
from strongroom.plugins import Plugins, Verifiers

DAY, YEAR = 86400, 365 * 86400
ARCHIVE, KEY = ArchiveDigest(b"\1" * 32), ModelKey(b"\2" * 32)
NAME = model_key_name("acme", "digits", 1, ARCHIVE)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def room(tmp_path, clock):
    """Its store is filled past the administrators, whose tokens are dated by the clock of this machine."""
    with broker_room(tmp_path, clock=lambda: clock.wall, steady=lambda: clock.steady) as room:
        document = ModelKeyDocument(ARCHIVE, KEY, version=1, lease_s=600)
        room.broker.store.put_resource(NAME, document.serialise(), at=0, archive=str(ARCHIVE), version=1)
        room.broker.store.set_limit("acme/digits", keepers=1, lease_s=600)
        yield room


def fetch(room, number):
    return room.client(statement=named(number)).fetch(tuple(NAME), ARCHIVE)


def lease_of(room):
    [row] = room.broker.store.rows("SELECT keeper, renewed_at, expires_at FROM leases WHERE ended_at IS NULL")
    return row


def test_a_step_back_frees_no_lease_and_the_next_renewal_puts_its_dates_right(room, clock):
    fetch(room, 1)
    clock.wall -= DAY
    with pytest.raises(ReleaseDenied):
        fetch(room, 2)
    assert fetch(room, 1).lease_s == 600
    assert lease_of(room) == ("01" * 16, int(clock.wall), int(clock.wall) + 600)
    clock.pass_(601)
    assert fetch(room, 2).lease_s == 600


def test_a_step_forward_lets_one_keeper_in_and_the_limit_holds_again_at_the_next_renewal(room, clock):
    """To the broker every lease is over. The keeper counts on its own clock and comes back within its lease."""
    fetch(room, 1)
    clock.wall += DAY
    fetch(room, 2)
    with pytest.raises(ReleaseDenied):
        fetch(room, 1)
    with pytest.raises(ReleaseDenied):
        fetch(room, 3)


@pytest.mark.parametrize("step", [-10 * YEAR, -DAY, DAY, 10 * YEAR])
def test_a_keeper_goes_on_after_a_step(room, clock, step):
    before = fetch(room, 1)
    clock.wall += step
    again = fetch(room, 1)
    assert (again.key.reveal(), again.lease_s) == (KEY.reveal(), 600)
    # What the keeper is told of the time is for noticing a pause; the lease counts on its own CLOCK_BOOTTIME.
    assert abs((again.broker_time - before.broker_time) - step) < 5


@pytest.mark.parametrize("step", [-DAY, DAY])
def test_no_step_undoes_a_revocation_or_lowers_a_minimum_version(room, clock, step):
    store = room.broker.store
    store.raise_minimum_version("acme/digits", 2)
    clock.wall += step
    with pytest.raises(ReleaseDenied):
        fetch(room, 1)
    assert store.minimum_version("acme/digits") == 2
    store.revoke(Revocation("archive", str(ARCHIVE), "", int(clock.wall)))
    clock.wall -= 2 * step
    assert store.revoked("archive", str(ARCHIVE))


@pytest.mark.parametrize("step", [-DAY, DAY])
def test_no_step_brings_a_session_back_or_lengthens_it(room, clock, step):
    peer = Peer(room)
    peer.auth()
    token = peer.attest().json()["token"]
    clock.wall += step
    clock.steady += 301
    assert error_of(peer.get(NAME))[0] == 401
    assert error_of(Peer(room).get(NAME, headers={"Authorization": f"Bearer {token}"}))[0] == 401


def test_a_token_from_before_a_step_back_ends_with_its_session(room, clock):
    """By the date it would hold for a day more."""
    peer = Peer(room)
    peer.auth()
    peer.attest()
    clock.wall -= DAY
    assert peer.get(NAME).ok
    clock.steady += 301
    assert error_of(peer.get(NAME))[1] in {"TokenNotFound", "TokenVerifierError"}


@pytest.mark.parametrize("step", [-3 * DAY, 3 * DAY])
def test_epoch_seeds_follow_the_date_there_and_back(room, clock, step):
    client, key = room.client(), broker_key(room)
    first = client.fetch_epoch(tuple(NAME), ARCHIVE, key)
    clock.wall += step
    moved = client.fetch_epoch(tuple(NAME), ARCHIVE, key)
    assert moved.epoch == first.epoch + step // DAY and moved.seed != first.seed
    clock.wall -= step
    back = client.fetch_epoch(tuple(NAME), ARCHIVE, key)
    # A jump ahead deletes seeds that then look old. Whoever asks again gets a new one: a fleet parts, and agrees again.
    assert back.epoch == first.epoch and (back.seed == first.seed) == (step < 0)


def test_the_log_holds_through_steps_in_both_directions(room, clock, tmp_path):
    for step in (DAY, -3 * DAY, 2 * DAY):
        clock.wall += step
        fetch(room, 1)
    entries = room.broker.audit.entries()
    times = [json.loads(each)["at"] for each in entries]
    assert times != sorted(times)
    again = open_broker(room.folder)  # a start verifies the whole log
    tiles.write(tmp_path / "log", again.audit.entries(), again.audit.checkpoint())
    tiles.read(tmp_path / "log", NoteKey.parse(again.audit.key.serialise()))
    again.close()


@pytest.mark.parametrize("step", [-3 * YEAR, 0, 60 * YEAR])
def test_evidence_is_judged_at_the_brokers_date(tmp_path, step):
    plugins = Plugins.load()
    snp = SnpVerifier(issuers=amd_keys("Milan").issuers)
    plugins._verifiers = Verifiers({"snp": VerifierOffer("snp", lambda: snp)})
    appraisal = SNP_APPRAISAL.replace("[nvidia]\n", "")
    lists = Endorsements({"crl": amd_keys("Milan").ark.crl(at=NOW + timedelta(seconds=step))})
    with broker_room(
        tmp_path, appraisal=appraisal, rego="measured", plugins=plugins, clock=lambda: NOW.timestamp() + step,
        endorsements=lambda evidence, policy: lists,
    ) as room:  # fmt: skip
        room.broker.store.put_resource(NAME, ModelKeyDocument(ARCHIVE, KEY, version=1).serialise(), at=0)
        client = ReleaseClient(room.url, attester=Cpu(), pause_s=0.01)
        if step == 0:
            assert client.fetch(tuple(NAME), ARCHIVE).key.reveal() == KEY.reveal()
            return
        with pytest.raises(AttestationFailed):
            client.fetch(tuple(NAME), ARCHIVE)
        checks = json.loads(room.broker.audit.entries()[-1])["checks"]
        assert {each["word"] for each in checks} == {"validity-period"}


def test_a_session_that_is_swept_while_it_is_judged_is_not_remembered_for_ever():
    clock = Clock()
    sessions = Sessions(lambda: clock.steady)
    judged = sessions.open(Request("simulated", ""), Challenge("nonce", ""))
    clock.pass_(SESSION_SECONDS + 1)
    sessions.open(Request("simulated", ""), Challenge("nonce", ""))
    sessions.attested(judged, "a token", None)
    assert judged.token == "a token" and sessions._by_token == {}
