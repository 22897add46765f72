"""Padding policies: to which size a binary message is filled up before it is sealed.

Padding stands at the end of a whole message (RFC 9292 section 3.8), so `Padding` hides the size of
single-shot messages. In a stream there is none between chunks. There `StreamPadding` says which sizes
chunks may have; how content comes to them is `worker.pieces`' work (docs/protocol.md section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from strongroom.channel.chunked import CHUNK_SIZE
from strongroom.errors import ConfigurationInvalid

_POLICY = re.compile(r"(none|power-of-two|bucket:([1-9][0-9]{0,8}))\Z")
_SMALLEST = 256  # powers of two below this would tell short messages apart for nothing
_SMALLEST_BUCKET = 64  # of a stream: below it, sealing and framing are most of what is sent


@dataclass(frozen=True, slots=True)
class Padding:
    """A policy, written ``none``, ``power-of-two`` or ``bucket:4096`` (a multiple of that many bytes)."""

    policy: str = "none"

    def __post_init__(self) -> None:
        """Raises `ConfigurationInvalid` for a policy that is not one of the three."""
        if not _POLICY.match(self.policy):
            raise ConfigurationInvalid(
                f"{self.policy!r} is not a padding policy", hint="write none, power-of-two or bucket:BYTES"
            )

    def padding(self, size: int) -> int:
        """How many zero bytes a message of `size` bytes gets."""
        if self.policy == "none":
            return 0
        if self.policy == "power-of-two":
            return max(_SMALLEST, 1 << (size - 1).bit_length() if size else 1) - size
        return -size % self.bucket

    @property
    def bucket(self) -> int:
        """The BYTES of ``bucket:BYTES``; 0 for the other policies."""
        return int(self.policy.removeprefix("bucket:")) if self.policy.startswith("bucket:") else 0


@dataclass(frozen=True, slots=True)
class StreamPadding(Padding):
    """A policy for the chunks of a stream, in the same words; a bucket fits into a chunk."""

    def __post_init__(self) -> None:
        """Raises `ConfigurationInvalid` for a policy that is none, or a bucket that no chunk can be of."""
        Padding.__post_init__(self)
        if self.bucket and not _SMALLEST_BUCKET <= self.bucket <= CHUNK_SIZE:
            raise ConfigurationInvalid(
                f"a bucket of {self.bucket} bytes, and a stream's are {_SMALLEST_BUCKET} to {CHUNK_SIZE} bytes",
                hint=f"the most that a chunk of a stream holds is {CHUNK_SIZE} bytes (docs/protocol.md section 2)",
            )

    def sizes(self, most: int) -> ChunkSizes:
        """The sizes that chunks may have where about `most` bytes leave at once; not for ``none``."""
        if self.bucket:
            return ChunkSizes(self, max(self.bucket, min(most, CHUNK_SIZE) // self.bucket * self.bucket))
        return ChunkSizes(self, max(_SMALLEST, 1 << min(most, CHUNK_SIZE).bit_length() - 1))


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Which sizes the chunks of a stream have: any of the policy's up to `largest`.

    What is longer than one chunk is some of the `largest` and then one of any size.
    """

    padding: StreamPadding
    largest: int

    def at_least(self, size: int) -> int:
        """The next length, from `size` on, that such chunks add up to."""
        full, rest = divmod(size, self.largest)
        return full * self.largest + (rest + self.padding.padding(rest) if rest else 0)

    def at_most(self, size: int) -> int:
        """The last length, up to `size`, that such chunks add up to; may be 0."""
        full, rest = divmod(size, self.largest)
        if self.padding.bucket:
            rest -= rest % self.padding.bucket
        else:
            rest = 1 << rest.bit_length() - 1 if rest >= _SMALLEST else 0
        return full * self.largest + rest

    def cut(self, plaintext: bytes) -> Iterator[bytes]:
        """The chunks of a plaintext that has such a length."""
        for at in range(0, len(plaintext), self.largest):
            yield plaintext[at : at + self.largest]


NO_PADDING = Padding()
NO_STREAM_PADDING = StreamPadding()
