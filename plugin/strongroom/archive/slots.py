"""The slot area: two alternating generations of recipient slots (docs/format.md section 10).

This module knows how slots are stored and authenticated; what a slot's body holds for which recipient
is `recipients`' work.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from dataclasses import dataclass, field

from strongroom.encoding import Reader, labelled
from strongroom.errors import ArchiveMalformed, ArchiveTampered, MalformedInput, SealRefused
from strongroom.keys import ArchiveDigest

MAGIC = b"SRSL"
FIXED = 82
SLOT_HEAD = 36
COUNT_LIMIT = 64
SEQUENCE_LIMIT = (1 << 64) - 1
PASSPHRASE_LIMIT = 4
PASSPHRASE = 3
AREA_LABEL = "strongroom archive v1 slots"
ONCE = "name each recipient once"


@dataclass(frozen=True, slots=True)
class Slot:
    """The model key, wrapped for one recipient."""

    kind: int
    recipient: bytes
    body: bytes = field(repr=False)

    def serialise(self) -> bytes:
        """The octets of section 10.1."""
        return self.kind.to_bytes(2, "big") + len(self.body).to_bytes(2, "big") + self.recipient + self.body


def parse_slots(octets: bytes, count: int) -> tuple[Slot, ...]:
    """Exactly `count` slots; raises `ArchiveMalformed`."""
    try:
        read = Reader(octets, where="slots")
        found = []
        for _ in range(count):
            kind, length, recipient = read.uint(2), read.uint(2), read.take(32)
            found.append(Slot(kind, recipient, read.take(length)))
        read.done()
    except MalformedInput as error:
        raise ArchiveMalformed(str(error)) from error
    if len({slot.recipient for slot in found}) != count:
        raise ArchiveMalformed("slots: one recipient stands twice")
    if Counter(slot.kind for slot in found)[PASSPHRASE] > PASSPHRASE_LIMIT:
        raise ArchiveMalformed(f"slots: more than {PASSPHRASE_LIMIT} passphrases")
    return tuple(found)


def check_count(slots: int, passphrases: int) -> None:
    """Raise `SealRefused` for more slots, or more passphrases among them, than an archive may have."""
    if slots > COUNT_LIMIT:
        raise SealRefused(f"{slots} recipients; an archive has at most {COUNT_LIMIT}", hint="name fewer recipients")
    if passphrases > PASSPHRASE_LIMIT:
        raise SealRefused(
            f"{passphrases} passphrases; an archive has at most {PASSPHRASE_LIMIT}", hint="name fewer passphrases"
        )


def check_room(count: int, octets: int, capacity: int) -> None:
    """Raise `SealRefused` where `count` slots of `octets` in all do not fit a generation of `capacity`."""
    if FIXED + octets > capacity:
        raise SealRefused(
            f"{count} recipients need {FIXED + octets} bytes, this archive has room for {capacity}",
            hint="seal again with more slot pages, or remove recipients",
        )


def _mac(slot_key: bytes, digest: ArchiveDigest, sequence: int, slots: bytes) -> bytes:
    message = labelled(AREA_LABEL, digest, sequence.to_bytes(8, "big"), slots)
    return hmac.digest(slot_key, message, "sha256")


@dataclass(frozen=True, slots=True)
class Generation:
    """One complete set of slots."""

    sequence: int
    slots: tuple[Slot, ...]
    mac: bytes = field(repr=False)

    @classmethod
    def make(cls, sequence: int, slots: tuple[Slot, ...], *, slot_key: bytes, digest: ArchiveDigest) -> Generation:
        """Authenticate slots under the archive's slot key; raises `SealRefused` where they cannot be."""
        if sequence > SEQUENCE_LIMIT:
            raise SealRefused(
                f"the recipients of this archive cannot change again: their sequence is {SEQUENCE_LIMIT}, the last one",
                hint="get the archive again, as it was before somebody wrote that, or seal the model again",
            )
        check_count(len(slots), sum(slot.kind == PASSPHRASE for slot in slots))
        octets = b"".join(slot.serialise() for slot in slots)
        try:
            parse_slots(octets, len(slots))
        except ArchiveMalformed as error:
            raise SealRefused(str(error), hint=ONCE) from error
        return cls(sequence, slots, _mac(slot_key, digest, sequence, octets))

    def check(self, slot_key: bytes, digest: ArchiveDigest) -> None:
        """Raise `ArchiveTampered` unless a holder of the model key wrote these slots for this archive.

        Nobody but such a holder can mend that, and only by keeping none of them.
        """
        octets = b"".join(slot.serialise() for slot in self.slots)
        if not hmac.compare_digest(self.mac, _mac(slot_key, digest, self.sequence, octets)):
            raise ArchiveTampered(
                "the recipients of this archive were changed by somebody without its key: their MAC does not hold",
                hint="whoever has it writes them anew: strongroom rewrap SEALED.mar --key KEY --replace --add FILE",
            )

    def serialise(self, capacity: int) -> bytes:
        """`capacity` octets, zeros after the slots; raises `SealRefused` where they do not fit."""
        slots = b"".join(slot.serialise() for slot in self.slots)
        check_room(len(self.slots), len(slots), capacity)
        fixed = (
            MAGIC
            + self.sequence.to_bytes(8, "big")
            + len(self.slots).to_bytes(2, "big")
            + len(slots).to_bytes(4, "big")
            + self.mac
        )
        octets = fixed + hashlib.sha256(fixed + slots).digest() + slots
        return octets + bytes(capacity - len(octets))

    @classmethod
    def parse(cls, octets: bytes) -> Generation | None:
        """A generation, or None where it is not intact; raises `ArchiveMalformed` for intact nonsense."""
        if octets[:4] != MAGIC or len(octets) < FIXED:
            return None
        sequence = int.from_bytes(octets[4:12], "big")
        count, length = int.from_bytes(octets[12:14], "big"), int.from_bytes(octets[14:18], "big")
        slots = octets[FIXED : FIXED + length]
        if len(slots) != length or hashlib.sha256(octets[:50] + slots).digest() != octets[50:82]:
            return None
        if sequence < 1 or count > COUNT_LIMIT:
            raise ArchiveMalformed(f"slots: sequence {sequence} with {count} slots")
        return cls(sequence, parse_slots(slots, count), octets[18:50])


@dataclass(frozen=True, slots=True)
class SlotArea:
    """Both generations as read; `current` is the intact one with the higher sequence."""

    current: Generation
    current_is_b: bool

    @classmethod
    def parse(cls, octets: bytes) -> SlotArea:
        """From the octets of both generations; raises `ArchiveMalformed` where none is intact."""
        half = len(octets) // 2
        a, b = Generation.parse(octets[:half]), Generation.parse(octets[half:])
        if a is None and b is None:
            raise ArchiveMalformed("neither generation of slots is intact", hint="get the archive again")
        if a is not None and b is not None and a.sequence == b.sequence:
            raise ArchiveMalformed("both generations of slots have one sequence")
        if b is not None and (a is None or b.sequence > a.sequence):
            return cls(b, True)
        assert a is not None
        return cls(a, False)
