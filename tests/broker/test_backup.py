"""Backups: taken while running, brought back without undoing what was taken away."""

from __future__ import annotations

import pytest
from broker.broker_in_a_room import broker_room
from strongroom.broker.backup import backup, restore
from strongroom.broker.directory import open_broker
from strongroom.broker.protocol import Resource
from strongroom.broker.serve import running
from strongroom.errors import AuditError, ConfigurationInvalid, StoreError


@pytest.fixture
def history(tmp_path):
    """A broker with a backup in the middle of its life; (folder, backup folder, export of its whole log)."""
    from strongroom.broker import tiles

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


def test_a_restore_with_nothing_newer_is_the_backup(history, tmp_path):
    _, source, _, (kept, deleted, _) = history
    restore(source, tmp_path / "new")
    names, revoked, minimum, _ = facts(tmp_path / "new")
    assert (names, revoked, minimum) == ([str(kept), str(deleted)], False, 0)


def test_the_restored_log_continues_the_old_one(history, tmp_path):
    from strongroom.broker import tiles
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
    from strongroom.broker import directory

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
