"""Epoch seeds: what the keepers of one model share in channel mode ``fleet`` (docs/release.md section 11.4).

A seed is random and its own: no root exists from which another epoch's could be computed, and a seed that
is two epochs old is deleted. The keeper mixes in a secret of the model key (docs/protocol.md section 7), so
a seed alone reads nothing. `EpochSeed` is for both sides; the rest is the broker's.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from strongroom.broker.protocol import Resource
from strongroom.broker.refusals import Refused
from strongroom.broker.store import Store
from strongroom.encoding import Fields, b64url, canonical_json, labelled, parse_json
from strongroom.errors import MalformedInput, ReleaseError
from strongroom.keys import ArchiveDigest

EPOCH_S = 86400
_FORMAT = "epoch-seed/1"
_LABEL = "strongroom epoch seed v1"


@dataclass(frozen=True, slots=True)
class EpochSeed:
    """One epoch's seed for one archive: 32 bytes, signed. Times are Unix seconds; `signature` has 64 bytes."""

    archive: ArchiveDigest
    epoch: int
    seed: bytes = field(repr=False)
    not_before: int
    not_after: int
    broker_time: int
    signature: bytes = field(repr=False)

    @classmethod
    def make(cls, private: Ed25519PrivateKey, archive: ArchiveDigest, epoch: int, seed: bytes, now: int) -> EpochSeed:
        """Sign a seed for an epoch, with the broker's time."""
        begins = epoch * EPOCH_S
        unsigned = cls(archive, epoch, seed, begins, begins + EPOCH_S, now, b"")
        return cls(archive, epoch, seed, begins, begins + EPOCH_S, now, private.sign(unsigned._signed()))

    def _signed(self) -> bytes:
        numbers = (self.epoch, self.not_before, self.not_after, self.broker_time)
        epoch, *times = (number.to_bytes(8, "big") for number in numbers)
        return labelled(_LABEL, self.archive, epoch, self.seed, *times)

    @classmethod
    def parse(cls, octets: bytes) -> EpochSeed:
        """Strictly; raises `MalformedInput`. The signature is for `verify`."""
        read = Fields(parse_json(octets, where="epoch seed", limit=4096), where="epoch seed")
        if read.text("strongroom", limit=64) != _FORMAT:
            raise MalformedInput(f"epoch seed: its format is not {_FORMAT}")
        seed = cls(
            archive=ArchiveDigest(read.hexes("archive", size=32)),
            epoch=read.number("epoch"),
            seed=read.blob("seed", size=32),
            not_before=read.number("not_before"),
            not_after=read.number("not_after"),
            broker_time=read.number("broker_time"),
            signature=read.blob("signature", size=64),
        )
        read.done()
        return seed

    def serialise(self) -> bytes:
        """The exact inverse of `parse`. The result holds the seed: it is for encryption, not for a log."""
        return canonical_json(
            {
                "strongroom": _FORMAT,
                "archive": str(self.archive),
                "epoch": self.epoch,
                "seed": b64url(self.seed),
                "not_before": self.not_before,
                "not_after": self.not_after,
                "broker_time": self.broker_time,
                "signature": b64url(self.signature),
            }
        )

    def verify(self, broker_key: bytes, archive: ArchiveDigest) -> None:
        """Hold it against the key that the archive's signed header names (DER SubjectPublicKeyInfo, Ed25519).

        Raises `ReleaseError`.
        """
        public = public_key_of(broker_key)
        try:
            public.verify(self.signature, self._signed())
        except InvalidSignature as error:
            raise ReleaseError(
                "the epoch seed is not signed by the broker that the archive names",
                hint="another broker answers here, or the archive was sealed for another one (seal --broker-key)",
            ) from error
        if self.archive != archive:
            raise ReleaseError(
                f"the epoch seed is for archive {self.archive}, asked was {archive}",
                hint="somebody between here and the broker answers with another archive's seed",
            )


def public_key_of(octets: bytes) -> Ed25519PublicKey:
    """The broker key that an archive names, from DER SubjectPublicKeyInfo; raises `ReleaseError`."""
    try:
        public = load_der_public_key(octets)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ReleaseError("the archive names a broker key that cannot be read") from error
    if not isinstance(public, Ed25519PublicKey):
        raise ReleaseError("the archive names a broker key that is not Ed25519")
    return public


def current(now: float) -> int:
    """The number of the epoch of a Unix time."""
    return int(now) // EPOCH_S


def seed_of(store: Store, name: Resource, epoch: int, now: float) -> bytes:
    """The seed of the present epoch or a neighbour, made at first use. Raises `Refused` for any other."""
    present = current(now)
    if abs(epoch - present) > 1:
        raise Refused.plugin(f"epoch {epoch} is neither the present one ({present}) nor its neighbour")
    with store.transaction():
        prefix = f"epoch/{name}/"
        _delete(store, prefix, before=present - 1)
        if store.rows("SELECT 1 FROM secrets WHERE name = ?", f"{prefix}{epoch}"):
            return store.secret(f"{prefix}{epoch}")
        seed = secrets.token_bytes(32)
        store.keep_secret(f"{prefix}{epoch}", seed)
        return seed


def sweep(store: Store, now: float) -> None:
    """Delete the seeds of all archives that are two epochs old, for whose keys nobody asks any more."""
    _delete(store, "epoch/", before=current(now) - 1)


def forget(store: Store, name: Resource) -> None:
    """Delete all seeds of an archive whose key is deleted."""
    _delete(store, f"epoch/{name}/")


def _delete(store: Store, prefix: str, *, before: int | None = None) -> None:
    for (held,) in store.rows("SELECT name FROM secrets WHERE name > ? AND name < ?", prefix, prefix + "~"):
        if before is None or int(held.rpartition("/")[2]) < before:
            store.write("DELETE FROM secrets WHERE name = ?", held)
