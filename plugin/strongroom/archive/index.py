"""The index: what is in an archive, once it is decrypted (docs/format.md section 6)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from strongroom.archive.blocks import DIGEST, Grid
from strongroom.encoding import Reader
from strongroom.errors import ArchiveMalformed, MalformedInput

MEMBER_LIMIT = 1 << 44
ENTRY_LIMIT = 100_000
NAME_LIMIT = 1024
PAGE = 512
PADDING_DIGEST = bytes(DIGEST)

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\\\\:]")


class EntryType(IntEnum):
    """What an index entry is."""

    FILE = 0
    PADDING = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One sealed file: its path below the model's folder, its size and the digest of its plaintext."""

    name: str
    size: int
    digest: bytes
    number: int
    start: int

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.size} bytes)"


def check_name(name: str) -> None:
    """Raise `ArchiveMalformed` unless `name` is a member name of section 6."""
    octets = name.encode("utf-8", "surrogatepass")
    if not 1 <= len(octets) <= NAME_LIMIT:
        raise ArchiveMalformed(f"a member name has {len(octets)} bytes; allowed is 1 to {NAME_LIMIT}")
    if any(0xD800 <= ord(each) <= 0xDFFF for each in name) or _FORBIDDEN.search(name):
        raise ArchiveMalformed(f"member name {name!a} has a character that no member name may have")
    if unicodedata.normalize("NFC", name) != name:
        raise ArchiveMalformed(f"member name {name!a} is not in NFC")
    parts = name.split("/")
    if any(part in {"", ".", ".."} or len(part.encode()) > 255 for part in parts):
        raise ArchiveMalformed(f"member name {name!a} is not a plain relative path")
    if parts[0].casefold() == "sealed-inf":
        raise ArchiveMalformed(f"member name {name!a} lies in the archive's own folder")


def check_names(names: Iterable[str]) -> None:
    """Raise `ArchiveMalformed` for a bad name, a name twice, or a file that is another one's folder."""
    seen: set[str] = set()
    for name in names:
        check_name(name)
        folded = name.casefold()
        if folded in seen:
            raise ArchiveMalformed(f"member {name!a} stands twice, at least after case folding")
        seen.add(folded)
    # No name has a NUL, and nothing sorts before it: what lies below a name comes right behind that name.
    for name, following in pairwise(sorted(each.replace("/", "\0") for each in seen)):
        if following.startswith(f"{name}\0"):
            raise ArchiveMalformed(f"member {name.replace(chr(0), '/')!a} is also a folder")


@dataclass(frozen=True, slots=True)
class Index:
    """The members in payload order, and the size of the padding entry if there is one."""

    members: tuple[Member, ...]
    padding: int | None
    length: int

    @classmethod
    def build(cls, grid: Grid, files: Sequence[tuple[str, int, bytes]], padding: int | None = None) -> Index:
        """From (name, size, digest) of each file, in payload order."""
        sizes = [size for _, size, _ in files] + ([] if padding is None else [padding])
        starts = grid.place(sizes)
        members = tuple(
            Member(name, size, digest, number, starts[number]) for number, (name, size, digest) in enumerate(files)
        )
        return cls(members, padding, grid.end(starts[-1], sizes[-1]) if sizes else 0)

    def padding_member(self, grid: Grid) -> Member | None:
        """The padding as the last member, without a name, where there is one."""
        if self.padding is None:
            return None
        last = self.members[-1]
        start = grid.start(grid.end(last.start, last.size))
        return Member("", self.padding, PADDING_DIGEST, len(self.members), start)

    @classmethod
    def parse(cls, octets: bytes, grid: Grid) -> Index:
        """Strictly; raises `ArchiveMalformed`."""
        try:
            read = Reader(octets, where="index")
            count = read.uint(4)
            if not 1 <= count <= ENTRY_LIMIT:
                raise ArchiveMalformed(f"index: {count} entries; allowed is 1 to {ENTRY_LIMIT}")
            files: list[tuple[str, int, bytes]] = []
            padding: int | None = None
            for _ in range(count):
                if padding is not None:
                    raise ArchiveMalformed("index: an entry follows the padding entry")
                kind, raw = read.uint(1), read.take(read.uint(2))
                size, digest = read.uint(8), read.take(DIGEST)
                if size > MEMBER_LIMIT:
                    raise ArchiveMalformed("index: a member is larger than any member may be")
                if kind == EntryType.FILE:
                    files.append((raw.decode("utf-8"), size, digest))
                elif kind == EntryType.PADDING and not raw and digest == PADDING_DIGEST:
                    padding = size
                else:
                    raise ArchiveMalformed("index: an entry is neither a file nor padding")
            rest = read.rest()
        except MalformedInput as error:
            raise ArchiveMalformed(str(error)) from error
        except UnicodeDecodeError as error:
            raise ArchiveMalformed("index: a member name is not UTF-8") from error
        if any(rest) or len(rest) >= PAGE or len(octets) % PAGE:
            raise ArchiveMalformed("index: its padding is not the canonical one")
        if not files:
            raise ArchiveMalformed("index: there is no file in it")
        check_names(name for name, _, _ in files)
        return cls.build(grid, files, padding)

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        entries = [(EntryType.FILE, each.name.encode(), each.size, each.digest) for each in self.members]
        if self.padding is not None:
            entries.append((EntryType.PADDING, b"", self.padding, PADDING_DIGEST))
        octets = bytearray(len(entries).to_bytes(4, "big"))
        for kind, name, size, digest in entries:
            octets += bytes([kind]) + len(name).to_bytes(2, "big") + name + size.to_bytes(8, "big") + digest
        return bytes(octets) + bytes(-len(octets) % PAGE)
