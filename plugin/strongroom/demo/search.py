"""Look for plaintext where a host could look: files, memory files, logs.

`needles` cuts recognisable pieces out of what must stay secret; `hits` searches every file under some
folders for them. A search that could not find anything would be worthless, so whoever uses it also plants
a needle and finds it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PIECE = 24
OVERLAP = 1 << 10


@dataclass(frozen=True, slots=True)
class Hit:
    """A secret piece that was found where it must not be."""

    place: str
    what: str


def needles(secret: bytes, *, count: int = 64) -> list[bytes]:
    """Up to `count` pieces of 24 bytes, spread over `secret`, none of them dull (few distinct bytes)."""
    step = max(1, (len(secret) - PIECE) // count)
    pieces = (secret[at : at + PIECE] for at in range(0, max(1, len(secret) - PIECE + 1), step))
    return [piece for piece in pieces if len(piece) == PIECE and len(set(piece)) >= 6]


def hits(places: Iterable[Path], secrets: dict[str, list[bytes]]) -> tuple[list[Hit], int, int]:
    """(hits, files searched, bytes searched) over every regular file under `places`; links are not followed."""
    found: list[Hit] = []
    files = octets = 0
    for path in _files(places):
        try:
            searched = _search(path, secrets, found)
        except OSError:
            continue  # it went away while we looked
        files += 1
        octets += searched
    return found, files, octets


def found_in(octets: bytes, secrets: dict[str, list[bytes]], place: str) -> list[Hit]:
    """Hits in bytes at hand."""
    return [Hit(place, name) for name, pieces in secrets.items() if any(piece in octets for piece in pieces)]


def _files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_file():
            yield place
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                try:
                    if stat.S_ISREG(path.lstat().st_mode):
                        yield path
                except OSError:
                    continue


def _search(path: Path, secrets: dict[str, list[bytes]], found: list[Hit]) -> int:
    searched, tail = 0, b""
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            searched += len(block)
            found += found_in(tail + block, secrets, str(path))
            tail = block[-OVERLAP:]
    return searched
