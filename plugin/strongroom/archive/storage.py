"""Where the parts of an archive lie on the disk: one file, or a folder (docs/format.md sections 2 and 9).

Reads by `pread` only, never by mapping: a mapped file that shrinks or changes would do so under our
feet. Nothing here is trusted; lengths are checked, contents are the caller's business.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from strongroom.archive.header import HEADER_LIMIT, Header, SignedCore
from strongroom.archive.manifest import CLEAR_LIMIT, CONFIG, MANIFEST
from strongroom.archive.outer import HEADER, PAYLOAD, SLOTS, FrontReader, Outer, parse_front
from strongroom.errors import ArchiveError, ArchiveMalformed, ArchiveTampered, ArchiveTruncated

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Part:
    """One open file, read by position."""

    def __init__(self, path: Path | str, *, folder: int | None = None) -> None:
        self.path = path
        try:
            # Inside an archive's own folder a link is no part of it; O_NONBLOCK keeps a pipe from hanging us.
            flags = _FLAGS | (os.O_NOFOLLOW if folder is not None else 0)
            self.descriptor = os.open(path, flags, dir_fd=folder)
        except OSError as error:
            raise ArchiveError(f"{path}: {error.strerror}") from error
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.descriptor)
            raise ArchiveMalformed(f"{path} is no regular file")
        self.size = status.st_size

    def close(self) -> None:
        """Close the file; again does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read_into(self, into: memoryview, at: int) -> None:
        """Fill a buffer from position `at`; raises `ArchiveTruncated` where the file ends before."""
        while into:
            try:
                got = os.preadv(self.descriptor, [into], at)
            except OSError as error:
                raise ArchiveError(f"{self.path} cannot be read: {error.strerror}") from error
            if not got:
                raise ArchiveTruncated(
                    f"{self.path} ends at {at} bytes, before its signed length", hint="get the archive again"
                )
            into, at = into[got:], at + got

    def read(self, size: int, at: int) -> bytes:
        """`size` octets at `at`; raises `ArchiveTruncated`."""
        if at + size > self.size:
            raise ArchiveTruncated(
                f"{self.path} has {self.size} bytes, {at + size} are needed", hint="get the archive again"
            )
        octets = bytearray(size)
        self.read_into(memoryview(octets), at)
        return bytes(octets)


class Storage:
    """The parts of one archive as found: readable members, header octets, and the payload by position."""

    clear: Mapping[str, bytes]
    header: bytes
    payload: Part
    payload_at: int
    form: str

    def __init__(self, path: Path) -> None:
        self.path = path

    def layout(self, header: Header) -> Outer:
        """The outer octets that belong to this header and these readable members."""
        core = header.core
        part = core.payload_length + core.digests_length
        return Outer(self.clear, self.header, generation=core.generation, payload=part, crc=core.payload_crc)

    def slots(self, core: SignedCore) -> bytes:
        """The octets of both slot generations."""
        raise NotImplementedError

    @property
    def slots_place(self) -> tuple[Path, int]:
        """The file that holds the slot area, and where in it; for `rewrap`."""
        raise NotImplementedError

    def check_lengths(self, header: Header) -> None:
        """Raise `ArchiveTruncated` or `ArchiveTampered` where files are shorter or longer than the header says."""
        raise NotImplementedError

    def check_outer(self, header: Header) -> None:
        """Compare everything around the parts with its computed octets; raises `ArchiveTampered`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all files."""
        self.payload.close()


def _exactly(path: Path | str, found: int, wanted: int) -> None:
    if found < wanted:
        raise ArchiveTruncated(f"{path} has {found} bytes, {wanted} belong to it", hint="get the archive again")
    if found > wanted:
        raise ArchiveTampered(f"{path} has {found - wanted} bytes after its end", hint="get the archive again")


class FileStorage(Storage):
    """The file form: a zip with a gap."""

    form = "file"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.payload = Part(path)
        try:
            self.clear, self.header = parse_front(FrontReader(self.payload.read))
        except BaseException:
            self.payload.close()
            raise

    def check_lengths(self, header: Header) -> None:
        """The file has exactly the computed size."""
        outer = self.layout(header)
        self.payload_at = outer.payload_at
        self._slots_at = outer.slots_at
        _exactly(self.path, self.payload.size, outer.size)

    def slots(self, core: SignedCore) -> bytes:
        """From the gap."""
        return self.payload.read(2 * core.generation, self._slots_at)

    @property
    def slots_place(self) -> tuple[Path, int]:
        """The gap."""
        return self.path, self._slots_at

    def check_outer(self, header: Header) -> None:
        """The front, the zeros, the payload's local header and the central directory."""
        outer = self.layout(header)
        slots_end = outer.slots_at + 2 * header.core.generation
        for wanted, at in ((outer.before_slots, 0), (outer.before_payload, slots_end), (outer.tail, outer.tail_at)):
            if self.payload.read(len(wanted), at) != wanted:
                raise ArchiveTampered(
                    f"{self.path}: the zip structure around the sealed parts is not the one that belongs to them",
                    hint="get the archive again from its author",
                )


def check_listing(path: Path) -> None:
    """Raise `ArchiveMalformed` or `ArchiveTampered` unless a folder holds the parts of an archive and nothing else."""
    wanted = {MANIFEST, CONFIG, HEADER, SLOTS, PAYLOAD}
    folders = {"MAR-INF", "SEALED-INF"}
    try:
        found = {
            entry.relative_to(path).as_posix()
            for folder in (path, *(path / each for each in sorted(folders)))
            for entry in folder.iterdir()
        }
    except OSError as error:
        raise ArchiveMalformed(
            f"{path} is no sealed archive: {error.strerror}", hint="`strongroom seal` makes one"
        ) from error
    if any((path / each).is_symlink() for each in folders):
        raise ArchiveMalformed(f"{path}: its folders are links")
    for name in sorted(wanted - found):
        raise ArchiveMalformed(f"{path} is no sealed archive: {name} is missing")
    for name in sorted(found - wanted - folders):
        raise ArchiveTampered(
            f"{path} holds {name!a}, which no sealed archive does",
            hint="get the archive again from its author",
        )


class FolderStorage(Storage):
    """The directory form."""

    form = "directory"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        check_listing(path)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.clear = {name: _small(name, folder, CLEAR_LIMIT) for name in (MANIFEST, CONFIG)}
            self.header = _small(HEADER, folder, HEADER_LIMIT)
            self._area = _small(SLOTS, folder, 2 * 32 * 4096)
            self.payload = Part(PAYLOAD, folder=folder)
        finally:
            os.close(folder)
        self.payload_at = 0

    def check_lengths(self, header: Header) -> None:
        """Payload and slot area have exactly their sizes."""
        core = header.core
        _exactly(self.path / SLOTS, len(self._area), 2 * core.generation)
        _exactly(self.path / PAYLOAD, self.payload.size, core.payload_length + core.digests_length)

    def slots(self, core: SignedCore) -> bytes:
        """From the file of that name."""
        return self._area

    @property
    def slots_place(self) -> tuple[Path, int]:
        """The file of its own."""
        return self.path / SLOTS, 0

    def check_outer(self, header: Header) -> None:
        """There are no other octets than the parts; the listing was checked when it was opened."""


def _small(name: str, folder: int, limit: int) -> bytes:
    part = Part(name, folder=folder)
    try:
        if part.size > limit:
            raise ArchiveMalformed(f"{name}: {part.size} bytes, the limit is {limit}")
        return part.read(part.size, 0)
    finally:
        part.close()


def open_storage(path: Path) -> Storage:
    """The storage at `path`, of whichever form."""
    return FolderStorage(path) if path.is_dir() else FileStorage(path)
