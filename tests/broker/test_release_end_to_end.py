"""A keeper's client and a real broker over a real socket: what is released, and what each refusal is called."""

from __future__ import annotations

import json

import pytest
from broker.broker_in_a_room import MEASUREMENT, broker_room
from strongroom.attest.simulated import SimulatedAttester
from strongroom.errors import (
    AttestationFailed,
    BrokerUnreachable,
    ProtocolMismatch,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
)
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    with broker_room(tmp_path_factory.mktemp("room")) as room:
        yield room


def entries(room):
    return [json.loads(each) for each in room.broker.audit.entries()]


def test_a_keeper_that_the_policy_accepts_gets_the_key(room):
    name, archive, key = room.register(1, lease_s=600)
    released = room.client().fetch(tuple(name), archive)
    assert released.key.reveal() == key.reveal()
    assert (released.version, released.lease_s, released.archive) == (1, 600, archive)
    assert abs(released.broker_time - room.broker.clock()) < 5
    assert released.claims["submods"]["cpu0"]["ear.status"] == "warning"


def test_the_release_is_in_the_audit_log_before_the_key_is_out(room):
    name, archive, _ = room.register(2)
    room.client().fetch(tuple(name), archive)
    last = entries(room)[-1]
    assert (last["event"], last["decision"], last["resource"]) == ("release", "granted", str(name))
    assert len(last["evidence"]) == 64


def test_a_measurement_that_the_policy_does_not_list_is_refused_without_a_reason(room):
    name, archive, _ = room.register(3)
    with pytest.raises(AttestationFailed) as refused:
        room.client(measurement=bytes(32)).fetch(tuple(name), archive)
    assert "measurement" not in str(refused.value)
    last = entries(room)[-1]
    assert (last["event"], last["decision"]) == ("attest", "refused")
    assert last["checks"][0]["name"] == "simulated.measurement"


def test_without_a_release_policy_nothing_is_released(tmp_path):
    with broker_room(tmp_path, rego=None) as room:
        name, archive, _ = room.register(1)
        with pytest.raises(ReleaseDenied, match="cpu0: warning"):
            room.client().fetch(tuple(name), archive)


def test_without_an_appraisal_policy_nothing_is_attested(tmp_path):
    with broker_room(tmp_path, appraisal=None) as room:
        name, archive, _ = room.register(1)
        with pytest.raises(AttestationFailed):
            room.client().fetch(tuple(name), archive)


def test_a_key_that_nobody_registered_is_missing(room):
    archive = ArchiveDigest(bytes([99]) * 32)
    with pytest.raises(ResourceMissing, match="nothing it can release"):
        room.client().fetch(("acme", "digits", f"1-{archive}"), archive)


def test_a_name_of_another_archive_is_refused(room):
    name, _, _ = room.register(4)
    with pytest.raises(ReleaseError, match="asked was"):
        room.client().fetch(tuple(name), ArchiveDigest(bytes(32)))


def test_a_broker_that_is_not_there_is_unreachable(room):
    client = ReleaseClient("http://127.0.0.1:9", attester=SimulatedAttester(), pause_s=0.01)
    with pytest.raises(BrokerUnreachable, match="no answer"):
        client.fetch(("a", "b", "1-" + "00" * 32), ArchiveDigest(bytes(32)))


def test_a_broker_with_a_certificate_of_its_own_is_pinned(tmp_path):
    with broker_room(tmp_path, hosts=("127.0.0.1",)) as room:
        assert room.url.startswith("https://")
        name, archive, key = room.register(1)
        assert room.client().fetch(tuple(name), archive).key.reveal() == key.reveal()
        room.ca = None
        with pytest.raises(BrokerUnreachable, match="certificate"):
            room.client().fetch(tuple(name), archive)


# -- every way to fail has a name and a next step ---------------------------------------------


def unreachable(room, name, archive):
    ReleaseClient("http://127.0.0.1:9", attester=SimulatedAttester(), attempts=1).fetch(tuple(name), archive)


def other_version(room, name, archive):
    class Newer(ReleaseClient):
        def _exchange(self, session, method, path, body):
            changed = body | {"version": "0.5.0"} if path == "auth" else body
            return super()._exchange(session, method, path, changed)

    Newer(room.url, attester=SimulatedAttester(measurement=MEASUREMENT)).fetch(tuple(name), archive)


def other_measurement(room, name, archive):
    room.client(measurement=bytes(32)).fetch(tuple(name), archive)


def revoked(room, name, archive):
    room.admin().revoke("archive", str(archive))
    try:
        room.client().fetch(tuple(name), archive)
    finally:
        room.admin().unrevoke("archive", str(archive))


def absent(room, name, archive):
    room.client().fetch(("acme", "digits", f"9-{archive}"), archive)


def full(room, name, archive):
    store = room.broker.store
    store.write("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
    try:
        room.client(attempts=1).fetch(tuple(name), archive)
    finally:
        store.write("DROP TRIGGER full")


@pytest.mark.parametrize(
    ("fails", "error", "said", "hint"),
    [
        (unreachable, BrokerUnreachable, "no answer from the key broker", "is it running"),
        (other_version, ProtocolMismatch, "expect =0.4.0 while the request is 0.5.0", "broker of key broker protocol"),
        (other_measurement, AttestationFailed, "refused the simulated evidence", "audit log list every check"),
        (revoked, ReleaseDenied, "the attestation said cpu0: warning", "the broker's log says which"),
        (absent, ResourceMissing, "nothing it can release", "strongroom key add"),
        (full, BrokerUnreachable, "cannot decide at the moment", "broker status"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_each_way_to_fail_is_an_error_of_its_own_with_the_next_step(room, fails, error, said, hint):
    name, archive, _ = room.register(5)
    with pytest.raises(error) as failed:
        fails(room, name, archive)
    assert type(failed.value) is error
    assert said in str(failed.value) and hint in failed.value.hint
