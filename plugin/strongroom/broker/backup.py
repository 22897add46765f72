"""Copy a broker while it runs, and bring a copy back without turning back the clock on anything taken away.

docs/release.md section 13. A backup is a folder: the store, the root key as its provider keeps it, and
the settings. It is as secret as that provider makes it. Restoring replays, from the newest audit log that
can be had, every revocation, minimum version, limit and deletion that came after the backup.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key

from strongroom.broker import tiles
from strongroom.broker.audit import AuditLog, NoteKey, public_octets
from strongroom.broker.directory import Settings, open_store
from strongroom.broker.protocol import Resource
from strongroom.broker.store import Revocation, Store
from strongroom.errors import AuditError, ConfigurationInvalid, StoreError, StrongroomError

_FILES = ("broker.json", "root.key", "broker.pub", "tls.crt", "tls.key")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: how much of the log it had, what it replayed, and which keys the backup lacks."""

    entries: int
    replayed: int
    lost: tuple[str, ...]


def backup(directory: Path, into: Path) -> int:
    """Write a consistent copy of a broker, running or not, to a new folder; bytes of the store.

    Raises `ConfigurationInvalid`, `StoreError`.
    """
    Settings.load(directory)
    try:
        into.mkdir(mode=0o700, parents=True)
        with (
            closing(sqlite3.connect(f"file:{directory / 'store.db'}?mode=ro", uri=True, timeout=30)) as source,
            closing(sqlite3.connect(into / "store.db")) as copy,
        ):
            source.backup(copy)
        (into / "store.db").chmod(0o600)
        for name in _FILES:
            if (directory / name).exists():
                shutil.copy2(directory / name, into / name)
    except FileExistsError as error:
        raise ConfigurationInvalid(f"{into} exists already", hint="a backup goes to a new folder") from error
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the backup to {into} failed: {error}") from error
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
    fresh = directory / "restoring"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    fresh.chmod(0o700)
    store = open_store(fresh, settings, passphrase)
    try:
        identity = load_der_private_key(store.secret("identity"), None)
        if not isinstance(identity, Ed25519PrivateKey):
            raise StoreError("the backup's identity is of another kind than Ed25519")
        audit = AuditLog(store, identity, settings.name)
        newest = _newest(audit, directory, settings, passphrase, log)
        with store.transaction():
            lost = _replay(store, newest[audit.size :])
            replayed = len(newest) - audit.size
            for entry in newest[audit.size :]:
                audit.append(json.loads(entry))
            now = int(time.time() if clock is None else clock)
            audit.append({"at": now, "event": "restore", "replayed": replayed, "lost": len(lost)})
        entries = audit.size
    finally:
        store.close()
    _exchange(fresh, directory)
    return Restored(entries, replayed, lost)


def _newest(
    audit: AuditLog, directory: Path, settings: Settings, passphrase: str | None, log: Path | None
) -> Sequence[bytes]:
    """The longest log that continues the backup's."""
    key = NoteKey(audit.key.name, audit.key.public)
    known = audit.entries()
    candidates = [known]
    if (directory / "store.db").exists():
        candidates.append(_present(directory, key, passphrase))
    if log is not None:
        candidates.append(list(tiles.read(log, key).entries))
    for candidate in candidates:
        if candidate[: len(known)] != known[: len(candidate)]:
            raise AuditError(
                "the backup's audit log and a newer one have parted: one is not the beginning of the other",
                hint="is it a backup of this broker? keep both and find out before you go on",
            )
    return max(candidates, key=len)


def _present(directory: Path, key: NoteKey, passphrase: str | None) -> list[bytes]:
    """The verified log of the store that is about to be replaced."""
    try:
        store = open_store(directory, Settings.load(directory), passphrase)
    except StrongroomError as error:
        raise StoreError(
            f"the store in {directory} does not open, so what it revoked is not known: {error}",
            hint="move it away, restore into a new folder, and give --log an export of its audit log",
        ) from error
    try:
        identity = load_der_private_key(store.secret("identity"), None)
        if not isinstance(identity, Ed25519PrivateKey) or public_octets(identity.public_key()) != key.public:
            raise AuditError(f"the backup is not of the broker in {directory}")
        return AuditLog(store, identity, key.name).entries()
    finally:
        store.close()


def _replay(store: Store, entries: Sequence[bytes]) -> tuple[str, ...]:
    """Do again what took something away; the names of keys that came after the backup and are gone."""
    lost: dict[str, None] = {}
    for octets in entries:
        entry = json.loads(octets)
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
                lost.pop(entry["resource"], None)
            case "resource-put":
                # What the backup holds under that name is not what was stored last.
                store.delete_resource(Resource.parse(entry["resource"]))
                lost[entry["resource"]] = None
    return tuple(lost)


def _exchange(fresh: Path, directory: Path) -> None:
    """Put the restored files in place, the store last."""
    for suffix in ("-wal", "-shm"):
        (directory / f"store.db{suffix}").unlink(missing_ok=True)
        (fresh / f"store.db{suffix}").unlink(missing_ok=True)
    for name in (*_FILES[1:], "store.db", "broker.json"):
        if (fresh / name).exists():
            (fresh / name).replace(directory / name)
    shutil.rmtree(fresh)
