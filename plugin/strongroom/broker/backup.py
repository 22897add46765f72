"""Copy a broker while it runs, and bring a copy back without turning back the clock on anything taken away.

docs/release.md section 13. A backup is a folder: the store, the root key as its provider keeps it, and
the settings. It is as secret as that provider makes it. Restoring replays, from the newest audit log that
can be had, everything that took something away after the backup: revocations, minimum versions, limits, deleted keys
and removed administrators; and the leases, for whoever holds a key counts. A policy that was replaced after the backup
does not come back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.archive.keyfile import sync_folder
from strongroom.broker import epochs, leases, tiles
from strongroom.broker.audit import AuditLog, NoteKey
from strongroom.broker.directory import Settings, copied, exchanged, identity_of, occupied, open_log, open_store
from strongroom.broker.protocol import Resource
from strongroom.broker.store import Revocation, Store
from strongroom.errors import AuditError, ConfigurationInvalid, StoreError, StrongroomError

_FILES = ("broker.json", "root.key.new", "root.key", "broker.pub", "tls.crt", "tls.key")
"""`root.key.new` is what a rotation that was cut off left, and may be the key of the store. It comes before `root.key`,
whose name it gets when the broker starts: so no copy can miss both."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: how much of the log it had, what it replayed, and what the backup lacks.

    `lost` names keys, `administrators` key ids, and `policies` those (``release``, ``appraisal``) that have to be
    set again, since the log has only their digests.
    """

    entries: int
    replayed: int
    lost: tuple[str, ...] = ()
    administrators: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()


def backup(directory: Path, into: Path) -> int:
    """Write a consistent copy of a broker, running or not, to a new folder; bytes of the store.

    Raises `ConfigurationInvalid`, `StoreError`.
    """
    Settings.load(directory)
    with copied(directory):
        try:
            into.mkdir(mode=0o700, parents=True)
        except FileExistsError as error:
            raise ConfigurationInvalid(f"{into} exists already", hint="a backup goes to a new folder") from error
        except OSError as error:
            raise StoreError(f"the backup to {into} failed: {error}") from error
        try:
            return _copy(directory, into)
        except BaseException as error:
            shutil.rmtree(into, ignore_errors=True)  # half a backup would be taken for one
            if isinstance(error, OSError | sqlite3.Error):
                raise StoreError(f"the backup to {into} failed: {error}") from error
            raise


def _copy(directory: Path, into: Path) -> int:
    with (
        closing(sqlite3.connect(f"file:{directory / 'store.db'}?mode=ro", uri=True, timeout=30)) as source,
        closing(sqlite3.connect(into / "store.db")) as copy,
    ):
        source.backup(copy)
    (into / "store.db").chmod(0o600)
    for name in _FILES:
        with suppress(FileNotFoundError):
            shutil.copy2(directory / name, into / name)
    return (into / "store.db").stat().st_size


def restore(
    source: Path,
    directory: Path,
    *,
    passphrase: str | None = None,
    log: Path | None = None,
    clock: float | None = None,
) -> Restored:
    """Bring a backup back into `directory`, whose broker is stopped, or into a new folder.

    The log that decides what to replay is the longest of: the one in the store that is replaced, and an
    export (`log`). Each has to begin with the backup's own log, else `AuditError`: the two have parted.
    """
    settings = Settings.load(source)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with occupied(directory), exchanged(directory):
        fresh = directory / "restoring"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(source, fresh)
        fresh.chmod(0o700)
        store = open_store(fresh, settings, passphrase)
        try:
            audit = open_log(store, settings)
            newest, policies = _newest(audit, directory, passphrase, log)
            with store.transaction():
                replay = Replay(store, policies)
                for entry in newest[audit.size :]:
                    replay.again(json.loads(entry))
                replay.settle_policies()
                replayed = len(newest) - audit.size
                for entry in newest[audit.size :]:
                    audit.append(json.loads(entry))
                now = int(time.time() if clock is None else clock)
                audit.append({"at": now, "event": "restore", "replayed": replayed, "lost": len(replay.lost)})
            restored = Restored(audit.size, replayed, tuple(replay.lost), tuple(replay.made), tuple(replay.replaced))
        finally:
            store.close()
        _exchange(fresh, directory)
    return restored


def _newest(
    audit: AuditLog, directory: Path, passphrase: str | None, log: Path | None
) -> tuple[Sequence[bytes], Mapping[str, str]]:
    """(the longest log that continues the backup's, the texts of the policies that are in force now)."""
    key = NoteKey(audit.key.name, audit.key.public)
    known, policies = audit.entries(), dict[str, str]()
    candidates = [known]
    if (directory / "store.db").exists():
        present, policies = _present(directory, key, passphrase)
        candidates.append(present)
    if log is not None:
        candidates.append(list(tiles.read(log, key).entries))
    for candidate in candidates:
        if candidate[: len(known)] != known[: len(candidate)]:
            raise AuditError(
                "the backup's audit log and a newer one have parted: one is not the beginning of the other",
                hint="is it a backup of this broker? keep both and find out before you go on",
            )
    return max(candidates, key=len), policies


def _present(directory: Path, key: NoteKey, passphrase: str | None) -> tuple[list[bytes], dict[str, str]]:
    """The verified log, and the policies, of the store that is about to be replaced."""
    try:
        store = open_store(directory, Settings.load(directory), passphrase)
    except StrongroomError as error:
        raise StoreError(
            f"the store in {directory} does not open, so what it revoked is not known: {error}",
            hint="move it away, restore into a new folder, and give --log an export of its audit log",
        ) from error
    try:
        present = AuditLog(store, identity_of(store), key.name)
        if present.key.public != key.public:
            raise AuditError(f"the backup is not of the broker in {directory}")
        found = {name: text for name in ("release", "appraisal") if (text := store.policy(name)) is not None}
        return present.entries(), found
    finally:
        store.close()


class Replay:
    """Do again, in an older store, what took something away since, and the leases; remembers what it cannot bring back.

    `policies` are texts that may be in force, by name: the log has only their digests.
    """

    def __init__(self, store: Store, policies: Mapping[str, str]) -> None:
        self._store = store
        self._texts = policies
        self.lost: dict[str, None] = {}
        self.made: dict[str, None] = {}
        self.replaced: dict[str, None] = {}
        self._policies: dict[str, tuple[str, int]] = {}

    def again(self, entry: Mapping[str, Any]) -> None:
        """One entry of the newer log; what grants nothing and takes nothing is left alone."""
        store = self._store
        match entry.get("event"):
            case "revoke":
                store.revoke(Revocation(entry["kind"], entry["value"], entry.get("reason", ""), entry["at"]))
            case "unrevoke":
                store.unrevoke(entry["kind"], entry["value"])
            case "minimum-version":
                store.raise_minimum_version(entry["lineage"], entry["version"])
            case "limit":
                store.set_limit(entry["lineage"], keepers=entry.get("keepers"), lease_s=entry.get("lease_s"))
            case "resource-delete":
                store.delete_resource(Resource.parse(entry["resource"]))
                epochs.forget(store, Resource.parse(entry["resource"]))
                self.lost.pop(entry["resource"], None)
            case "resource-put":
                # What the backup holds under that name is not what was stored last.
                store.delete_resource(Resource.parse(entry["resource"]))
                self.lost[entry["resource"]] = None
            case "administrator":
                self.made[entry["key"]] = None  # its public key is not in the log
            case "administrator-removed":
                store.write("DELETE FROM administrators WHERE key_id = ?", entry["key"])
                self.made.pop(entry["key"], None)
            case "release" if entry.get("decision") == "granted" and entry.get("lease"):
                leases.restored(
                    store, entry["lease"], entry["resource"], entry.get("keeper", ""),
                    at=entry["at"], seconds=entry.get("lease_s"),
                )  # fmt: skip
            case "lease-end":
                leases.end(store, entry["lease"], entry["at"])
            case "policy-set":
                self._policies[entry["policy"]] = (entry["digest"], entry["at"])

    def settle_policies(self) -> None:
        """The policies that were set last are in force. One whose text is gone leaves none, so nothing is released."""
        for name, (digest, at) in self._policies.items():
            texts = filter(None, (self._texts.get(name), self._store.policy(name)))
            text = next((each for each in texts if hashlib.sha256(each.encode()).hexdigest() == digest), None)
            if text is None:
                self._store.write("DELETE FROM policies WHERE name = ?", name)
                self.replaced[name] = None
            else:
                self._store.set_policy(name, text, at=at)


def _exchange(fresh: Path, directory: Path) -> None:
    """Put the restored files in place; a cut after any step leaves a folder that can be restored again.

    A folder with a store keeps one that opens: the restored root key waits beside the old one, as in a rotation, until
    the store is there.
    """
    if not (directory / "broker.json").exists():
        (fresh / "broker.json").replace(directory / "broker.json")
    for suffix in ("-wal", "-shm"):
        (directory / f"store.db{suffix}").unlink(missing_ok=True)
        (fresh / f"store.db{suffix}").unlink(missing_ok=True)
    with (fresh / "root.key").open("rb") as key:
        os.fsync(key.fileno())
    (fresh / "root.key").replace(directory / "root.key.new")
    sync_folder(directory)
    (fresh / "store.db").replace(directory / "store.db")
    sync_folder(directory)
    (directory / "root.key.new").replace(directory / "root.key")
    for name in ("broker.pub", "tls.crt", "tls.key", "broker.json"):
        if (fresh / name).exists():
            (fresh / name).replace(directory / name)
    sync_folder(directory)
    shutil.rmtree(fresh)
