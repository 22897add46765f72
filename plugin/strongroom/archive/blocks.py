"""Where chunks lie in the payload, and the digests over its blocks (docs/format.md section 7).

Arithmetic and hashing only; ciphers are `cipher`'s work, and reading files `unseal`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from strongroom.errors import ArchiveUnsupported

TAG = 16
DIGEST = 32


class Suite(IntEnum):
    """The algorithms of an archive (section 4)."""

    AES256GCM_BLAKE3 = 1
    AES256GCM_SHA256 = 2


def hasher(suite: Suite) -> Callable[..., Any]:
    """The constructor of a suite's digest `D`: hashlib-like, 32 octets.

    Raises `ArchiveUnsupported` where the library for it is not installed.
    """
    if suite is Suite.AES256GCM_SHA256:
        return hashlib.sha256
    try:
        from blake3 import blake3
    except ImportError as error:
        raise ArchiveUnsupported(
            "suite 1 needs the blake3 package, which is not installed", hint="pip install blake3"
        ) from error
    return blake3


@dataclass(frozen=True, slots=True)
class Chunk:
    """One AEAD message: where its ciphertext lies in the payload, where its plaintext in the member."""

    number: int
    at: int
    offset: int
    size: int
    last: bool

    @property
    def sealed_size(self) -> int:
        """Octets of ciphertext and tag."""
        return self.size + TAG


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of a payload: `log2` is the n of the signed core."""

    log2: int

    @property
    def chunk(self) -> int:
        """Octets of plaintext in a full chunk."""
        return 1 << self.log2

    @property
    def block(self) -> int:
        """Octets of a full block."""
        return self.chunk + TAG

    def start(self, at: int) -> int:
        """Where a member begins whose predecessor ends at `at`."""
        room = self.block - at % self.block
        return at if room > TAG else at + room

    def end(self, start: int, size: int) -> int:
        """Where a member of `size` octets that begins at `start` ends."""
        return start + size + TAG * self.count(start, size)

    def count(self, start: int, size: int) -> int:
        """How many chunks it has; at least one."""
        return 1 + -(-(size - self._first(start, size)) // self.chunk)

    def _first(self, start: int, size: int) -> int:
        return min(size, self.block - start % self.block - TAG)

    def find(self, start: int, size: int, offset: int) -> int:
        """The number of the chunk that holds the plaintext octet at `offset`."""
        first = self._first(start, size)
        return 0 if offset < first or not size else 1 + (offset - first) // self.chunk

    def one(self, start: int, size: int, number: int) -> Chunk:
        """Chunk `number` of a member."""
        first = self._first(start, size)
        last = number == self.count(start, size) - 1
        if number == 0:
            return Chunk(0, start, 0, first, last)
        offset = first + (number - 1) * self.chunk
        return Chunk(number, start + offset + TAG * number, offset, min(self.chunk, size - offset), last)

    def chunks(self, start: int, size: int) -> Iterator[Chunk]:
        """All chunks of a member in order."""
        return (self.one(start, size, number) for number in range(self.count(start, size)))

    def place(self, sizes: Iterable[int]) -> list[int]:
        """The starts of members of these sizes, one after the other."""
        starts, at = [], 0
        for size in sizes:
            starts.append(self.start(at))
            at = self.end(starts[-1], size)
        return starts

    def blocks(self, payload: int) -> int:
        """How many blocks a payload of that length has."""
        return -(-payload // self.block)

    def padding(self, at: int) -> int:
        """The size of the padding member after `at` that makes the payload's length a Padmé length."""
        start = self.start(at)
        target = padme(self.end(start, 0))
        while True:
            low = max(0, target - start - TAG * (1 + -(-(target - start) // self.block)))
            for size in range(low, low + 3 * TAG):
                end = self.end(start, size)
                if end == target:
                    return size
                if end > target:
                    break
            target = padme(target + 1)


def padme(length: int) -> int:
    """The Padmé length: at most 12 % more, leaking O(log log) bits (section 7.3)."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    keep = exponent.bit_length()
    mask = (1 << (exponent - keep)) - 1 if exponent > keep else 0
    return (length + mask) & ~mask


def merkle_root(digests: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of RFC 9162 section 2.1.1 with SHA-256 over block digests."""
    if not digests:
        return hashlib.sha256(b"").digest()
    level = [hashlib.sha256(b"\x00" + digest).digest() for digest in digests]
    # Pairing from the left and carrying an odd last node up gives the RFC's split at powers of two.
    while len(level) > 1:
        above = [hashlib.sha256(b"\x01" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        level = above + level[len(above) * 2 :]
    return level[0]
