"""Names and secrets that every room shares.

A name (`ArchiveDigest`, `AuthorId`) is 32 public bytes with a hex spelling. A secret
(`ModelKey`) has no useful `repr`, no `==`, and one loud way out. What a key does is the
business of the room that uses it.
"""

from __future__ import annotations

import secrets
from typing import NoReturn, Self

from strongroom.encoding import unhex
from strongroom.errors import MalformedInput


class _Name(bytes):
    """32 bytes that name something; compares and hashes like bytes, prints as hex."""

    def __new__(cls, octets: bytes) -> Self:
        if len(octets) != 32:
            raise MalformedInput(f"{cls.__name__}: 32 bytes are expected, found {len(octets)}")
        return super().__new__(cls, octets)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From 64 lower-case hex digits; raises `MalformedInput`."""
        return cls(unhex(text, where=cls.__name__))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()[:16]}…)"


class ArchiveDigest(_Name):
    """SHA-256 of an archive's signed core: what the key broker and evidence call the archive."""

    __slots__ = ()


class AuthorId(_Name):
    """SHA-256 over all component public keys of an author, with their kind (docs/format.md)."""

    __slots__ = ()


class ModelKey:
    """The 256-bit key that seals one model. Never printed, never compared with `==`, never pickled."""

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        if len(octets) != 32:
            raise MalformedInput(f"a model key is 32 bytes, got {len(octets)}")
        self._octets = bytes(octets)

    @classmethod
    def generate(cls) -> ModelKey:
        """A fresh key from the operating system's generator."""
        return cls(secrets.token_bytes(32))

    def reveal(self) -> bytes:
        """The raw key. Each call is a place to look at in review."""
        return self._octets

    def __repr__(self) -> str:
        return "ModelKey(...)"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are not compared; compare what they are for")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")
