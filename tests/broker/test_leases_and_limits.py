"""What a Trustee has not: leases, limits, revocation of everything revocable, epochs, init-data, vetoes."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from broker.broker_in_a_room import MEASUREMENT, Clock, Peer, broker_room, error_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from strongroom.broker import epochs, journal, leases, tiles
from strongroom.broker.audit import Checkpoint, NoteKey, public_octets
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.broker.epochs import EPOCH_S, EpochSeed
from strongroom.broker.initdata import check_init_data
from strongroom.broker.protocol import Resource
from strongroom.broker.refusals import Refused
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.rootkey import PlainFile
from strongroom.broker.serve import Publisher
from strongroom.broker.statement import KeeperStatement
from strongroom.broker.store import ResourceFacts, Store
from strongroom.encoding import b64
from strongroom.errors import (
    AttestationFailed,
    AuditError,
    BrokerUnreachable,
    MalformedInput,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
)
from strongroom.evidence.types import Claim, Claims
from strongroom.hookspecs import Denial, hookimpl
from strongroom.keys import ArchiveDigest, AuthorId, ModelKey
from strongroom.plugins import Plugins


@pytest.fixture
def room(tmp_path):
    with broker_room(tmp_path) as room:
        yield room


def named(number):
    return KeeperStatement(bytes([number]) * 16)


def test_a_keeper_with_a_name_renews_its_lease_and_counts_once(room):
    name, archive, _ = room.register(1, lease_s=600)
    room.admin().set_limit("acme/digits", keepers=1)
    first = room.client(statement=named(1)).fetch(tuple(name), archive)
    again = room.client(statement=named(1)).fetch(tuple(name), archive)
    assert first.lease == again.lease
    with pytest.raises(ReleaseDenied):
        room.client(statement=named(2)).fetch(tuple(name), archive)


def test_a_lowered_limit_reaches_the_last_keepers_at_their_next_renewal(tmp_path):
    clock = Clock(time.time())  # that of administrators too
    with broker_room(tmp_path, clock=lambda: clock.wall, steady=lambda: clock.steady) as room:
        name, archive, _ = room.register(1, lease_s=600)
        clients = []
        for number in (3, 1, 2):
            clients.append(room.client(statement=named(number)))
            clients[-1].fetch(tuple(name), archive)
            clock.pass_(1)
        room.broker.store.set_limit("acme/digits", keepers=2, lease_s=None)
        for client in clients[:2]:
            client.fetch(tuple(name), archive)
        with pytest.raises(ReleaseDenied):
            clients[2].fetch(tuple(name), archive)


def test_a_limit_of_no_keepers_stops_all_at_their_next_renewal(room):
    name, archive, _ = room.register(1, lease_s=600)
    client = room.client(statement=named(1))
    client.fetch(tuple(name), archive)
    room.admin().set_limit("acme/digits", keepers=0)
    with pytest.raises(ReleaseDenied):
        client.fetch(tuple(name), archive)


def test_a_limit_that_is_not_given_stays_and_null_takes_it_away(room):
    admin = room.admin()
    assert admin.set_limit("acme/digits", keepers=0, lease_s=900)["keepers"] == 0
    assert admin.set_limit("acme/digits", lease_s=600) == {"lineage": "acme/digits", "keepers": 0, "lease_s": 600}
    assert admin.set_limit("acme/digits", keepers=None) == {"lineage": "acme/digits", "keepers": None, "lease_s": 600}
    assert room.broker.store.limit("acme/digits") == (None, 600)


def test_a_limit_of_nothing_is_an_error(room):
    with pytest.raises(ReleaseError, match="a number or null"):
        room.admin().set_limit("acme/digits")


def test_a_limit_goes_into_the_log_whole_for_a_restore_sets_both(room):
    room.admin().set_limit("acme/digits", keepers=3, lease_s=900)
    room.admin().set_limit("acme/digits", lease_s=600)
    entry = json.loads(room.broker.audit.entries()[-1])
    assert (entry["event"], entry["keepers"], entry["lease_s"]) == ("limit", 3, 600)


def test_an_ended_lease_makes_room_for_another_keeper(room):
    name, archive, _ = room.register(1, lease_s=600)
    room.admin().set_limit("acme/digits", keepers=1)
    lease = room.client(statement=named(1)).fetch(tuple(name), archive).lease
    room.admin().end_lease(lease)
    room.client(statement=named(2)).fetch(tuple(name), archive)


def test_a_limit_counts_over_the_whole_lineage_and_no_further(room):
    one, one_archive, _ = room.register(1, version=1)
    two, two_archive, _ = room.register(2, version=2)
    other, other_archive, _ = room.register(3, lineage="digits2")
    room.admin().set_limit("acme/digits", keepers=1)
    room.client(statement=named(1)).fetch(tuple(one), one_archive)
    with pytest.raises(ReleaseDenied):
        room.client(statement=named(2)).fetch(tuple(two), two_archive)
    room.client(statement=named(2)).fetch(tuple(other), other_archive)


def test_a_keeper_of_two_versions_counts_once_for_itself_and_for_others(room):
    one, one_archive, _ = room.register(1, version=1, lease_s=600)
    two, two_archive, _ = room.register(2, version=2, lease_s=600)
    room.admin().set_limit("acme/digits", keepers=2)
    first = room.client(statement=named(1))
    first.fetch(tuple(one), one_archive)
    first.fetch(tuple(two), two_archive)
    room.client(statement=named(2)).fetch(tuple(two), two_archive)
    first.fetch(tuple(two), two_archive)
    with pytest.raises(ReleaseDenied):
        room.client(statement=named(3)).fetch(tuple(one), one_archive)


def test_keepers_without_a_name_count_at_every_release(room):
    name, archive, _ = room.register(1, lease_s=600)
    room.admin().set_limit("acme/digits", keepers=2)
    for _ in range(2):
        room.client().fetch(tuple(name), archive)
    with pytest.raises(ReleaseDenied):
        room.client().fetch(tuple(name), archive)


def test_a_keeper_beyond_a_lowered_limit_gets_no_other_version_either(room):
    one, one_archive, _ = room.register(1, version=1, lease_s=600)
    two, two_archive, _ = room.register(2, version=2, lease_s=600)
    for number, at in ((1, 10), (2, 20)):
        lease = room.client(statement=named(number)).fetch(tuple(one), one_archive).lease
        room.broker.store.write("UPDATE leases SET granted_at = ? WHERE id = ?", at, lease)
    room.admin().set_limit("acme/digits", keepers=1)
    room.client(statement=named(1)).fetch(tuple(two), two_archive)
    with pytest.raises(ReleaseDenied):
        room.client(statement=named(2)).fetch(tuple(two), two_archive)


def test_the_shorter_of_document_and_limit_is_the_lease(room):
    name, archive, _ = room.register(1, lease_s=600)
    room.admin().set_limit("acme/digits", lease_s=60)
    assert room.client().fetch(tuple(name), archive).lease_s == 60


def test_a_limited_lineage_without_a_lease_gets_one_of_an_hour(room):
    name, archive, _ = room.register(1)
    assert room.client().fetch(tuple(name), archive).lease_s is None
    room.admin().set_limit("acme/digits", keepers=5)
    assert room.client(statement=named(1)).fetch(tuple(name), archive).lease_s == 3600


def test_leases_that_are_over_for_long_are_forgotten_and_no_others(room):
    name, archive, _ = room.register(1, lease_s=600)
    endless, endless_archive, _ = room.register(2, lineage="endless")
    room.client(statement=named(1)).fetch(tuple(name), archive)
    room.client(statement=named(1)).fetch(tuple(endless), endless_archive)
    room.client().fetch(tuple(endless), endless_archive)  # a keeper without a name, a lease without an end
    store, now = room.broker.store, int(room.broker.clock())
    assert leases.sweep(store, now + 1000) == 0
    assert leases.sweep(store, now + leases.KEPT_S + 700) == 2
    [left] = room.admin().leases(all=True)
    assert (left["resource"], left["keeper"]) == (str(endless), "01" * 16)


def test_finding_a_lease_does_not_look_at_all_of_them(room):
    """A store of an earlier release has another index; this one is made when it is opened."""
    store = room.broker.store
    plan = " ".join(
        str(row)
        for query in (
            "SELECT id FROM leases WHERE path = 'a' AND keeper = 'b' AND ended_at IS NULL",
            "SELECT keeper FROM leases WHERE path > 'a/b/' AND path < 'a/b0' AND ended_at IS NULL GROUP BY keeper",
        )
        for row in store.rows(f"EXPLAIN QUERY PLAN {query}")
    )
    assert plan.count("leases_by_keeper") == 2 and "SCAN" not in plan
    store.write("DROP INDEX leases_by_keeper")
    Store(store.path, PlainFile(room.folder / "root.key").unlock()).close()
    assert store.rows("SELECT 1 FROM sqlite_master WHERE name = 'leases_by_keeper'")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("archive", "01" * 32),
        ("lineage", "acme/digits"),
        ("author", "aa" * 32),
        ("measurement", MEASUREMENT.hex()),
        ("keeper", "07" * 16),
    ],
)
def test_everything_revocable_is_refused_at_the_next_renewal(room, kind, value):
    name, archive, _ = room.register(1, author=AuthorId(b"\xaa" * 32), lease_s=600)
    client = room.client(statement=named(7))
    client.fetch(tuple(name), archive)
    room.admin().revoke(kind, value, reason="test")
    with pytest.raises(ReleaseDenied):
        client.fetch(tuple(name), archive)
    room.admin().unrevoke(kind, value)
    client.fetch(tuple(name), archive)


def test_what_cannot_be_revoked_is_an_error(room):
    with pytest.raises(ReleaseError):
        room.admin().revoke("planet", "earth")


SPELLINGS = pytest.mark.parametrize(
    "spell",
    [
        lambda octets: b"\n " + octets,
        lambda octets: octets.replace(b"strongroom", b"\\u0073trongroom"),
        lambda octets: json.dumps(dict(reversed(json.loads(octets).items())), indent=400).encode(),
        lambda octets: b"\xef\xbb\xbf" + octets,
        lambda octets: octets.decode().encode("utf-16"),
    ],
    ids=["white space", "an escape", "the member last", "a byte order mark", "utf-16"],
)


@SPELLINGS
def test_a_model_key_is_one_however_it_is_spelled(room, spell):
    archive, key = ArchiveDigest(b"\1" * 32), ModelKey(b"\2" * 32)
    name = model_key_name("acme", "digits", 1, archive)
    room.admin().put_resource(name, spell(ModelKeyDocument(archive, key, version=1, lease_s=60).serialise()))
    client = room.client(statement=named(1))
    assert client.fetch(tuple(name), archive).lease_s == 60
    room.admin().revoke("archive", str(archive))
    with pytest.raises(ReleaseDenied):
        client.fetch(tuple(name), archive)


def test_a_model_key_that_an_earlier_release_took_for_none_is_revoked_all_the_same(room):
    name, archive, _ = room.register(1, author=AuthorId(b"\xaa" * 32))
    room.broker.store.put_resource(name, b"\n" + room.broker.store.resource(name), at=1)
    room.client().fetch(tuple(name), archive)
    room.admin().revoke("author", "aa" * 32)
    with pytest.raises(ReleaseDenied):
        room.client().fetch(tuple(name), archive)


def test_a_model_key_whose_owner_the_policy_was_not_told_is_stored_again_first(room):
    name, archive, _ = room.register(1, owner="policy-7")
    stored = room.broker.store.resource(name)
    room.broker.store.put_resource(name, b"\n" + stored, at=1)
    with pytest.raises(ResourceMissing):
        room.client().fetch(tuple(name), archive)
    room.admin().put_resource(name, b"\n" + stored)
    room.client().fetch(tuple(name), archive)


@pytest.mark.parametrize(
    "octets", [b'{"strongroom": "model-key/1"', b'\n{"strongroom": "model-key/1", "strongroom": ""}']
)
def test_a_broken_model_key_is_not_kept_as_something_else(room, octets):
    with pytest.raises(ReleaseError):
        room.admin().put_resource(Resource("acme", "digits", "x"), octets)
    assert room.broker.store.resource(Resource("acme", "digits", "x")) is None


def test_what_only_mentions_the_member_is_released_as_it_is(room):
    peer, name = Peer(room), Resource("acme", "notes", "x")
    room.admin().put_resource(name, b'{"see": {"strongroom": 1}}')
    peer.auth()
    peer.attest()
    assert peer.opened(peer.get(name)) == {"see": {"strongroom": 1}}


@pytest.mark.parametrize("kind", ["archive", "author", "measurement"])
def test_a_digest_in_capitals_is_revoked_and_restored_all_the_same(room, kind):
    digest = {"archive": "0a" * 32, "author": "aa" * 32, "measurement": MEASUREMENT.hex()}[kind]
    name, archive, _ = room.register(10, author=AuthorId(b"\xaa" * 32))
    room.admin().revoke(kind, digest.upper())
    with pytest.raises(ReleaseDenied):
        room.client().fetch(tuple(name), archive)
    room.admin().unrevoke(kind, digest.upper())
    room.client().fetch(tuple(name), archive)


def test_a_keeper_in_capitals_is_revoked_and_restored_all_the_same(room):
    name, archive, _ = room.register(1)
    client = room.client(statement=named(0xAB))
    room.admin().revoke("keeper", "AB" * 16)
    with pytest.raises(ReleaseDenied):
        client.fetch(tuple(name), archive)
    room.admin().unrevoke("keeper", "aB" * 16)
    client.fetch(tuple(name), archive)


def test_the_identity_of_a_chip_is_compared_without_regard_to_capitals(room):
    verdict = SimpleNamespace(
        submodules={"cpu0": SimpleNamespace(claims=Claims("snp", {}, bytes(64), device_id="AB:cd"))}
    )
    session = SimpleNamespace(verdict=verdict, keeper="")
    room.admin().revoke("keeper", "ab:CD")
    with pytest.raises(Refused, match="revoked"):
        leases.check_standing(room.broker.store, session, Resource("acme", "digits", "x"), ResourceFacts())


def test_what_an_earlier_release_kept_in_capitals_is_revoked_once_the_store_is_opened(room):
    store = room.broker.store
    store.write("INSERT INTO revocations VALUES ('keeper', ?, 'stolen', 5)", "AB" * 16)
    Store(store.path, PlainFile(room.folder / "root.key").unlock()).close()
    assert store.revoked("keeper", "ab" * 16)
    assert room.admin().revocations() == [{"kind": "keeper", "value": "ab" * 16, "reason": "stolen", "at": 5}]


@pytest.mark.parametrize(
    ("kind", "value", "form"),
    [
        ("archive", "digits.mar", "64 hexadecimal digits"),
        ("archive", "ab" * 31, "64 hexadecimal digits"),
        ("author", "sha256:" + "ab" * 32, "64 hexadecimal digits"),
        ("measurement", "ab" * 20, "64 to 128 hexadecimal digits"),
        ("measurement", "ab" * 65, "64 to 128 hexadecimal digits"),
        ("lineage", "digits", "acme/digits"),
        ("lineage", "acme/digits/1-00", "acme/digits"),
        ("keeper", "", "a keeper's name"),
    ],
)
def test_a_value_that_no_release_could_have_is_refused_and_the_right_form_is_named(room, kind, value, form):
    for act in (room.admin().revoke, room.admin().unrevoke):
        with pytest.raises(ReleaseError, match=form):
            act(kind, value)
    assert room.admin().revocations() == []


# -- epochs -------------------------------------------------------------------------


def broker_key(room):
    public = load_pem_public_key((room.folder / "broker.pub").read_bytes())
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_all_keepers_of_an_archive_get_the_same_signed_seed(room):
    name, archive, _ = room.register(1)
    seeds = [
        room.client(statement=named(number)).fetch_epoch(tuple(name), archive, broker_key(room)) for number in (1, 2)
    ]
    assert seeds[0].seed == seeds[1].seed and seeds[0].epoch == int(room.broker.clock()) // EPOCH_S
    assert EpochSeed.parse(seeds[0].serialise()) == seeds[0]


def test_epochs_and_archives_have_seeds_of_their_own(room):
    one, one_archive, _ = room.register(1)
    two, two_archive, _ = room.register(2, version=2)
    present = int(room.broker.clock()) // EPOCH_S
    client, key = room.client(), broker_key(room)
    seeds = {client.fetch_epoch(tuple(one), one_archive, key, epoch=present + n).seed for n in (-1, 0, 1)}
    seeds.add(client.fetch_epoch(tuple(two), two_archive, key).seed)
    assert len(seeds) == 4


@pytest.mark.parametrize("distance", [-2, 2, 5000])
def test_other_epochs_are_not_given(room, distance):
    name, archive, _ = room.register(1)
    with pytest.raises(ResourceMissing):
        room.client().fetch_epoch(
            tuple(name), archive, broker_key(room), epoch=int(room.broker.clock()) // EPOCH_S + distance
        )


def test_a_seed_of_another_broker_is_refused(room):
    name, archive, _ = room.register(1)
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ReleaseError, match="not signed by the broker"):
        room.client().fetch_epoch(tuple(name), archive, stranger)


def test_an_old_seed_is_deleted(tmp_path):
    now = [1_800_000_000.0]
    with broker_room(tmp_path, clock=lambda: now[0]) as room:
        name, present = Resource("a", "b", "c"), int(now[0]) // EPOCH_S
        epochs.seed_of(room.broker.store, name, present, now[0])
        now[0] += 2 * EPOCH_S
        epochs.seed_of(room.broker.store, name, present + 2, now[0])
        assert [row[0] for row in room.broker.store.rows("SELECT name FROM secrets WHERE name LIKE 'epoch/%'")] == [
            f"epoch/a/b/c/{present + 2}"
        ]


SEEDS = "SELECT name FROM secrets WHERE name LIKE 'epoch/%'"


def test_the_seeds_of_a_key_that_nobody_asks_for_any_more_are_deleted_too(room, tmp_path):
    store, now = room.broker.store, room.broker.clock()
    present = int(now) // EPOCH_S
    epochs.seed_of(store, Resource("acme", "revoked", "x"), present - 1, now)
    epochs.seed_of(store, Resource("acme", "revoked", "x"), present, now)
    publisher = Publisher(room.broker, tmp_path / "log")
    publisher.sweep()
    assert len(store.rows(SEEDS)) == 2
    room.broker.clock = lambda: now + EPOCH_S
    publisher.sweep()
    assert store.rows(SEEDS) == [(f"epoch/acme/revoked/x/{present}",)]


def test_the_seeds_of_a_deleted_key_are_deleted_with_it_and_no_others(room):
    one, one_archive, _ = room.register(1)
    two, two_archive, _ = room.register(2, version=2)
    for name, archive in ((one, one_archive), (two, two_archive)):
        room.client().fetch_epoch(tuple(name), archive, broker_key(room))
    room.admin().delete_resource(one)
    [(left,)] = room.broker.store.rows(SEEDS)
    assert left.startswith(f"epoch/{two}/")


def test_an_epoch_seed_needs_the_policys_yes_too(tmp_path):
    with broker_room(tmp_path, rego=None) as room:
        name, archive, _ = room.register(1)
        with pytest.raises(ReleaseDenied):
            room.client().fetch_epoch(tuple(name), archive, broker_key(room))


# -- init-data ------------------------------------------------------------------------

TEXT = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"policy.rego" = "package x"\n'


def snp_claims(host_data):
    return Claims("snp", {"host_data": Claim(host_data.hex())}, bytes(64))


def test_init_data_that_the_hardware_vouches_for_becomes_claims():
    host_data = hashlib.sha256(TEXT.encode()).digest()
    assert check_init_data(TEXT, snp_claims(host_data)) == {"policy.rego": "package x"}


def test_a_longer_digest_is_cut_to_the_field():
    text = TEXT.replace("sha256", "sha384")
    assert check_init_data(text, snp_claims(hashlib.sha384(text.encode()).digest()[:32]))


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        (TEXT, snp_claims(bytes(32))),
        (TEXT + "\n", snp_claims(hashlib.sha256(TEXT.encode()).digest())),
        (TEXT.replace("sha256", "md5"), snp_claims(bytes(32))),
        ("version =", snp_claims(bytes(32))),
        (TEXT, Claims("simulated", {}, bytes(64))),
    ],
)
def test_init_data_that_nobody_vouches_for_is_refused(text, claims):
    with pytest.raises(MalformedInput, match="init-data"):
        check_init_data(text, claims)


def test_init_data_beside_evidence_without_a_field_for_it_is_refused(room):
    peer = Peer(room)
    peer.auth()
    body = peer.attestation()
    body["init-data"] = {"format": "toml", "body": TEXT}
    assert error_of(peer.attest(body))[1] == "AttestationError"


# -- vetoes and audit hooks --------------------------------------------------------------


class Guard:
    """A plugin that says no to one lineage, and keeps a copy of every entry."""

    def __init__(self):
        self.events = []

    @hookimpl
    def strongroom_veto_release(self, verdict, archive, context):
        return Denial("not on a Sunday") if archive.startswith("acme/secret/") else None

    @hookimpl
    def strongroom_audit(self, event):
        if event.get("event") == "epoch":
            raise RuntimeError("the second log is full")
        self.events.append(event)


@pytest.fixture
def guarded(tmp_path):
    plugins, guard = Plugins.load(), Guard()
    plugins._manager.register(guard, "guard")
    with broker_room(tmp_path, plugins=plugins) as room:
        room.guard = guard
        yield room


def test_one_veto_keeps_the_key_and_its_reason_stays_here(guarded):
    name, archive, _ = guarded.register(1, lineage="secret")
    with pytest.raises(ReleaseDenied) as refused:
        guarded.client().fetch(tuple(name), archive)
    assert "Sunday" not in str(refused.value)
    assert "guard: not on a Sunday" in guarded.guard.events[-1]["reason"]


class Slow:
    """A plugin whose veto takes a moment, in which an administrator acts."""

    def __init__(self):
        self.meanwhile = lambda: None

    @hookimpl
    def strongroom_veto_release(self, verdict, archive, context):
        self.meanwhile()


@pytest.mark.parametrize(
    "act",
    [
        lambda admin, name: admin.revoke("lineage", "acme/digits"),
        lambda admin, name: admin.raise_minimum_version("acme/digits", 2),
    ],
    ids=["revocation", "minimum version"],
)
def test_what_is_taken_back_while_a_release_is_decided_is_not_released(tmp_path, act):
    plugins, slow = Plugins.load(), Slow()
    plugins._manager.register(slow, "slow")
    with broker_room(tmp_path, plugins=plugins) as room:
        name, archive, _ = room.register(1)
        slow.meanwhile = lambda: act(room.admin(), name)
        with pytest.raises(ReleaseDenied):
            room.client().fetch(tuple(name), archive)
        assert room.admin().leases() == []


NOBODY = "package policy\n\nallow := false\n"


def test_a_policy_that_is_replaced_while_it_decides_releases_nothing_more(tmp_path):
    plugins, slow = Plugins.load(), Slow()
    plugins._manager.register(slow, "slow")
    with broker_room(tmp_path, plugins=plugins) as room:
        name, archive, _ = room.register(1)
        slow.meanwhile = lambda: room.admin().set_release_policy(NOBODY)
        with pytest.raises(BrokerUnreachable):  # no decision: the keeper asks again
            room.client(attempts=1).fetch(tuple(name), archive)
        with pytest.raises(ReleaseDenied):
            room.client().fetch(tuple(name), archive)
        assert room.admin().leases() == []


def test_of_two_policies_that_are_set_at_once_the_one_in_force_is_the_one_in_the_store(room, monkeypatch):
    broker, transaction = room.broker, room.broker.store.transaction
    second = threading.Thread(
        target=lambda: broker.set_release_policy(ReleasePolicy.parse(NOBODY), by="second"), daemon=True
    )

    @contextmanager
    def slow():
        outermost = broker.store._depth == 0
        with transaction():
            yield
        if outermost and threading.current_thread() is not second:
            second.start()
            second.join(1)  # it waits for us, or else is done now

    monkeypatch.setattr(broker.store, "transaction", slow)
    broker.set_release_policy(ReleasePolicy.parse("package policy\n\nallow := true\n"), by="first")
    second.join(10)
    assert broker.policies.release.text == broker.store.policy("release") == NOBODY


def test_a_second_log_that_fails_keeps_the_key(guarded):
    name, archive, _ = guarded.register(1)
    guarded.client().fetch(tuple(name), archive)
    before = guarded.broker.audit.size
    with pytest.raises(BrokerUnreachable, match="cannot decide"):
        guarded.client(attempts=1).fetch_epoch(tuple(name), archive, broker_key(guarded))
    assert guarded.broker.audit.size == before + 1  # the attestation; the refused release was rolled back
    assert "guard" in guarded.broker.journal.trouble()
    guarded.client().fetch(tuple(name), archive)
    assert guarded.broker.journal.trouble() == ""


def test_a_second_log_that_failed_once_keeps_a_broker_unhealthy_for_a_minute_only(guarded, monkeypatch):
    name, archive, _ = guarded.register(1)
    with pytest.raises(BrokerUnreachable):
        guarded.client(attempts=1).fetch_epoch(tuple(name), archive, broker_key(guarded))
    assert guarded.broker.journal.trouble()
    monkeypatch.setattr(journal, "TROUBLE_S", 0)
    assert guarded.broker.journal.trouble() == ""


def test_health_says_that_something_is_wrong_and_only_an_administrator_what(guarded):
    name, archive, _ = guarded.register(1)
    with pytest.raises(BrokerUnreachable):
        guarded.client(attempts=1).fetch_epoch(tuple(name), archive, broker_key(guarded))
    health = Peer(guarded).http.get(f"{guarded.url}/healthz", timeout=10)
    assert health.status_code == 503 and "guard" not in health.text
    assert "guard" in guarded.admin().status()["trouble"]


class Witness:
    """Cosigns with a key of its own, as another program would."""

    def __init__(self, answer=None):
        self.private, self.answer = Ed25519PrivateKey.generate(), answer

    @hookimpl
    def strongroom_cosign(self, checkpoint):
        if self.answer is not None:
            return self.answer
        body = checkpoint.split("\n\n")[0] + "\n"
        key = NoteKey("witness.example", public_octets(self.private.public_key()))
        return f"— witness.example {b64(key.key_hash + self.private.sign(body.encode()))}\n"


@pytest.mark.parametrize("answer", [None, "nonsense", "— a b\nc", "", 5])
def test_a_witness_signs_below_the_broker_and_nonsense_is_left_out(tmp_path, answer):
    plugins, witness = Plugins.load(), Witness(answer)
    plugins._manager.register(witness, "witness")
    with broker_room(tmp_path, plugins=plugins) as room:
        Publisher(room.broker, tmp_path / "log").publish()
        note = (tmp_path / "log" / "checkpoint").read_text()
        assert tiles.read(tmp_path / "log", room.broker.audit.key).entries
        assert note.count("\n— ") == (2 if answer is None else 1)
        if answer is None:
            stranger = NoteKey("witness.example", public_octets(witness.private.public_key()))
            with pytest.raises(AuditError, match="expected is"):  # its signature holds; the log is not its own
                Checkpoint.verify(note, stranger)


def test_without_a_plugin_of_that_name_nothing_is_attested(room):
    name, archive, _ = room.register(1)
    with pytest.raises(AttestationFailed):
        room.client(measurement=b"\xee" * 32).fetch(tuple(name), archive)
