"""What a broker keeps: one SQLite file in WAL mode, secrets in it sealed under the root key.

Every change is one transaction with the audit entry that describes it, and `synchronous=FULL`: what was
acknowledged survives a kill at any instant. Secrets are AES-256-GCM under keys derived from the root key,
with their place in the store as associated data, so that a row moved elsewhere does not open.

Nothing here decides who may read what; that is `release` and `admin`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.broker.protocol import Resource
from strongroom.encoding import labelled
from strongroom.errors import MalformedInput, StoreError

SCHEMA_VERSION = 2
RESOURCE_LIMIT = 65536
"""Bytes of one stored resource; keys belong here, not models."""

_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (name TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE resources (
  path TEXT PRIMARY KEY, sealed BLOB NOT NULL, added_at INTEGER NOT NULL,
  archive TEXT, version INTEGER, author TEXT, owner TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE policies (name TEXT PRIMARY KEY, text TEXT NOT NULL, set_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE administrators (
  key_id TEXT PRIMARY KEY, public BLOB NOT NULL, role TEXT NOT NULL, repository TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE minimum_versions (lineage TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE revocations (
  kind TEXT NOT NULL, value TEXT NOT NULL, reason TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;
CREATE TABLE limits (lineage TEXT PRIMARY KEY, keepers INTEGER, lease_s INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE leases (
  id TEXT PRIMARY KEY, path TEXT NOT NULL, keeper TEXT NOT NULL, measurement TEXT NOT NULL,
  granted_at INTEGER NOT NULL, renewed_at INTEGER NOT NULL, expires_at INTEGER, ended_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (number INTEGER PRIMARY KEY, entry BLOB NOT NULL, leaf BLOB NOT NULL) STRICT;
CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT;
"""

_MIGRATIONS = {1: "ALTER TABLE resources ADD COLUMN owner TEXT"}
"""Format of an earlier release → what makes the next format of it."""

_INDEX = "CREATE INDEX IF NOT EXISTS leases_by_keeper ON leases (path, keeper)"


@dataclass(frozen=True, slots=True)
class Revocation:
    """Something whose keys are no longer released: `kind` is one of `REVOCABLE`."""

    kind: str
    value: str
    reason: str
    at: int


@dataclass(frozen=True, slots=True)
class ResourceFacts:
    """What stands beside a resource in the clear: of a model key digest, version, author and owner, where known."""

    archive: str | None = None
    version: int | None = None
    author: str | None = None
    owner: str | None = None


REVOCABLE = ("archive", "lineage", "author", "measurement", "keeper")


def spelled(kind: str, value: str) -> str:
    """A revocable value as it is kept and compared: hex and identities in small letters, a lineage as it stands."""
    return value if kind == "lineage" else value.lower()


def _cipher(root_key: bytes) -> AESGCM:
    derive = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"strongroom store v1")
    return AESGCM(derive.derive(root_key))


class Store:
    """One broker's store. Safe to use from many threads; one of them writes at a time."""

    def __init__(self, path: Path, root_key: bytes) -> None:
        """Open an existing store; raises `StoreError`, also for another root key."""
        if not path.is_file():
            raise StoreError(f"no store at {path}", hint="strongroom broker init makes one")
        self._begin(path, root_key)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.execute("PRAGMA trusted_schema=OFF")
            version = self._format()
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be opened as a store: {error}") from error
        if version != SCHEMA_VERSION and version not in _MIGRATIONS:
            raise StoreError(f"{path} is a store of format {version}, this release reads up to {SCHEMA_VERSION}")
        self.secret("root-key-check")  # the wrong root key is found now, not at the first release
        if version != SCHEMA_VERSION:
            self._migrate()
        self._do(_INDEX)  # stores of earlier releases have another
        self._respell()

    def _migrate(self) -> None:
        """Bring a store of an earlier release to today's format, all of it or nothing."""
        with self.transaction():
            while (version := self._format()) in _MIGRATIONS:  # looked at again: another process may have been first
                self._do(_MIGRATIONS[version])
                self._do(f"PRAGMA user_version={version + 1}")

    def _respell(self) -> None:
        """Earlier releases kept revoked keepers as an administrator wrote them, and compared capitals with nothing."""
        given = [each for each in self.revocations() if each.value != spelled(each.kind, each.value)]
        if given:
            with self.transaction():
                for each in given:
                    self.write("DELETE FROM revocations WHERE kind = ? AND value = ?", each.kind, each.value)
                    self.revoke(each)

    def _format(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _begin(self, path: Path, root_key: bytes) -> None:
        self.path = path
        self.trouble = ""
        """Why the last change could not be made; empty where it could."""
        self._lock = threading.RLock()
        self._depth = 0
        self._cipher = _cipher(root_key)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be opened as a store: {error}") from error

    @classmethod
    def create(cls, path: Path, root_key: bytes) -> Store:
        """Make an empty store for its owner's eyes only; raises `StoreError` where something stands already."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            db = sqlite3.connect(path, isolation_level=None)
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            db.close()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"a store at {path} cannot be made: {error}") from error
        store = cls.__new__(cls)
        store._begin(path, root_key)
        store.keep_secret("root-key-check", b"strongroom")
        store.close()
        return cls(path, root_key)

    def close(self) -> None:
        """Close the file; the store is of no use after that."""
        with self._lock:
            self._db.close()

    # -- transactions -----------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable once left; nests. Raises `StoreError` (a full disk among others)."""
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            self._do("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._depth = 0
                self._do("COMMIT")
                self.trouble = ""
            except BaseException:
                self._depth = 0
                if self._db.in_transaction:
                    self._db.rollback()
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the store, whatever other processes write meanwhile; for queries alone."""
        with self._lock:
            if self._depth:
                yield
                return
            self._do("BEGIN")
            try:
                yield
            finally:
                self._db.rollback()

    def _do(self, statement: str, *values: Any) -> sqlite3.Cursor:
        with self._lock:
            try:
                return self._db.execute(statement, values)
            except sqlite3.Error as error:
                self.trouble = f"the broker's store cannot be used: {error}"
                raise StoreError(self.trouble, hint="is the disk full, or the file damaged?") from error

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StoreError(f"the broker's store cannot be read: {error}") from error

    def write(self, statement: str, *values: Any) -> int:
        """One change inside `transaction`; how many rows it touched."""
        with self.transaction():
            return self._do(statement, *values).rowcount

    # -- sealed values ----------------------------------------------------------

    def _seal(self, place: str, octets: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, octets, labelled("strongroom store place v1", place.encode()))

    def _open(self, place: str, sealed: bytes) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], labelled("strongroom store place v1", place.encode()))
        except (InvalidTag, ValueError) as error:
            raise StoreError(
                f"{place} in the store does not open", hint="another root key, or somebody changed the file"
            ) from error

    def secret(self, name: str) -> bytes:
        """One of the broker's own secrets; raises `StoreError` where it is missing or does not open."""
        rows = self.rows("SELECT sealed FROM secrets WHERE name = ?", name)
        if not rows:
            raise StoreError(f"the store holds no {name}")
        return self._open(f"secret/{name}", rows[0][0])

    def keep_secret(self, name: str, octets: bytes) -> None:
        """Seal and keep one of the broker's own secrets."""
        self.write("INSERT OR REPLACE INTO secrets VALUES (?, ?)", name, self._seal(f"secret/{name}", octets))

    def reseal(self, root_key: bytes, token_key: bytes) -> int:
        """Seal every value under another root key, and replace the token key; how many values there are."""
        with self.transaction():
            opened = [
                ("secrets", "name", name, f"secret/{name}", self._open(f"secret/{name}", sealed))
                for name, sealed in self.rows("SELECT name, sealed FROM secrets")
            ] + [
                ("resources", "path", path, f"resource/{path}", self._open(f"resource/{path}", sealed))
                for path, sealed in self.rows("SELECT path, sealed FROM resources")
            ]
            old, self._cipher = self._cipher, _cipher(root_key)
            try:
                for table, column, name, place, octets in opened:
                    kept = token_key if place == "secret/token-key" else octets
                    statement = f"UPDATE {table} SET sealed = ? WHERE {column} = ?"  # noqa: S608 - two constants
                    self.write(statement, self._seal(place, kept), name)
            except BaseException:
                self._cipher = old
                raise
        return len(opened)

    # -- resources --------------------------------------------------------------

    def put_resource(
        self,
        name: Resource,
        octets: bytes,
        *,
        at: int,
        archive: str | None = None,
        version: int | None = None,
        author: str | None = None,
        owner: str | None = None,
    ) -> None:
        """Keep a resource, replacing one of that name. Raises `MalformedInput` for more than `RESOURCE_LIMIT`."""
        if len(octets) > RESOURCE_LIMIT:
            raise MalformedInput(f"a resource of {len(octets)} bytes, the limit is {RESOURCE_LIMIT}")
        self.write(
            "INSERT OR REPLACE INTO resources (path, sealed, added_at, archive, version, author, owner)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            str(name), self._seal(f"resource/{name}", octets), at, archive, version, author, owner,
        )  # fmt: skip

    def resource(self, name: Resource) -> bytes | None:
        """The bytes of a resource, or None."""
        rows = self.rows("SELECT sealed FROM resources WHERE path = ?", str(name))
        return self._open(f"resource/{name}", rows[0][0]) if rows else None

    def resource_facts(self, name: Resource) -> ResourceFacts | None:
        """What is known of a resource; None where there is no such resource."""
        rows = self.rows("SELECT archive, version, author, owner FROM resources WHERE path = ?", str(name))
        return ResourceFacts(*rows[0]) if rows else None

    def delete_resource(self, name: Resource) -> bool:
        """Forget a resource; whether there was one."""
        return self.write("DELETE FROM resources WHERE path = ?", str(name)) > 0

    # -- policies, revocations, minimum versions, limits ---------------------------

    def policy(self, name: str) -> str | None:
        """The text of the policy ``release`` or ``appraisal``, or None."""
        rows = self.rows("SELECT text FROM policies WHERE name = ?", name)
        return rows[0][0] if rows else None

    def set_policy(self, name: str, text: str, *, at: int) -> None:
        """Replace a policy."""
        self.write("INSERT OR REPLACE INTO policies VALUES (?, ?, ?)", name, text, at)

    def revoke(self, revocation: Revocation) -> None:
        """Record a revocation; the first one of a value stays."""
        self.write(
            "INSERT OR IGNORE INTO revocations VALUES (?, ?, ?, ?)",
            revocation.kind, spelled(revocation.kind, revocation.value), revocation.reason, revocation.at,
        )  # fmt: skip

    def unrevoke(self, kind: str, value: str) -> bool:
        """Take a revocation back; whether there was one."""
        return self.write("DELETE FROM revocations WHERE kind = ? AND value = ?", kind, spelled(kind, value)) > 0

    def revocations(self) -> list[Revocation]:
        """Every revocation, oldest first."""
        return [Revocation(*row) for row in self.rows("SELECT kind, value, reason, at FROM revocations ORDER BY at")]

    def revoked(self, kind: str, value: str) -> bool:
        """Whether this value of this kind was revoked."""
        return bool(self.rows("SELECT 1 FROM revocations WHERE kind = ? AND value = ?", kind, spelled(kind, value)))

    def minimum_version(self, lineage: str) -> int:
        """The lowest version of ``tenant/lineage`` that is released; 0 where none was set."""
        rows = self.rows("SELECT version FROM minimum_versions WHERE lineage = ?", lineage)
        return int(rows[0][0]) if rows else 0

    def raise_minimum_version(self, lineage: str, version: int) -> bool:
        """Raise the minimum; a lower one changes nothing. Whether it was raised."""
        with self.transaction():
            if version <= self.minimum_version(lineage):
                return False
            self.write("INSERT OR REPLACE INTO minimum_versions VALUES (?, ?)", lineage, version)
            return True

    def limit(self, lineage: str) -> tuple[int | None, int | None]:
        """(live keepers, seconds of a lease) of ``tenant/lineage``; None means no limit of that kind."""
        rows = self.rows("SELECT keepers, lease_s FROM limits WHERE lineage = ?", lineage)
        return (rows[0][0], rows[0][1]) if rows else (None, None)

    def set_limit(self, lineage: str, *, keepers: int | None, lease_s: int | None) -> None:
        """Set both limits of ``tenant/lineage``."""
        self.write("INSERT OR REPLACE INTO limits VALUES (?, ?, ?)", lineage, keepers, lease_s)
