"""Authors and their signatures (docs/format.md sections 5.2 and 5.3).

Ed25519 alone, or Ed25519 together with ML-DSA-65, in which case both must verify. An author id covers
all component keys, so a hybrid author's archive cannot be shown with one signature stripped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from strongroom.archive import keyfile
from strongroom.encoding import labelled
from strongroom.errors import ArchiveTampered, KeyFileInvalid, MalformedInput, SignatureDowngraded
from strongroom.keys import AuthorId

SIGNATURE_LABEL = "strongroom archive v1 signature"
AUTHOR_LABEL = "strongroom author v1"
SEED = 32


class SignatureKind(IntEnum):
    """What signs: the numbers of the header, ordered by strength."""

    ED25519 = 1
    HYBRID = 2

    @property
    def label(self) -> str:
        """The name in key files and flags."""
        return self.name.lower()

    @classmethod
    def named(cls, name: str) -> SignatureKind:
        """From ``ed25519`` or ``hybrid``; raises `MalformedInput`."""
        for kind in cls:
            if kind.label == name:
                return kind
        raise MalformedInput(f"{name!r} is no kind of signature; known are ed25519 and hybrid")

    @property
    def public_size(self) -> int:
        """Octets of all component public keys."""
        return 32 if self is SignatureKind.ED25519 else 32 + 1952

    @property
    def signature_size(self) -> int:
        """Octets of all component signatures."""
        return 64 if self is SignatureKind.ED25519 else 64 + 3309

    @property
    def components(self) -> int:
        """How many keys sign."""
        return 1 if self is SignatureKind.ED25519 else 2


def signed_octets(kind: SignatureKind, core: bytes) -> bytes:
    """What each component signs for a core."""
    return labelled(SIGNATURE_LABEL, kind.to_bytes(2, "big"), core)


@dataclass(frozen=True, slots=True)
class AuthorPublic:
    """Who signed, for those who verify: the kind and all component public keys."""

    kind: SignatureKind
    keys: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.keys) != self.kind.public_size:
            raise MalformedInput(f"an {self.kind.label} author has {self.kind.public_size} bytes of public keys")

    @property
    def id(self) -> AuthorId:
        """SHA-256 over the kind and all component keys (section 5.3)."""
        return AuthorId(hashlib.sha256(labelled(AUTHOR_LABEL, self.kind.to_bytes(2, "big"), self.keys)).digest())

    @classmethod
    def parse(cls, text: str, *, where: str = "author key") -> AuthorPublic:
        """From the text of a public key file; raises `KeyFileInvalid`."""
        name, keys = keyfile.fields_of(text, "strongroom-author-1", 2, where=where)
        try:
            kind = SignatureKind.named(name)
        except MalformedInput as error:
            raise KeyFileInvalid(f"{where}: {error}") from error
        return cls(kind, keyfile.octets_of(keys, kind.public_size, where=where))

    def serialise(self) -> str:
        """The one line that `parse` reads, without comments and with a newline."""
        return keyfile.compose("strongroom-author-1", self.kind.label, keyfile.text_of(self.keys))

    @classmethod
    def load(cls, path: Path | str) -> AuthorPublic:
        """Read a public key file; raises `KeyFileInvalid`."""
        return cls.parse(keyfile.read_public(path, made_by="strongroom keygen author"), where=str(path))

    def save(self, path: Path | str) -> None:
        """Write a public key file; never over an existing one."""
        keyfile.write_public(path, f"# strongroom author {self.id}\n" + self.serialise())

    def verify(self, core: bytes, signature: bytes) -> None:
        """Check every component's signature over a core; raises `ArchiveTampered`."""
        message = signed_octets(self.kind, core)
        try:
            if len(signature) != self.kind.signature_size:
                raise InvalidSignature
            Ed25519PublicKey.from_public_bytes(self.keys[:32]).verify(signature[:64], message)
            if self.kind is SignatureKind.HYBRID:
                MLDSA65PublicKey.from_public_bytes(self.keys[32:]).verify(signature[64:], message)
        except (InvalidSignature, ValueError) as error:
            raise ArchiveTampered(
                f"the {self.kind.label} signature of author {self.id} does not hold",
                hint="get the archive again from its author",
            ) from error
        except UnsupportedAlgorithm as error:
            raise KeyFileInvalid(
                "this build of the cryptography library has no ML-DSA-65", hint="pip install --upgrade cryptography"
            ) from error


class Signer(Protocol):
    """Whatever signs for an author: a key file's `AuthorKey`, or a hardware module behind a hook."""

    @property
    def public(self) -> AuthorPublic:
        """The author's public keys."""

    def sign(self, core: bytes) -> bytes:
        """All component signatures over `signed_octets(kind, core)`, concatenated."""


class AuthorKey:
    """An author's private keys. Never printed."""

    __slots__ = ("_seeds", "kind")

    def __init__(self, kind: SignatureKind, seeds: bytes) -> None:
        if len(seeds) != SEED * kind.components:
            raise MalformedInput(f"an {kind.label} author key has {SEED * kind.components} bytes of seeds")
        self.kind = kind
        self._seeds = bytes(seeds)

    @classmethod
    def generate(cls, kind: str = "ed25519") -> AuthorKey:
        """A fresh key of kind ``ed25519`` or ``hybrid``; raises `MalformedInput` for another."""
        import secrets

        chosen = SignatureKind.named(kind)
        return cls(chosen, secrets.token_bytes(SEED * chosen.components))

    @property
    def public(self) -> AuthorPublic:
        """The public half."""
        keys = Ed25519PrivateKey.from_private_bytes(self._seeds[:SEED]).public_key().public_bytes_raw()
        if self.kind is SignatureKind.HYBRID:
            keys += MLDSA65PrivateKey.from_seed_bytes(self._seeds[SEED:]).public_key().public_bytes_raw()
        return AuthorPublic(self.kind, keys)

    def sign(self, core: bytes) -> bytes:
        """All component signatures over a core, concatenated."""
        message = signed_octets(self.kind, core)
        signature = Ed25519PrivateKey.from_private_bytes(self._seeds[:SEED]).sign(message)
        if self.kind is SignatureKind.HYBRID:
            signature += MLDSA65PrivateKey.from_seed_bytes(self._seeds[SEED:]).sign(message)
        return signature

    @classmethod
    def load(cls, path: Path | str) -> AuthorKey:
        """Read a private key file that only its owner can read; raises `KeyFileInvalid`."""
        text = keyfile.read_private(path, made_by="strongroom keygen author")
        name, seeds = keyfile.fields_of(text, "strongroom-author-secret-1", 2, where=str(path))
        try:
            kind = SignatureKind.named(name)
        except MalformedInput as error:
            raise KeyFileInvalid(f"{path}: {error}") from error
        return cls(kind, keyfile.octets_of(seeds, SEED * kind.components, where=str(path)))

    def save(self, path: Path | str) -> None:
        """Write a private key file, mode 0600; never over an existing one."""
        text = keyfile.compose(
            "strongroom-author-secret-1",
            self.kind.label,
            keyfile.text_of(self._seeds),
            comments=(f"strongroom author {self.public.id}, private: whoever has this signs in your name",),
        )
        keyfile.write_private(path, text)

    def __repr__(self) -> str:
        return f"AuthorKey({self.kind.label}, ...)"


def demand_kind(found: SignatureKind, demanded: SignatureKind | None) -> None:
    """Raise `SignatureDowngraded` where the verifier asks for more than the archive has."""
    if demanded is not None and found < demanded:
        raise SignatureDowngraded(
            f"signed with {found.label}, {demanded.label} is demanded",
            hint="ask the author to seal with a key made by `strongroom keygen author --hybrid`",
        )


def author_among(authors: Iterable[AuthorPublic], wanted: AuthorId) -> AuthorPublic | None:
    """The author of that id, or None."""
    return next((author for author in authors if author.id == wanted), None)
