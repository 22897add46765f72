"""Backups: taken while running, brought back without undoing what was taken away."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from broker.broker_in_a_room import APPRAISAL, broker_room
from strongroom.broker import directory, leases, tiles
from strongroom.broker.backup import Replay, backup, restore
from strongroom.broker.directory import make_administrator, open_broker, remove_administrator
from strongroom.broker.protocol import Challenge, Request, Resource
from strongroom.broker.refusals import Refused
from strongroom.broker.rotation import rotate_root_key
from strongroom.broker.serve import running
from strongroom.broker.sessions import Session
from strongroom.broker.statement import KeeperStatement
from strongroom.broker.store import Revocation, Store
from strongroom.encoding import b64url
from strongroom.errors import AuditError, ConfigurationInvalid, StoreError


@pytest.fixture
def history(tmp_path):
    """A broker with a backup in the middle of its life; (folder, backup folder, export of its whole log)."""
    with broker_room(tmp_path) as room:
        kept, _, _ = room.register(1, version=1)
        deleted, _, _ = room.register(2, version=2)
        backup(room.folder, tmp_path / "backup")
        later, _, _ = room.register(3, version=3)
        admin = room.admin()
        admin.revoke("archive", "01" * 32)
        admin.raise_minimum_version("acme/digits", 2)
        admin.delete_resource(deleted)
        log = room.broker.audit
        tiles.write(tmp_path / "log", log.entries(), log.checkpoint())
        folder = room.folder
    return folder, tmp_path / "backup", tmp_path / "log", (kept, deleted, later)


def facts(folder):
    broker = open_broker(folder)
    try:
        store = broker.store
        names = [row[0] for row in store.rows("SELECT path FROM resources ORDER BY path")]
        revoked, minimum = store.revoked("archive", "01" * 32), store.minimum_version("acme/digits")
        return names, revoked, minimum, broker.audit.size
    finally:
        store.close()


def test_a_restore_over_a_store_keeps_its_revocations_versions_and_deletions(history):
    folder, source, _, (kept, _, later) = history
    restored = restore(source, folder)
    assert facts(folder) == ([str(kept)], True, 2, restored.entries)
    assert restored.lost == (str(later),) and restored.replayed == 4


def test_a_restore_after_a_lost_disk_takes_them_from_an_export_of_the_log(history, tmp_path):
    _, source, log, (kept, _, _) = history
    restored = restore(source, tmp_path / "new", log=log)
    assert facts(tmp_path / "new") == ([str(kept)], True, 2, restored.entries)


LEASES = "SELECT id, path, keeper, granted_at, renewed_at, expires_at, ended_at FROM leases ORDER BY id"


def test_leases_that_were_granted_renewed_and_ended_after_the_backup_are_in_the_restored_store(tmp_path):
    """Else a limit would let others in beside those who still hold the key."""
    with broker_room(tmp_path) as room:
        name, archive, _ = room.register(1, lease_s=600)
        room.admin().set_limit("acme/digits", keepers=3)
        clients = [room.client(statement=KeeperStatement(bytes([number]) * 16)) for number in range(3)]
        clients[0].fetch(tuple(name), archive)
        backup(room.folder, tmp_path / "backup")
        room.admin().set_limit("acme/digits", keepers=3, lease_s=300)
        for client in clients:
            lease = client.fetch(tuple(name), archive).lease
        room.admin().end_lease(lease)
        endless, other, _ = room.register(2, lineage="endless")
        room.client().fetch(tuple(endless), other)  # a keeper without a name
        held = room.broker.store.rows(LEASES)
    restore(tmp_path / "backup", room.folder)
    with closing(open_broker(room.folder)) as broker:
        assert broker.store.rows(LEASES) == held
        with pytest.raises(Refused, match="already"):
            broker.store.set_limit("acme/digits", keepers=2, lease_s=300)
            session = Session("s", Request("simulated"), Challenge("n"), 0, keeper="ff" * 16)
            leases.grant(broker.store, session, name, lease_s=600, now=int(broker.clock()))


def test_a_restore_with_nothing_newer_is_the_backup(history, tmp_path):
    _, source, _, (kept, deleted, _) = history
    restore(source, tmp_path / "new")
    names, revoked, minimum, _ = facts(tmp_path / "new")
    assert (names, revoked, minimum) == ([str(kept), str(deleted)], False, 0)


STRICTER = APPRAISAL.replace('name = "tests"', 'name = "stricter"')


@pytest.fixture
def people(tmp_path):
    """A backup, after which an administrator was removed, another made, and both policies replaced."""
    with broker_room(tmp_path) as room:
        old = make_administrator(room.folder, tmp_path / "old.key", role="auditor")
        backup(room.folder, tmp_path / "backup")
        remove_administrator(room.folder, old)
        new = make_administrator(room.folder, tmp_path / "new.key", role="auditor")
        room.admin().set_release_policy("package policy\n\nallow := false\n")
        room.admin().set_appraisal_policy(STRICTER)
        log = room.broker.audit
        tiles.write(tmp_path / "log", log.entries(), log.checkpoint())
        folder = room.folder
    return folder, tmp_path / "backup", tmp_path / "log", old, new


def in_force(folder):
    broker = open_broker(folder)
    try:
        known = {row[0] for row in broker.store.rows("SELECT key_id FROM administrators")}
        return known, broker.store.policy("release"), broker.policies.appraisal
    finally:
        broker.close()


def test_a_removed_administrator_stays_removed_and_a_later_one_is_named(people, tmp_path):
    _, source, log, old, new = people
    restored = restore(source, tmp_path / "elsewhere", log=log)
    assert restored.administrators == (new,)
    assert old not in in_force(tmp_path / "elsewhere")[0]


def test_a_policy_that_was_replaced_does_not_come_back(people, tmp_path):
    """The backup's may have been too generous; without one nothing is released."""
    _, source, log, _, _ = people
    restored = restore(source, tmp_path / "elsewhere", log=log)
    assert set(restored.policies) == {"release", "appraisal"}
    assert in_force(tmp_path / "elsewhere")[1:] == (None, None)


def test_over_a_store_the_policies_in_force_stay_in_force(people):
    folder, source, _, _, _ = people
    assert restore(source, folder).policies == ()
    _, release, appraisal = in_force(folder)
    assert release == "package policy\n\nallow := false\n" and appraisal.name == "stricter"


def test_a_running_broker_is_neither_restored_nor_rotated_nor_served_twice(tmp_path):
    with broker_room(tmp_path) as room:
        backup(room.folder, tmp_path / "backup")
        with pytest.raises(ConfigurationInvalid, match="is running"):
            restore(tmp_path / "backup", room.folder)
        with pytest.raises(ConfigurationInvalid, match="is running"):
            rotate_root_key(room.folder)
        with pytest.raises(ConfigurationInvalid, match="is running"), running(room.folder):
            pass
        name, archive, _ = room.register(1)
        room.client().fetch(tuple(name), archive)
    restore(tmp_path / "backup", room.folder)
    rotate_root_key(room.folder)


def test_a_killed_broker_leaves_no_lock_behind(tmp_path):
    from broker.test_broker_faults import BrokerProcess

    directory.init(tmp_path / "broker")
    backup(tmp_path / "broker", tmp_path / "backup")
    process = BrokerProcess(tmp_path / "broker")
    process.start()
    with pytest.raises(ConfigurationInvalid, match="is running"):
        restore(tmp_path / "backup", tmp_path / "broker")
    process.kill()
    restore(tmp_path / "backup", tmp_path / "broker")


# -- rotation -----------------------------------------------------------------------------


def test_a_rotation_is_in_the_log(tmp_path):
    with broker_room(tmp_path) as room:
        room.register(1)
    count = rotate_root_key(room.folder)
    broker = open_broker(room.folder)
    assert json.loads(broker.audit.entries()[-1]) | {"at": 0} == {"at": 0, "event": "rotate", "values": count}
    broker.close()


class Cut(Exception):
    """A rotation was cut off."""


def cut_off(folder, monkeypatch, moment):
    """A rotation of this broker that ends before or after its store is under the fresh key."""

    def cut(*_):
        raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        if moment == "before the store":
            patch.setattr(Store, "reseal", cut)
        else:
            patch.setattr(Path, "replace", cut)
        rotate_root_key(folder)


MOMENTS = pytest.mark.parametrize("moment", ["before the store", "after the store"])


@MOMENTS
def test_a_rotation_that_was_cut_off_leaves_a_store_that_opens(tmp_path, monkeypatch, moment):
    with broker_room(tmp_path) as room:
        name, _, key = room.register(1)
    cut_off(room.folder, monkeypatch, moment)
    for _ in range(2):
        broker = open_broker(room.folder)
        assert json.loads(broker.store.resource(name))["key"] == b64url(key.reveal())
        broker.close()
    rotate_root_key(room.folder)
    open_broker(room.folder).close()


@MOMENTS
def test_a_backup_after_a_rotation_that_was_cut_off_opens_too(tmp_path, monkeypatch, moment):
    directory.init(tmp_path / "broker")
    cut_off(tmp_path / "broker", monkeypatch, moment)
    backup(tmp_path / "broker", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "new")
    open_broker(tmp_path / "new").close()


def test_a_broker_is_not_rotated_while_a_backup_is_made_nor_the_other_way_round(tmp_path, monkeypatch):
    directory.init(tmp_path / "broker")
    seen = []

    def meanwhile(act, real):
        def called(*arguments, **options):
            with pytest.raises(ConfigurationInvalid) as refused:
                act()
            seen.append(str(refused.value))
            return real(*arguments, **options)

        return called

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", meanwhile(lambda: rotate_root_key(tmp_path / "broker"), shutil.copy2))
        backup(tmp_path / "broker", tmp_path / "backup")
    assert seen and all("a backup" in each for each in seen)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "reseal", meanwhile(lambda: backup(tmp_path / "broker", tmp_path / "other"), Store.reseal))
        rotate_root_key(tmp_path / "broker")
    assert "rotated" in seen[-1] and not (tmp_path / "other").exists()


def test_nobody_makes_or_forgets_an_administrator_between_the_last_steps_of_a_rotation(tmp_path, monkeypatch):
    """Whoever opened the store then gave the fresh key its name, and the rotation ended in a traceback."""
    folder, close, seen = tmp_path / "broker", Store.close, []
    directory.init(folder)

    def closed(self):
        close(self)
        monkeypatch.setattr(Store, "close", close)
        for act in (
            lambda: make_administrator(folder, tmp_path / "x.key", role="auditor"),
            lambda: remove_administrator(folder, "00" * 16),
        ):
            with pytest.raises(ConfigurationInvalid, match="restored or rotated") as refused:
                act()
            seen.append(refused)

    monkeypatch.setattr(Store, "close", closed)
    rotate_root_key(folder)
    assert len(seen) == 2
    make_administrator(folder, tmp_path / "x.key", role="auditor")


def test_an_administrator_who_is_removed_during_a_restore_is_not_forgotten(tmp_path, monkeypatch):
    folder, settle = tmp_path / "broker", Replay.settle_policies
    directory.init(folder)
    old = make_administrator(folder, tmp_path / "old.key", role="auditor")
    backup(folder, tmp_path / "backup")

    def meanwhile(self):
        with pytest.raises(ConfigurationInvalid, match="restored or rotated"):
            remove_administrator(folder, old)
        settle(self)

    monkeypatch.setattr(Replay, "settle_policies", meanwhile)
    restore(tmp_path / "backup", folder)


def test_a_store_whose_fresh_key_got_its_name_meanwhile_opens(tmp_path, monkeypatch):
    """A broker that starts after a cut rotation, and `broker administrator`, at the same moment."""
    folder = tmp_path / "broker"
    directory.init(folder)
    cut_off(folder, monkeypatch, "after the store")
    provider = directory.provider

    def slow(*arguments, file="root.key"):
        if file == "root.key.new" and (folder / file).exists():
            (folder / file).rename(folder / "root.key")
        return provider(*arguments, file=file)

    monkeypatch.setattr(directory, "provider", slow)
    open_broker(folder).close()


def test_a_backup_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    directory.init(tmp_path / "broker")
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(StoreError, match="No space left"):
        backup(tmp_path / "broker", tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("act", ["rotate", "restore"])
def test_the_name_of_an_exchanged_root_key_is_on_the_disk_when_it_is_done(tmp_path, monkeypatch, act):
    folder = tmp_path / "broker"
    directory.init(folder)
    backup(folder, tmp_path / "backup")
    done, replace, fsync = [], Path.replace, os.fsync
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append(Path(to).name), replace(self, to))[1])
    monkeypatch.setattr(os, "fsync", lambda number: (done.append(os.fstat(number).st_ino), fsync(number))[1])
    rotate_root_key(folder) if act == "rotate" else restore(tmp_path / "backup", folder)
    assert folder.stat().st_ino in done[done.index("root.key") :]


STEPS = pytest.mark.parametrize("step", range(5))
"""Names that a restore gives: two of the root key, and those of store, public key and settings."""


@pytest.fixture
def rotated(tmp_path):
    """A backup, after which something was revoked and the root key rotated; (folder, backup folder)."""
    folder = tmp_path / "broker"
    directory.init(folder)
    backup(folder, tmp_path / "backup")
    with closing(open_broker(folder)) as broker, broker.store.transaction():
        broker.store.revoke(Revocation("archive", "01" * 32, "", 5))
        broker.journal.record({"event": "revoke", "kind": "archive", "value": "01" * 32})
    rotate_root_key(folder)
    return folder, tmp_path / "backup"


def restore_that_is_cut(source, folder, monkeypatch, step):
    """A restore that ends before it gives a name for the `step`th time."""
    given, replace = [], Path.replace

    def counted(self, target):
        if len(given) == step:
            raise Cut
        given.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Path, "replace", counted)
        restore(source, folder)


@STEPS
def test_a_restore_that_was_cut_off_leaves_a_broker_that_opens_and_can_be_restored(rotated, monkeypatch, step):
    folder, source = rotated
    restore_that_is_cut(source, folder, monkeypatch, step)
    assert facts(folder)[1], "what was revoked is revoked in the old store and in the restored one"
    restore_that_is_cut(source, folder, monkeypatch, step)
    restore(source, folder)
    assert facts(folder)[1] and not list(folder.glob("root.key.new"))
    rotate_root_key(folder)


@STEPS
def test_a_restore_into_a_new_folder_that_was_cut_off_can_be_done_again(rotated, tmp_path, monkeypatch, step):
    _, source = rotated
    restore_that_is_cut(source, tmp_path / "new", monkeypatch, step)
    restore(source, tmp_path / "new")
    open_broker(tmp_path / "new").close()


def test_the_restored_log_continues_the_old_one(history, tmp_path):
    from strongroom.broker.audit import Checkpoint, NoteKey

    folder, source, log, _ = history
    restore(source, folder)
    broker = open_broker(folder)
    key = NoteKey.parse(broker.audit.key.serialise())
    older = Checkpoint.verify((log / "checkpoint").read_text(), key)
    tiles.write(tmp_path / "after", broker.audit.entries(), broker.audit.checkpoint())
    broker.store.close()
    tiles.extends(tiles.read(tmp_path / "after", key), older)


def test_a_log_that_has_parted_from_the_backup_is_refused(history, tmp_path):
    folder, source, _, _ = history
    restore(source, tmp_path / "twin")
    with running(tmp_path / "twin") as (_, broker):
        broker.journal.record({"event": "elsewhere"})
    with pytest.raises(AuditError, match="parted"):
        restore(tmp_path / "twin", folder)


def test_a_backup_of_another_broker_is_refused(history, tmp_path):
    folder, _, _, _ = history
    directory.init(tmp_path / "other")
    backup(tmp_path / "other", tmp_path / "other-backup")
    with pytest.raises(AuditError):
        restore(tmp_path / "other-backup", folder)


def test_a_store_that_does_not_open_is_not_silently_replaced(history):
    folder, source, _, _ = history
    (folder / "store.db").write_bytes(b"ruined")
    with pytest.raises(StoreError, match="what it revoked is not known"):
        restore(source, folder)


def test_a_backup_never_overwrites(history):
    folder, source, _, _ = history
    with pytest.raises(ConfigurationInvalid, match="exists already"):
        backup(folder, source)


def test_a_backup_under_load_is_whole(tmp_path):
    """Releases go on while the copy is made, and what was acknowledged before it is in it."""
    import threading

    with broker_room(tmp_path) as room:
        name, archive, _ = room.register(1)
        stop, done = threading.Event(), []

        def keeper():
            while not stop.is_set():
                done.append(room.client().fetch(tuple(name), archive))

        thread = threading.Thread(target=keeper)
        thread.start()
        try:
            for number in range(3):
                room.admin().put_resource(Resource("a", "b", f"n{number}"), b"x")
                backup(room.folder, tmp_path / f"copy{number}")
        finally:
            stop.set()
            thread.join()
    assert done
    for number in range(3):
        restore(tmp_path / f"copy{number}", tmp_path / f"back{number}")
        assert f"a/b/n{number}" in facts(tmp_path / f"back{number}")[0]
