"""What an attacker builds out of a good archive."""

from __future__ import annotations

import struct
import zlib

from strongroom.archive.outer import Outer
from strongroom.archive.unseal import SealedArchive


def layout(path) -> Outer:
    with SealedArchive.open(path) as archive:
        return archive._storage.layout(archive.header)


def streamed_names(octets: bytes) -> list[str]:
    """What a reader extracts that walks local headers, as Java's ZipInputStream does."""
    names, at = [], 0
    while octets[at : at + 4] == b"PK\x03\x04":
        size, _, name, extra = struct.unpack("<IIHH", octets[at + 18 : at + 30])
        names.append(octets[at + 30 : at + 30 + name].decode())
        at += 30 + name + extra + size
    return names


def local_entry(name: str, content: bytes) -> bytes:
    head = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0x21, zlib.crc32(content), len(content), len(content), len(name), 0
    )
    return head + name.encode() + content


def with_hidden_entry(path, name: str = "sitecustomize.py", content: bytes = b"import os\n") -> bytes:
    """A local entry before the gap that the central directory does not list; all its offsets are put right."""
    outer, octets = layout(path), path.read_bytes()
    entry = local_entry(name, content)
    cut = len(outer.front) - 4
    grown = octets[:cut] + entry + octets[cut:]
    # The end of the central directory is found from the back; only absolute offsets move.
    tail = bytearray(grown[outer.tail_at + len(entry) :])
    for at in (tail.rindex(b"PK\6\6") + 48, tail.rindex(b"PK\6\7") + 8):
        tail[at : at + 8] = (int.from_bytes(tail[at : at + 8], "little") + len(entry)).to_bytes(8, "little")
    at = tail.rindex(b"PK\6\6") - 8
    tail[at : at + 8] = (int.from_bytes(tail[at : at + 8], "little") + len(entry)).to_bytes(8, "little")
    return grown[: outer.tail_at + len(entry)] + bytes(tail)
