"""The outer file: a zip in which nothing can hide (docs/format.md section 9).

Everything around the payload is computed from verified values here, and compared by readers; zip
libraries are never asked what is in a sealed archive, because they disagree.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

from strongroom.archive.header import HEADER_LIMIT
from strongroom.archive.manifest import CLEAR_LIMIT, CONFIG, MANIFEST
from strongroom.encoding import Reader
from strongroom.errors import ArchiveMalformed, MalformedInput

HEADER = "SEALED-INF/header"
SLOTS = "SEALED-INF/slots"
PAYLOAD = "SEALED-INF/payload"
GAP = b"SRGP"
PAGE = 4096

_DATE = 0x0021
_ATTRIBUTES = 0o100644 << 16
_MAX32 = 0xFFFFFFFF
_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_ZIP64_END = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_END = struct.Struct("<IHHHHIIH")
_LOCAL_MAGIC = 0x04034B50
PAYLOAD_LOCAL = _LOCAL.size + len(PAYLOAD) + 20


def _local(name: str, octets: bytes) -> bytes:
    raw = name.encode("ascii")
    crc = zlib.crc32(octets)
    return _LOCAL.pack(_LOCAL_MAGIC, 20, 0, 0, 0, _DATE, crc, len(octets), len(octets), len(raw), 0) + raw + octets


def _central(name: str, octets: bytes, offset: int) -> bytes:
    raw, crc, size = name.encode("ascii"), zlib.crc32(octets), len(octets)
    fields = (0x02014B50, 0x0314, 20, 0, 0, 0, _DATE, crc, size, size, len(raw), 0, 0, 0, 0, _ATTRIBUTES, offset)
    return _CENTRAL.pack(*fields) + raw


class Outer:
    """The layout of one file-form archive.

    `clear` holds the readable members in order; `header` is the header part's octets; the payload part
    (payload and digests) has `payload` octets and the CRC-32 `crc`; a slot generation has `generation`.
    """

    def __init__(self, clear: Mapping[str, bytes], header: bytes, *, generation: int, payload: int, crc: int) -> None:
        self._entries = {**clear, HEADER: header}
        self._generation, self._payload, self._crc = generation, payload, crc
        self._offsets: list[int] = []
        front = bytearray()
        for name, octets in self._entries.items():
            self._offsets.append(len(front))
            front += _local(name, octets)
        self.front = bytes(front) + GAP
        """Everything up to and with the gap's first four octets."""
        self.slots_at = -(-len(self.front) // PAGE) * PAGE
        """Where generation A begins; B follows."""
        self.payload_at = self.slots_at + 2 * generation + PAGE
        """Where the payload begins, a multiple of 4,096."""
        self.tail_at = self.payload_at + payload
        """Where the payload part ends and the central directory begins."""

    @property
    def before_slots(self) -> bytes:
        """The octets from 0 to `slots_at`."""
        return self.front + bytes(self.slots_at - len(self.front))

    @property
    def before_payload(self) -> bytes:
        """The octets from the slot area's end to `payload_at`."""
        raw = PAYLOAD.encode("ascii")
        local = _LOCAL.pack(_LOCAL_MAGIC, 45, 0, 0, 0, _DATE, self._crc, _MAX32, _MAX32, len(raw), 20)
        extra = struct.pack("<HHQQ", 1, 16, self._payload, self._payload)
        return bytes(PAGE - PAYLOAD_LOCAL) + local + raw + extra

    @property
    def tail(self) -> bytes:
        """The octets from `tail_at` to the end of the file."""
        directory = b"".join(
            _central(name, octets, offset)
            for (name, octets), offset in zip(self._entries.items(), self._offsets, strict=True)
        )
        raw = PAYLOAD.encode("ascii")
        directory += (
            _CENTRAL.pack(
                0x02014B50, 0x032D, 45, 0, 0, 0, _DATE, self._crc, _MAX32, _MAX32, len(raw), 28, 0, 0, 0,
                _ATTRIBUTES, _MAX32,
            )
            + raw
            + struct.pack("<HHQQQ", 1, 24, self._payload, self._payload, self.payload_at - PAYLOAD_LOCAL)
        )  # fmt: skip
        count = len(self._entries) + 1
        end_at = self.tail_at + len(directory)
        return b"".join(
            (
                directory,
                _ZIP64_END.pack(0x06064B50, 44, 0x032D, 45, 0, 0, count, count, len(directory), self.tail_at),
                _LOCATOR.pack(0x07064B50, 0, end_at, 1),
                _END.pack(0x06054B50, 0, 0, count, count, _MAX32, _MAX32, 0),
            )
        )

    @property
    def size(self) -> int:
        """Octets of the whole file."""
        return self.tail_at + len(self.tail)


def parse_front(read_at: FrontReader) -> tuple[dict[str, bytes], bytes]:
    """The readable members and the header part, from the first entries of a file; nothing is trusted.

    The caller re-encodes what it made of them and compares. Raises `ArchiveMalformed`.
    """
    found: dict[str, bytes] = {}
    for name, limit in ((MANIFEST, CLEAR_LIMIT), (CONFIG, CLEAR_LIMIT), (HEADER, HEADER_LIMIT)):
        found[name] = _entry(read_at, name, limit)
    if read_at.take(4) != GAP:
        raise ArchiveMalformed("something stands between the header and the gap")
    return {MANIFEST: found[MANIFEST], CONFIG: found[CONFIG]}, found[HEADER]


class FrontReader:
    """Reads a file from its start, by position, as far as it is asked to."""

    def __init__(self, pread: Callable[[int, int], bytes]) -> None:
        self._pread = pread
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next `size` octets; raises `ArchiveTruncated` at the file's end."""
        octets = self._pread(size, self.at)
        self.at += size
        return octets


def _entry(read_at: FrontReader, name: str, limit: int) -> bytes:
    try:
        read = Reader(read_at.take(_LOCAL.size), where=f"entry {name}")
        magic = read.uint_le(4)
        read.take(14)
        size = read.uint_le(4)
        read.take(4)
        name_length, extra = read.uint_le(2), read.uint_le(2)
    except MalformedInput as error:
        raise ArchiveMalformed(str(error)) from error
    if magic != _LOCAL_MAGIC or name_length != len(name) or extra or read_at.take(len(name)) != name.encode("ascii"):
        raise ArchiveMalformed(
            f"no entry {name} where a sealed archive has it",
            hint="is it a sealed archive at all? `strongroom seal` makes one",
        )
    if size > limit:
        raise ArchiveMalformed(f"entry {name}: {size} bytes, the limit is {limit}")
    return read_at.take(size)
