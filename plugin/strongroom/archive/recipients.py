"""Wrap a model key for those who open an archive without a broker (docs/format.md section 10.1).

Here are keys of people or machines (X25519, X-Wing) and providers that plugins bring; `passphrase` has the rest.
HPKE is `cryptography`'s single-shot form; this module only says what goes into it.
"""

from __future__ import annotations

import hashlib
import secrets
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from strongroom.archive import keyfile
from strongroom.archive.manifest import NAME
from strongroom.archive.slots import SLOT_HEAD, Slot
from strongroom.encoding import labelled
from strongroom.errors import (
    ArchiveMalformed,
    ArchiveTampered,
    KeyFileInvalid,
    MalformedInput,
    NoRecipient,
    SealRefused,
)
from strongroom.keys import ArchiveDigest, ModelKey

RECIPIENT_LABEL = "strongroom archive v1 recipient"
SLOT_LABEL = "strongroom archive v1 slot"
WRAPPED = 32 + 16
PROVIDER = 4
PROVIDER_LIMIT = 3072


class RecipientKind(IntEnum):
    """Slot types that wrap to a public key."""

    X25519 = 1
    XWING = 2

    @property
    def label(self) -> str:
        """The name in key files and flags."""
        return self.name.lower()

    @classmethod
    def named(cls, name: str) -> RecipientKind:
        """From ``x25519`` or ``xwing``; raises `MalformedInput`."""
        for kind in cls:
            if kind.label == name:
                return kind
        raise MalformedInput(f"{name!r} is no kind of recipient; known are x25519 and xwing")

    @property
    def public_size(self) -> int:
        """Octets of a public key."""
        return 32 if self is RecipientKind.X25519 else 1184 + 32

    @property
    def body_size(self) -> int:
        """Octets of a slot's body: encapsulated key and ciphertext."""
        return (32 if self is RecipientKind.X25519 else 1120) + WRAPPED

    @property
    def suite(self) -> hpke.Suite:
        """The HPKE suite of this type."""
        kem = hpke.KEM.X25519 if self is RecipientKind.X25519 else hpke.KEM.MLKEM768_X25519
        return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def recipient_id(kind: int, digest: ArchiveDigest, public: bytes) -> bytes:
    """A recipient's id in one archive; ids in two archives cannot be linked without the public key."""
    return hashlib.sha256(labelled(RECIPIENT_LABEL, kind.to_bytes(2, "big"), digest, public)).digest()


def slot_info(kind: int, digest: ArchiveDigest, recipient: bytes) -> bytes:
    """What binds a wrapped key to its archive, type and recipient."""
    return labelled(SLOT_LABEL, kind.to_bytes(2, "big"), digest, recipient)


def kind_name(slot: Slot) -> str:
    """For people: a slot's type, with the provider's name for type 4."""
    if slot.kind == PROVIDER:
        try:
            return f"provider {split_provider(slot.body)[0]}"
        except ArchiveMalformed:
            return "provider (malformed)"
    return {1: "x25519", 2: "xwing", 3: "passphrase"}.get(slot.kind, f"type {slot.kind}")


class Identity(Protocol):
    """Whoever may find the model key in a slot."""

    @abstractmethod
    def unwrap(self, slots: Iterable[Slot], digest: ArchiveDigest) -> ModelKey | None:
        """The key from this identity's own slot, or None where there is no such slot.

        Raises `ArchiveTampered` where its own slot does not open, `ArchiveMalformed` where its body is
        not what the type says.
        """


@dataclass(frozen=True, slots=True)
class Recipient:
    """A public key that a model key is wrapped to. Calling it makes the slot."""

    kind: RecipientKind
    public: bytes = field(repr=False)

    def __call__(self, key: ModelKey, digest: ArchiveDigest) -> Slot:
        """Wrap `key` for this recipient of the archive `digest`; raises `KeyFileInvalid` for no valid key."""
        name = recipient_id(self.kind, digest, self.public)
        return Slot(self.kind, name, self._wrap(key.reveal(), slot_info(self.kind, digest, name)))

    @property
    def slot_size(self) -> int:
        """Octets of its slot."""
        return SLOT_HEAD + self.kind.body_size

    def check(self, *, where: str = "recipient") -> None:
        """Raise `KeyFileInvalid` unless something can be wrapped to this key: a point of low order is none."""
        self._wrap(b"", b"", where=where)

    def _wrap(self, secret: bytes, info: bytes, *, where: str = "recipient") -> bytes:
        try:
            return self.kind.suite.encrypt(secret, self._key(), info)
        except ValueError as error:
            raise KeyFileInvalid(
                f"{where}: no valid recipient key",
                hint="get the file that `strongroom keygen identity` wrote, from the recipient",
            ) from error

    def _key(self) -> X25519PublicKey | hpke.MLKEM768X25519PublicKey:
        classical = X25519PublicKey.from_public_bytes(self.public[-32:])
        if self.kind is RecipientKind.X25519:
            return classical
        return hpke.MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(self.public[:-32]), classical)

    @classmethod
    def parse(cls, text: str, *, where: str = "recipient") -> Recipient:
        """From the text of a recipient file; raises `KeyFileInvalid`."""
        name, public = keyfile.fields_of(text, "strongroom-recipient-1", 2, where=where)
        try:
            kind = RecipientKind.named(name)
        except MalformedInput as error:
            raise KeyFileInvalid(f"{where}: {error}") from error
        found = cls(kind, keyfile.octets_of(public, kind.public_size, where=where))
        found.check(where=where)
        return found

    def serialise(self) -> str:
        """The one line that `parse` reads."""
        return keyfile.compose("strongroom-recipient-1", self.kind.label, keyfile.text_of(self.public))

    @classmethod
    def load(cls, path: Path | str) -> Recipient:
        """Read a recipient file; raises `KeyFileInvalid`."""
        return cls.parse(keyfile.read_public(path, made_by="strongroom keygen identity"), where=str(path))

    def save(self, path: Path | str) -> None:
        """Write a recipient file; never over an existing one."""
        keyfile.write_public(path, self.serialise())


class KeyIdentity:
    """The private half of a `Recipient`. Never printed."""

    __slots__ = ("_seed", "kind")

    def __init__(self, kind: RecipientKind, seed: bytes) -> None:
        if len(seed) != 32:
            raise MalformedInput("an identity has 32 bytes")
        self.kind, self._seed = kind, bytes(seed)

    @classmethod
    def generate(cls, kind: str = "xwing") -> KeyIdentity:
        """A fresh identity of kind ``xwing`` or ``x25519``."""
        return cls(RecipientKind.named(kind), secrets.token_bytes(32))

    def _keys(self) -> tuple[X25519PrivateKey, MLKEM768PrivateKey | None]:
        if self.kind is RecipientKind.X25519:
            return X25519PrivateKey.from_private_bytes(self._seed), None
        # draft-connolly-cfrg-xwing-kem: SHAKE-256 expands the seed to both components' secrets.
        expanded = hashlib.shake_256(self._seed).digest(96)
        return X25519PrivateKey.from_private_bytes(expanded[64:]), MLKEM768PrivateKey.from_seed_bytes(expanded[:64])

    @property
    def recipient(self) -> Recipient:
        """The public half."""
        classical, lattice = self._keys()
        public = classical.public_key().public_bytes_raw()
        return Recipient(self.kind, public if lattice is None else lattice.public_key().public_bytes_raw() + public)

    def unwrap(self, slots: Iterable[Slot], digest: ArchiveDigest) -> ModelKey | None:
        """See `Identity`."""
        name = recipient_id(self.kind, digest, self.recipient.public)
        slot = next((each for each in slots if each.kind == self.kind and each.recipient == name), None)
        if slot is None:
            return None
        exact_body(slot, self.kind.body_size)
        classical, lattice = self._keys()
        private = classical if lattice is None else hpke.MLKEM768X25519PrivateKey(lattice, classical)
        try:
            return ModelKey(self.kind.suite.decrypt(slot.body, private, slot_info(self.kind, digest, name)))
        except (InvalidTag, ValueError) as error:
            raise slot_tampered() from error

    @classmethod
    def load(cls, path: Path | str) -> KeyIdentity:
        """Read an identity file that only its owner can read; raises `KeyFileInvalid`."""
        text = keyfile.read_private(path, made_by="strongroom keygen identity")
        name, seed = keyfile.fields_of(text, "strongroom-identity-1", 2, where=str(path))
        try:
            kind = RecipientKind.named(name)
        except MalformedInput as error:
            raise KeyFileInvalid(f"{path}: {error}") from error
        return cls(kind, keyfile.octets_of(seed, 32, where=str(path)))

    def save(self, path: Path | str) -> None:
        """Write an identity file, mode 0600; never over an existing one."""
        comment = "strongroom identity, secret: whoever has this opens archives sealed to it"
        fields = (self.kind.label, keyfile.text_of(self._seed))
        keyfile.write_private(path, keyfile.compose("strongroom-identity-1", *fields, comments=(comment,)))

    def __repr__(self) -> str:
        return f"KeyIdentity({self.kind.label}, ...)"


def provider_slot(name: str, recipient: bytes, opaque: bytes) -> Slot:
    """A slot whose body a plugin made; raises `SealRefused` where it does not fit."""
    body = bytes([len(name)]) + name.encode("ascii") + opaque
    if not NAME.match(name) or len(recipient) != 32 or len(body) > PROVIDER_LIMIT:
        raise SealRefused(f"provider {name[:64]!r} made a slot that the format has no room for")
    return Slot(PROVIDER, recipient, body)


def split_provider(body: bytes) -> tuple[str, bytes]:
    """A provider slot's name and opaque octets; raises `ArchiveMalformed`."""
    length = body[0] if body else 0
    name = body[1 : 1 + length].decode("latin-1")
    if not NAME.match(name) or len(name) != length or len(body) > PROVIDER_LIMIT:
        raise ArchiveMalformed("a provider slot does not name its provider")
    return name, body[1 + length :]


def exact_body(slot: Slot, size: int) -> None:
    """Lengths are checked before any secret is used (age's rule against partitioning oracles)."""
    if len(slot.body) != size:
        raise ArchiveMalformed(f"a {kind_name(slot)} slot has {len(slot.body)} bytes, {size} are due")


def slot_tampered() -> ArchiveTampered:
    """The error for a slot that is its recipient's and does not open."""
    return ArchiveTampered(
        "the slot of this recipient does not open: it was changed, or moved here from another archive",
        hint="get the archive again, or ask another recipient to run `strongroom rewrap`",
    )


def find_key(identities: Iterable[Identity], slots: tuple[Slot, ...], digest: ArchiveDigest) -> ModelKey:
    """The key from the first identity that has a slot; raises `NoRecipient`."""
    for identity in identities:
        key = identity.unwrap(slots, digest)
        if key is not None:
            return key
    raise NoRecipient(
        f"none of the identities offered opens this archive, which has {len(slots)} recipients",
        hint="`strongroom inspect` lists their kinds; ask one of them to add you by `strongroom rewrap`",
    )
