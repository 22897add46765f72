"""The audit log as files: C2SP tlog-tiles, for whoever verifies it without us (docs/release.md section 12).

checkpoint               the signed note
tile/<level>/<index>     256 hashes of that level, fewer in the last: <index>.p/<width>
tile/entries/<index>     256 entries, each after its length in 16 bits
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom.broker.audit import Checkpoint, NoteKey
from strongroom.broker.merkle import consistency_proof, leaf_hash, root_of, verify_consistency
from strongroom.errors import AuditError

WIDTH = 256


def tile_path(kind: str, index: int, width: int = WIDTH) -> str:
    """``tile/<kind>/x001/x234/067``, with ``.p/<width>`` for a tile that is not full."""
    digits = [f"{index % 1000:03d}"]
    while index := index // 1000:
        digits.insert(0, f"x{index % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{kind}/{'/'.join(digits)}{partial}"


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The hashes of every level that has one: level n holds roots of complete trees of 256**n leaves."""
    levels = [list(leaves)]
    while len(levels[-1]) >= WIDTH:
        below = levels[-1]
        levels.append([root_of(below[at : at + WIDTH]) for at in range(0, len(below) - WIDTH + 1, WIDTH)])
    return levels


class Writer:
    """Writes a log below a folder, from its first entry on, and later what was added; remembers only the last tiles.

    What stands in the folder already must agree: `AuditError`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.size = 0
        self.new = 0
        """Files that were not there before."""
        self._bundle: list[bytes] = []
        self._tails: list[tuple[int, list[bytes]]] = [(0, [])]  # of each level: its full tiles, the hashes after them

    def append(self, entries: Iterable[bytes]) -> None:
        """The next entries, in order. Full tiles are written now, the last ones by `publish`."""
        for entry in entries:
            self._bundle.append(entry)
            if len(self._bundle) == WIDTH:
                self._full("entries", self.size // WIDTH, _bundled(self._bundle))
                self._bundle = []
            self.size += 1
            self._add(0, leaf_hash(entry))

    def _add(self, level: int, hashed: bytes) -> None:
        if level == len(self._tails):
            self._tails.append((0, []))
        full, tail = self._tails[level]
        tail.append(hashed)
        if len(tail) == WIDTH:
            self._full(str(level), full, b"".join(tail))
            self._tails[level] = (full + 1, [])
            self._add(level + 1, root_of(tail))

    def _full(self, kind: str, index: int, octets: bytes) -> None:
        path = self._folder / tile_path(kind, index)
        self.new += _place(path, octets)
        shutil.rmtree(path.with_name(f"{path.name}.p"), ignore_errors=True)  # partial ones are of no more use

    def publish(self, checkpoint: str) -> None:
        """The tiles that are not full, and then the checkpoint, so that it never names what is not there."""
        for level, (full, tail) in enumerate(self._tails):
            if tail:
                self.new += _place(self._folder / tile_path(str(level), full, len(tail)), b"".join(tail))
        if self._bundle:
            path = self._folder / tile_path("entries", self.size // WIDTH, len(self._bundle))
            self.new += _place(path, _bundled(self._bundle))
        _replace(self._folder / "checkpoint", checkpoint.encode())


def _bundled(entries: Iterable[bytes]) -> bytes:
    return b"".join(len(each).to_bytes(2, "big") + each for each in entries)


def write(folder: Path, entries: Iterable[bytes], checkpoint: str) -> int:
    """Write the whole log below `folder`; how many files are new. Raises `AuditError`."""
    writer = Writer(folder)
    writer.append(entries)
    writer.publish(checkpoint)
    return writer.new


def _place(path: Path, octets: bytes) -> int:
    if path.exists():
        if path.read_bytes() != octets:
            raise AuditError(f"{path} differs from the log", hint="one of the two was changed; keep both")
        return 0
    _replace(path, octets)
    return 1


def _replace(path: Path, octets: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@dataclass(frozen=True, slots=True)
class Exported:
    """A log read back from files and found whole."""

    checkpoint: Checkpoint
    entries: tuple[bytes, ...]


def read(folder: Path, key: NoteKey) -> Exported:
    """Read and verify an exported log: signature, root, every entry and every tile. Raises `AuditError`."""
    checkpoint = Checkpoint.verify(_octets(folder, "checkpoint").decode("utf-8", "replace"), key)
    entries: list[bytes] = []
    for at in range(0, checkpoint.size, WIDTH):
        width = min(WIDTH, checkpoint.size - at)
        entries += _bundle(_octets(folder, tile_path("entries", at // WIDTH, width)), width)
    leaves = [leaf_hash(each) for each in entries]
    levels = _levels(leaves)
    if root_of(leaves) != checkpoint.root:
        raise AuditError(
            f"the {checkpoint.size} entries are not those that the checkpoint signs{_where(folder, levels)}",
            hint="an entry was altered, dropped or reordered after the broker signed",
        )
    for level, hashes in enumerate(levels):
        for at in range(0, len(hashes), WIDTH):
            part = hashes[at : at + WIDTH]
            name = tile_path(str(level), at // WIDTH, len(part))
            if _octets(folder, name) != b"".join(part):
                raise AuditError(f"{name} does not hold the hashes of its entries")
    return Exported(checkpoint, tuple(entries))


def _where(folder: Path, levels: list[list[bytes]]) -> str:
    """The first entry that disagrees with its tile, to show where to look."""
    for number, leaf in enumerate(levels[0]):
        index = number // WIDTH
        width = min(WIDTH, len(levels[0]) - index * WIDTH)
        tile = _octets(folder, tile_path("0", index, width))
        at = 32 * (number % WIDTH)
        if tile[at : at + 32] != leaf:
            return f"; the first that differs from its tile is entry {number}"
    return ""


def _octets(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise AuditError(f"{name} is missing from the exported log") from error


def _bundle(octets: bytes, width: int) -> list[bytes]:
    entries, at = [], 0
    for _ in range(width):
        size = int.from_bytes(octets[at : at + 2], "big")
        entry = octets[at + 2 : at + 2 + size]
        if len(octets) < at + 2 or len(entry) != size:
            raise AuditError("an entry bundle ends before its last entry")
        entries.append(entry)
        at += 2 + size
    if at != len(octets):
        raise AuditError("an entry bundle has bytes after its last entry")
    return entries


def extends(exported: Exported, older: Checkpoint) -> None:
    """Raise `AuditError` unless the log of `older` is the beginning of this one."""
    leaves = [leaf_hash(each) for each in exported.entries]
    if older.size > len(leaves):
        raise AuditError(
            f"the kept checkpoint has {older.size} entries, the log only {len(leaves)}",
            hint="entries were dropped, or an old backup was restored",
        )
    proof = consistency_proof(leaves, older.size) if older.size else []
    verify_consistency(older.size, older.root, len(leaves), exported.checkpoint.root, proof)
