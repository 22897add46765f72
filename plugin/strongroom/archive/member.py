"""A sealed member as a seekable file: chunks are decrypted when they are read, and kept one at a time."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ChunkAt = Callable[[int], tuple[int, bytearray]]
"""Gives the chunk that holds an offset: its own offset in the member, and its verified plaintext."""


class MemberFile(io.RawIOBase):
    """Read-only and random access. Octets are released chunk by chunk, each after its authentication.

    An error in the middle of a file therefore comes after earlier chunks were read; whoever needs all or
    nothing uses `OpenedArchive.unseal`.
    """

    def __init__(self, name: str, size: int, chunk_at: ChunkAt) -> None:
        self.name = name
        self.size = size
        self._chunk_at = chunk_at
        self._at = 0
        self._start = 0
        self._chunk = bytearray()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position of the next octet."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As for any binary file, and like any raises `ValueError` where there is no such place."""
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"whence is {whence}; a file is sought from 0 (start), 1 (here) or 2 (end)")
        base = bases[whence]
        if base + offset < 0:
            raise ValueError("a file has no octets before its start")
        self._at = base + offset
        return self._at

    def readinto(self, into: WriteableBuffer, /) -> int:
        """Fill as much of a buffer as the current chunk gives; raises `ArchiveTampered`."""
        view = memoryview(into).cast("B")
        if self._at >= self.size or not view:
            if not self.size and not self._chunk:
                # An empty member has a chunk too, and only its tag says that it is empty.
                self._chunk_at(0)
            return 0
        if not self._start <= self._at < self._start + len(self._chunk):
            self._start, self._chunk = self._chunk_at(self._at)
        inside = self._at - self._start
        piece = memoryview(self._chunk)[inside : inside + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
