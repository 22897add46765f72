"""Write the payload: blocks are filled in order, encrypted, digested and written on all cores.

Each chunk of each member passes `MemberCipher.seal_into` exactly once; there is no way to go back
(docs/format.md sections 3 and 7).
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from strongroom.archive.blocks import Chunk, Grid, Suite, hasher
from strongroom.archive.checksum import crc32_join
from strongroom.archive.cipher import KeySchedule, MemberCipher
from strongroom.archive.index import Index, Member
from strongroom.archive.source import changed
from strongroom.errors import SealRefused


class _Block:
    """One block while it is being filled: plaintext at the places where its ciphertext will stand."""

    __slots__ = ("jobs", "number", "sealed", "used")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.sealed = memoryview(bytearray(size))
        self.jobs: list[tuple[MemberCipher, Chunk, bytearray]] = []
        self.used = 0


class PayloadWriter:
    """Writes members one after the other, then optional padding; `finish` gives digests and checksum."""

    def __init__(
        self,
        descriptor: int,
        at: int,
        grid: Grid,
        index: Index,
        schedule: KeySchedule,
        suite: Suite,
        threads: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._descriptor, self._at, self._grid, self._index = descriptor, at, grid, index
        self._schedule, self._digest, self._progress = schedule, hasher(suite), progress
        self._workers = threads or len(os.sched_getaffinity(0))
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[tuple[bytes, int, int]]] = deque()
        self._block = _Block(0, min(grid.block, index.length))
        self._digests: list[bytes] = []
        self._crc = 0
        self._done = 0
        self._end = 0

    def __enter__(self) -> PayloadWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def member(self, member: Member, stream: IO[bytes]) -> bytes:
        """Seal one file from its stream, which must hold exactly `member.size` octets; its digest comes back.

        Raises `SealRefused` where the stream has another length.
        """
        cipher = self._schedule.member(member.number)
        digest = self._digest()
        for chunk in self._grid.chunks(member.start, member.size):
            plaintext = bytearray(chunk.size)
            _fill(stream, memoryview(plaintext), member.name)
            digest.update(plaintext)
            self._add(cipher, chunk, plaintext)
        # One more read: a file that grew is refused, and zip checks its own checksum at the end only.
        if stream.read(1):
            raise changed(member.name)
        return bytes(digest.digest())

    def pad(self) -> None:
        """Seal the padding entry, if there is one."""
        padding = self._index.padding_member(self._grid)
        if padding is None:
            return
        cipher = self._schedule.member(padding.number)
        for chunk in self._grid.chunks(padding.start, padding.size):
            self._add(cipher, chunk, bytearray(chunk.size))

    def _add(self, cipher: MemberCipher, chunk: Chunk, plaintext: bytearray) -> None:
        if chunk.at < self._end:
            raise SealRefused("the payload is written forwards only")
        number = chunk.at // self._grid.block
        if number != self._block.number:
            self._flush()
            size = min(self._grid.block, self._index.length - number * self._grid.block)
            self._block = _Block(number, size)
        block, inside = self._block, chunk.at % self._grid.block
        block.jobs.append((cipher, chunk, plaintext))
        block.used = inside + chunk.sealed_size
        self._end = chunk.at + chunk.sealed_size

    def _flush(self) -> None:
        block = self._block
        # The room that no member uses is random, so that it does not show where a member ends.
        rest = len(block.sealed) - block.used
        block.sealed[block.used :] = os.urandom(rest)
        while len(self._pending) > self._workers:
            self._collect()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="seal")
        self._pending.append(self._pool.submit(self._seal, block))

    def _seal(self, block: _Block) -> tuple[bytes, int, int]:
        for cipher, chunk, plaintext in block.jobs:
            inside = chunk.at % self._grid.block
            cipher.seal_into(chunk, plaintext, block.sealed[inside : inside + chunk.sealed_size])
        view, at = block.sealed, self._at + block.number * self._grid.block
        while view:
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written
        return self._digest(block.sealed).digest(), zlib.crc32(block.sealed), len(block.sealed)

    def _collect(self) -> None:
        self._note(self._pending.popleft().result)

    def _note(self, result: Callable[[], tuple[bytes, int, int]]) -> None:
        try:
            digest, crc, size = result()
        except OSError as error:
            raise SealRefused(f"the output cannot be written: {error.strerror}") from error
        self._digests.append(digest)
        self._crc = crc32_join(self._crc, crc, size)
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._index.length)

    def finish(self) -> tuple[list[bytes], int]:
        """The digests of all blocks, and the CRC-32 of the payload part (payload and digests)."""
        if self._pool is None:
            # Starting threads for a single block would cost more than the block.
            self._note(lambda: self._seal(self._block))
        else:
            self._flush()
        while self._pending:
            self._collect()
        listed = b"".join(self._digests)
        return self._digests, crc32_join(self._crc, zlib.crc32(listed), len(listed))


def _fill(stream: IO[bytes], into: memoryview, name: str) -> None:
    read = getattr(stream, "readinto", None)
    while into:
        if read is not None:
            got = read(into) or 0
        else:
            octets = stream.read(len(into))
            got = len(octets)
            into[:got] = octets
        if not got:
            raise changed(name)
        into = into[got:]
