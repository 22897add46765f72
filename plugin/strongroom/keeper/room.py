"""Where an opened model lives: anonymous memory files, sealed read-only before anyone else sees them.

Each member is decrypted straight into the mapping of a memfd. Only when its last chunk was authenticated
is the mapping dropped and the file sealed against writing, growing and shrinking, which stops even root.
On any failure the files are closed and with them the plaintext is gone: nothing was visible.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.archive.index import Member
from strongroom.archive.unseal import OpenedArchive
from strongroom.keeper.mapping import AlignedMapping, Pace, written

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """One member in memory: its path inside the archive, its size in bytes, its sealed descriptor."""

    name: str
    size: int
    descriptor: int


class OpenRoom:
    """All members of one model, until `close`."""

    def __init__(self, files: Sequence[MemoryFile]) -> None:
        self.files = tuple(files)

    @classmethod
    def open(
        cls, archive: OpenedArchive, *, only: Sequence[Member] | None = None, threads: int | None = None
    ) -> OpenRoom:
        """Decrypt everything, or `only` some; raises `ArchiveTampered` and its kin, and then nothing is left.

        `threads` is one for each core by default.
        """
        descriptors: list[int] = []
        files: list[MemoryFile] = []
        try:
            with contextlib.ExitStack() as mappings:
                pages: dict[Member, AlignedMapping] = {}
                empty = memoryview(bytearray())
                targets: dict[Member, memoryview] = {}
                for member in archive.members if only is None else only:
                    descriptor = os.memfd_create("strongroom", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                    descriptors.append(descriptor)
                    files.append(MemoryFile(member.name, member.size, descriptor))
                    if member.size:
                        pages[member] = mappings.enter_context(written(descriptor, member.size))
                    targets[member] = pages[member].view if member.size else empty
                pace = Pace()
                archive.unseal(
                    targets,
                    threads=threads,
                    before=lambda member, start, size: pages[member].prepare(start, size, pace) if size else None,
                )
            for descriptor in descriptors:
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return cls(files)

    def close(self) -> None:
        """Give the memory back; workers that hold descriptors keep theirs."""
        for file in self.files:
            os.close(file.descriptor)
        self.files = ()
