"""The owner or policy id under an archive's signature decides about its key: in Rego, in vetoes, in the log."""

from __future__ import annotations

import json
import sqlite3

import pytest
import typer
from broker.broker_in_a_room import broker_room
from doubles.models import plain_archive
from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey
from strongroom.broker import backup
from strongroom.broker.document import ModelKeyDocument
from strongroom.broker.protocol import Resource
from strongroom.broker.rego import ReleasePolicy, request_data
from strongroom.broker.rootkey import PlainFile
from strongroom.broker.serve import running
from strongroom.broker.store import SCHEMA_VERSION, ResourceFacts, Store
from strongroom.cli import key
from strongroom.cli.sealing import holder
from strongroom.errors import BrokerUnreachable, MalformedInput, ReleaseDenied, StoreError
from strongroom.hookspecs import Denial, hookimpl
from strongroom.keys import ArchiveDigest, ModelKey
from strongroom.plugins import Plugins
from typer.testing import CliRunner

HOSPITAL = """
package policy

import rego.v1

default allow := false

allow if {
	input.submods.cpu0
	data.owner == "hospital"
}
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    with broker_room(tmp_path_factory.mktemp("owners")) as room:
        room.admin().set_release_policy(HOSPITAL)
        yield room


def last(room):
    return json.loads(room.broker.audit.entries()[-1])


def test_a_policy_grants_by_owner_and_the_log_names_it(room):
    name, archive, key = room.register(1, owner="hospital")
    assert room.client().fetch(tuple(name), archive).key.reveal() == key.reveal()
    assert (last(room)["decision"], last(room)["owner"]) == ("granted", "hospital")


@pytest.mark.parametrize(("number", "owner"), [(2, "laboratory"), (3, "Hospital"), (4, "hospital "), (5, None)])
def test_a_policy_refuses_another_owner_and_none(room, number, owner):
    name, archive, _ = room.register(number, owner=owner)
    with pytest.raises(ReleaseDenied):
        room.client().fetch(tuple(name), archive)
    assert (last(room)["decision"], last(room).get("owner")) == ("refused", owner)


def test_an_epoch_seed_is_decided_by_owner_too(room):
    key = room.broker.public_key
    name, archive, _ = room.register(6, owner="hospital")
    assert room.client().fetch_epoch(tuple(name), archive, key).archive == archive
    name, archive, _ = room.register(7, owner="laboratory")
    with pytest.raises(ReleaseDenied):
        room.client().fetch_epoch(tuple(name), archive, key)


@pytest.mark.parametrize("owner", ["Krankenhaus Köln", "病院", "🏥 ward 7", 'a "quoted" \\ one', "x" * 256])
def test_a_policy_sees_the_owner_as_it_was_signed(owner):
    text = HOSPITAL.replace('"hospital"', json.dumps(owner, ensure_ascii=False))
    claims = {"submods": {"cpu0": {}}}
    policy = ReleasePolicy.parse(text)
    assert policy.decide(claims, request_data("resource", ("a", "b", "c"), {}, owner)).granted
    assert not policy.decide(claims, request_data("resource", ("a", "b", "c"), {}, owner[:-1])).granted


def test_what_an_archive_does_not_say_is_undefined():
    claims = {"submods": {"cpu0": {}}}
    data = request_data("resource", ("a", "b", "c"), {}, None)
    assert "owner" not in data
    for comparison in ('data.owner == "x"', 'data.owner != "x"', "data.owner == null"):
        policy = ReleasePolicy.parse(HOSPITAL.replace('data.owner == "hospital"', comparison))
        assert not policy.decide(claims, data).granted


def test_the_list_of_keys_shows_owners(room):
    found = {each["resource"]: each["owner"] for each in room.admin().resources()}
    name, _, _ = room.register(1, owner="hospital")
    assert found[str(name)] == "hospital" and None in found.values()


def test_a_veto_sees_the_owner(tmp_path):
    plugins, seen = Plugins.load(), []

    class Ward:
        @hookimpl
        def strongroom_veto_release(self, context):
            seen.append(dict(context))
            return Denial("not this ward") if context["owner"] == "ward 8" else None

    plugins._manager.register(Ward(), "ward")
    with broker_room(tmp_path, plugins=plugins) as room:
        name, archive, _ = room.register(1, owner="ward 7")
        room.client().fetch(tuple(name), archive)
        name, archive, _ = room.register(2, owner="ward 8")
        with pytest.raises(ReleaseDenied):
            room.client().fetch(tuple(name), archive)
        name, archive, _ = room.register(3)
        room.client().fetch(tuple(name), archive)
    assert [each["owner"] for each in seen] == ["ward 7", "ward 8", None]
    assert all(set(each) == {"tenant", "version", "owner", "keeper"} for each in seen)


def test_a_key_whose_owner_is_replaced_while_its_release_is_decided_is_decided_anew(tmp_path):
    plugins, meanwhile = Plugins.load(), []

    class Slow:
        @hookimpl
        def strongroom_veto_release(self):
            meanwhile.pop()()

    plugins._manager.register(Slow(), "slow")
    with broker_room(tmp_path, plugins=plugins) as room:
        room.admin().set_release_policy(HOSPITAL)
        name, archive, _ = room.register(1, owner="hospital")
        meanwhile.append(lambda: room.register(1, owner="laboratory"))
        with pytest.raises(BrokerUnreachable, match="cannot decide"):
            room.client(attempts=1).fetch(tuple(name), archive)
        with pytest.raises(ReleaseDenied):
            room.client().fetch(tuple(name), archive)


def test_sealing_with_an_owner_registers_it_and_so_does_adding_the_key_later(room, tmp_path):
    plain = plain_archive(tmp_path / "toy.mar", {"toy.py": b"def handle(data, context): ..."}, name="toy")
    admin_key, output, key_file = room.folder / "admin.key", tmp_path / "toy.sealed.mar", tmp_path / "toy.key"
    keep = holder(room.url, admin_key, key_file, output=output, version=1)
    sealed = seal_archive(plain, output, author=AuthorKey.generate(), owner="hospital", before_publish=keep)
    name = Resource(*sealed.resource)
    assert room.broker.store.resource_facts(name).owner == "hospital"
    room.broker.store.delete_resource(name)
    app = typer.Typer()
    key.register(app)
    words = ["key", "add", output, "--key", key_file, "--broker", room.url, "--admin-key", admin_key]
    result = CliRunner().invoke(app, [str(each) for each in words])
    assert result.exit_code == 0, result.exception
    assert room.broker.store.resource_facts(name).owner == "hospital"


# -- the document ---------------------------------------------------------------------------

DOCUMENT = ModelKeyDocument(ArchiveDigest(b"\1" * 32), ModelKey(b"\2" * 32), version=1, owner="hospital")


def test_a_document_with_an_owner_is_read_as_it_was_written_and_one_without_is_as_it_was():
    read = ModelKeyDocument.parse(DOCUMENT.serialise())
    assert (read.owner, read.serialise()) == ("hospital", DOCUMENT.serialise())
    bare = ModelKeyDocument(DOCUMENT.archive, DOCUMENT.key, version=1)
    assert b"owner" not in bare.serialise() and ModelKeyDocument.parse(bare.serialise()).owner is None


@pytest.mark.parametrize("owner", ["", "x" * 257, "ü" * 129, "two\nlines", "nul\0", 7, None, ["hospital"]], ids=repr)
def test_an_owner_that_no_signed_header_could_have_is_refused(owner):
    octets = json.dumps(json.loads(DOCUMENT.serialise()) | {"owner": owner}).encode()
    with pytest.raises(MalformedInput):
        ModelKeyDocument.parse(octets)


def test_half_a_surrogate_pair_is_no_owner():
    octets = DOCUMENT.serialise().replace(b'"hospital"', b'"\\ud800"')
    with pytest.raises(MalformedInput):
        ModelKeyDocument.parse(octets)


# -- stores of earlier releases ---------------------------------------------------------------


def made_old(path):
    """The store as the release before this one made it: format 1, without owners."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("ALTER TABLE resources DROP COLUMN owner")
    db.execute("PRAGMA user_version=1")
    db.close()


def test_a_store_of_the_release_before_goes_on_with_its_keys_and_learns_owners(tmp_path):
    with broker_room(tmp_path) as room:
        name, archive, key = room.register(1, lease_s=60)
    made_old(room.folder / "store.db")
    with running(room.folder, rego="development") as (url, broker):
        room.url, room.broker = url, broker
        assert broker.store.rows("PRAGMA user_version") == [(SCHEMA_VERSION,)]
        assert room.client().fetch(tuple(name), archive).key.reveal() == key.reveal()
        assert broker.store.resource_facts(name) == ResourceFacts(str(archive), 1, None, None)
        other, _, _ = room.register(2, owner="hospital")
        assert broker.store.resource_facts(other).owner == "hospital"


def test_a_backup_of_the_release_before_is_restored(tmp_path):
    with broker_room(tmp_path / "a") as room:
        name, archive, _ = room.register(1)
    made_old(room.folder / "store.db")
    backup.backup(room.folder, tmp_path / "copy")
    backup.restore(tmp_path / "copy", tmp_path / "again")
    store = Store(tmp_path / "again" / "store.db", PlainFile(tmp_path / "again" / "root.key").unlock())
    assert store.resource_facts(name) == ResourceFacts(str(archive), 1, None, None)
    store.close()


def test_another_root_key_changes_nothing_in_an_old_store(tmp_path):
    Store.create(tmp_path / "store.db", bytes(32)).close()
    made_old(tmp_path / "store.db")
    with pytest.raises(StoreError, match="does not open"):
        Store(tmp_path / "store.db", bytes([1]) * 32)
    assert sqlite3.connect(tmp_path / "store.db").execute("PRAGMA user_version").fetchone() == (1,)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1])
def test_a_store_of_no_known_format_is_refused(tmp_path, version):
    Store.create(tmp_path / "store.db", bytes(32)).close()
    db = sqlite3.connect(tmp_path / "store.db")
    db.execute(f"PRAGMA user_version={version}")
    db.close()
    with pytest.raises(StoreError, match=f"format {version}"):
        Store(tmp_path / "store.db", bytes(32))
