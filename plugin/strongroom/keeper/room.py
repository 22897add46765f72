"""Where an opened model lives: in memory, and nobody sees it before its last chunk was authenticated.

As a rule in anonymous memory files (memfd), sealed against writing, growing and shrinking, which stops even root. Where
the configuration says so, in a folder of a tmpfs that the launcher made (docs/keeper.md, rooms). Each member is
decrypted straight into the mapping of its file. On any failure the files are gone and with them the plaintext.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom.archive.index import Member
from strongroom.archive.unseal import OpenedArchive
from strongroom.keeper.mapping import AlignedMapping, Pace, written

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class RoomFile:
    """One member in memory: its path inside the archive, its size in bytes, the keeper's descriptor of it."""

    name: str
    size: int
    descriptor: int


class OpenRoom:
    """All members of one model, until `close`. `folder` is where they lie, None for memory files."""

    def __init__(self, files: Sequence[RoomFile], folder: Path | None = None) -> None:
        self.files = tuple(files)
        self.folder = folder

    @classmethod
    def open(
        cls,
        archive: OpenedArchive,
        *,
        only: Sequence[Member] | None = None,
        threads: int | None = None,
        rooms: Path | None = None,
    ) -> OpenRoom:
        """Decrypt everything, or `only` some; raises `ArchiveTampered` and its kin, and then nothing is left.

        `threads` is one for each core by default. With `rooms` the files lie in a new folder there.
        """
        folder = None if rooms is None else rooms / secrets.token_hex(16)
        room = cls((), folder)
        try:
            if folder is not None:
                folder.mkdir(mode=0o700)
            make = _memory_file if folder is None else _files_in(folder)
            room._fill(archive, archive.members if only is None else only, make, threads)
            for file in room.files:
                if folder is None:
                    fcntl.fcntl(file.descriptor, fcntl.F_ADD_SEALS, SEALS)
            if folder is not None:
                _give_out(folder)
        except BaseException:
            room.close()
            raise
        return room

    def _fill(
        self, archive: OpenedArchive, members: Sequence[Member], make: Callable[[str], int], threads: int | None
    ) -> None:
        pages: dict[Member, AlignedMapping] = {}
        targets: dict[Member, memoryview] = {}
        with contextlib.ExitStack() as mappings:
            for member in members:
                descriptor = make(member.name)
                self.files += (RoomFile(member.name, member.size, descriptor),)
                if member.size:
                    pages[member] = mappings.enter_context(written(descriptor, member.size))
                targets[member] = pages[member].view if member.size else memoryview(bytearray())
            pace = Pace()
            archive.unseal(
                targets,
                threads=threads,
                before=lambda member, start, size: pages[member].prepare(start, size, pace) if size else None,
            )

    def close(self) -> None:
        """Give the memory back; workers that have files open keep those."""
        for file in self.files:
            os.close(file.descriptor)
        self.files = ()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _memory_file(name: str) -> int:
    return os.memfd_create("strongroom", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _files_in(folder: Path) -> Callable[[str], int]:
    def make(name: str) -> int:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)

    return make


def _give_out(folder: Path) -> None:
    """From now on whoever knows the folder's name can read it: the server's user need not be the keeper's."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            os.chmod(os.path.join(path, name), 0o444)
        os.chmod(path, 0o555)  # noqa: S103 - nobody but who knows the folder's name gets this far
