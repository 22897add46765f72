"""The audit log: every decision of the broker, append-only, in a Merkle tree (docs/release.md section 12).

An entry is canonical JSON and is written, in the transaction of what it describes, before a key leaves.
A checkpoint (C2SP tlog-checkpoint: a signed note) names the tree's size and root. Whoever keeps one can
prove that nothing before it was altered, dropped or reordered; against somebody who holds the broker's
key and whose checkpoints nobody kept, the log proves nothing, and the docs say so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.broker.merkle import Frontier, leaf_hash
from strongroom.broker.store import Store
from strongroom.encoding import b64, canonical_json, unb64
from strongroom.errors import AuditError, MalformedInput

ENTRY_LIMIT = 65535
"""Bytes of one entry: the length field of an entry bundle (C2SP tlog-tiles) has 16 bits."""

AT_ONCE = 4096
"""Entries that are in memory at once while a log is read."""

_ED25519 = b"\x01"
_TOUCHED = "somebody changed the store; keep it for an investigation and restore a backup elsewhere"


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A name and an Ed25519 public key, as C2SP signed-note identifies a signer."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if len(self.public) != 32 or not self.name or re.search(r"[\s+]", self.name):
            raise MalformedInput("a note's signer is a name without spaces or '+', and 32 bytes of Ed25519")

    @property
    def key_hash(self) -> bytes:
        """Four bytes that a signature line starts with."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> NoteKey:
        """From a verifier key, ``name+hash+base64``; raises `MalformedInput`."""
        parts = text.strip().split("+", 2)
        if len(parts) != 3:
            raise MalformedInput("a verifier key is name+hash+base64")
        octets = unb64(parts[2], where="verifier key")
        if octets[:1] != _ED25519:
            raise MalformedInput("a verifier key of another kind than Ed25519")
        key = cls(parts[0], octets[1:])
        if key.key_hash.hex() != parts[1]:
            raise MalformedInput("a verifier key whose hash does not match it")
        return key

    def serialise(self) -> str:
        """The exact inverse of `parse`."""
        return f"{self.name}+{self.key_hash.hex()}+{b64(_ED25519 + self.public)}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The size and root hash of a log of that origin (C2SP tlog-checkpoint)."""

    origin: str
    size: int
    root: bytes

    def body(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{b64(self.root)}\n"

    def sign(self, private: Ed25519PrivateKey) -> str:
        """The signed note."""
        key = NoteKey(self.origin, public_octets(private.public_key()))
        signature = b64(key.key_hash + private.sign(self.body().encode()))
        return f"{self.body()}\n— {self.origin} {signature}\n"

    @classmethod
    def verify(cls, note: str, key: NoteKey) -> Checkpoint:
        """The checkpoint of a note that `key` signed; other signatures (witnesses) may stand beside it.

        Raises `AuditError`.
        """
        body, separator, signatures = note.rpartition("\n\n")
        lines = body.split("\n")
        if not separator or len(lines) < 3 or not re.fullmatch(r"0|[1-9][0-9]{0,15}", lines[1]):
            raise AuditError("not a checkpoint: three lines, an empty one and signatures are expected")
        for line in signatures.splitlines():
            dash, _, rest = line.partition(" ")
            name, _, encoded = rest.partition(" ")
            if dash != "—" or name != key.name:
                continue
            try:
                octets = unb64(encoded, where="note signature")
                root = unb64(lines[2], where="checkpoint root")
                if octets[:4] != key.key_hash:
                    continue
                Ed25519PublicKey.from_public_bytes(key.public).verify(octets[4:], f"{body}\n".encode())
            except (MalformedInput, InvalidSignature) as error:
                raise AuditError("the checkpoint's signature does not hold") from error
            if len(root) != 32 or lines[0] != key.name:
                raise AuditError(f"a checkpoint of {lines[0]!r}, expected is {key.name!r}")
            return cls(lines[0], int(lines[1]), root)
        raise AuditError(f"no signature by {key.name} on the checkpoint", hint="is it a checkpoint of another broker?")


def public_octets(public: Ed25519PublicKey) -> bytes:
    """The 32 bytes of an Ed25519 public key."""
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


class AuditLog:
    """The log inside a broker's store. `append` belongs into the store transaction of what it records."""

    def __init__(self, store: Store, private: Ed25519PrivateKey, origin: str) -> None:
        self._store = store
        self._private = private
        self.key = NoteKey(origin, public_octets(private.public_key()))
        self._frontier = Frontier()
        self._verify()

    def _verify(self) -> None:
        """Every entry stands at its number and hashes to its leaf, and the checkpoint is over all of them."""
        with self._store.reading():
            for first in range(0, self.size, AT_ONCE):
                chunk = "SELECT number, entry, leaf FROM audit WHERE number >= ? ORDER BY number LIMIT ?"
                for number, entry, leaf in self._store.rows(chunk, first, AT_ONCE):
                    if number != self._frontier.size:
                        raise AuditError(f"entry {self._frontier.size} is missing from the audit log", hint=_TOUCHED)
                    if leaf_hash(entry) != leaf:
                        raise AuditError(f"entry {number} of the audit log was altered", hint=_TOUCHED)
                    self._frontier.append(leaf)
            self._check_signed(self._frontier)

    def _check_signed(self, frontier: Frontier) -> None:
        """Raise `AuditError` unless our checkpoint is over this very tree: without our key nobody adds or takes away.

        Each entry was written with the checkpoint that covers it, so only an empty log has none.
        """
        rows = self._store.rows("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
        if not rows and not frontier.size:
            return
        if not rows:
            raise AuditError(f"the audit log of {frontier.size} entries has no checkpoint", hint=_TOUCHED)
        checkpoint = Checkpoint.verify(rows[0][0], self.key)
        if (checkpoint.size, checkpoint.root) != (frontier.size, frontier.root()):
            raise AuditError(
                f"the audit log of {frontier.size} entries does not match its checkpoint of {checkpoint.size} entries",
                hint=_TOUCHED,
            )

    @property
    def size(self) -> int:
        """How many entries there are."""
        return int(self._store.rows("SELECT coalesce(max(number) + 1, 0) FROM audit")[0][0])

    def append(self, entry: Mapping[str, Any]) -> int:
        """Write one entry durably, with a checkpoint over it; its number. Raises `AuditError`, `StoreError`."""
        octets = canonical_json(entry)
        if len(octets) > ENTRY_LIMIT:
            raise AuditError(f"an audit entry of {len(octets)} bytes, the limit is {ENTRY_LIMIT}")
        with self._store.transaction():
            # The rows are the truth: a transaction that was rolled back must not leave its leaf here, nor may what
            # another process wrote be missed. But only what its checkpoint covers: nothing else is signed over.
            number = self.size
            if number != self._frontier.size or not self._is_checkpoint(self._frontier):
                frontier = self._reread(number)
                self._check_signed(frontier)
                self._frontier = frontier
            leaf = leaf_hash(octets)
            frontier = self._frontier.copy()
            frontier.append(leaf)
            checkpoint = Checkpoint(self.key.name, frontier.size, frontier.root())
            self._store.write("INSERT INTO audit VALUES (?, ?, ?)", number, octets, leaf)
            self._store.write("DELETE FROM checkpoints")
            self._store.write("INSERT INTO checkpoints VALUES (?, ?)", checkpoint.size, checkpoint.sign(self._private))
            self._frontier = frontier
        return number

    def _is_checkpoint(self, frontier: Frontier) -> bool:
        """Whether the checkpoint in the store is over this very tree; there is none over an empty one."""
        rows = self._store.rows("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
        body = Checkpoint(self.key.name, frontier.size, frontier.root()).body()
        return frontier.size == 0 if not rows else str(rows[0][0]).startswith(f"{body}\n")

    def _reread(self, size: int) -> Frontier:
        """The tree of the rows: another process wrote to the log, or a transaction was rolled back."""
        frontier = Frontier()
        for first in range(0, size, AT_ONCE):
            chunk = "SELECT leaf FROM audit WHERE number >= ? AND number < ? ORDER BY number"
            for (leaf,) in self._store.rows(chunk, first, min(first + AT_ONCE, size)):
                frontier.append(leaf)
        return frontier

    def checkpoint(self) -> str:
        """The signed note over everything so far."""
        rows = self._store.rows("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
        if rows:
            return str(rows[0][0])
        return Checkpoint(self.key.name, 0, self._frontier.root()).sign(self._private)

    def entries(self, first: int = 0, count: int = 1 << 30) -> list[bytes]:
        """Entries `first` and following as they were written."""
        rows = self._store.rows("SELECT entry FROM audit WHERE number >= ? ORDER BY number LIMIT ?", first, count)
        return [row[0] for row in rows]
