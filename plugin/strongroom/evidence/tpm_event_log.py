"""TCG event logs, and our own: what software says was measured, replayed against the registers.

"TCG PC Client Platform Firmware Profile", revision 1.06, section 10: the first event has the SHA-1 form
and states the banks (Spec ID Event03), all others are TCG_PCR_EVENT2 and carry a digest for each bank.
Older firmware writes all events in the SHA-1 form (section 10.2.1): a log of the SHA-1 bank alone, which no quote
that is accepted here has. Little-endian. EV_NO_ACTION events extend nothing; a StartupLocality event says with
which value PCR 0 began. A log is only as good as its replay: `EventLog.replay` gives the registers that the log
claims, and `strongroom.evidence.tpm` compares them with those that were quoted.

Our own log (`LaunchEvent`) is the list of what `strongroom launch` extended: docs/attestation/tpm.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.encoding import Fields, Reader, labelled
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.door import at_the_door
from strongroom.evidence.tpm_structures import DIGEST_SIZES, HASHES, PCRS

EV_NO_ACTION = 0x00000003
EV_SEPARATOR = 0x00000004
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
LARGEST_EVENT = 1 << 20
MOST_EVENTS = 1 << 14
LABEL = "strongroom tpm event 1"
LAUNCH_PCR = 14
"""Where `launch` extends its events unless it is told otherwise: static until reboot, used by shim at most."""
_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")  # UEFI 2.10 section 3.3, as stored
_SECURE_BOOT = "SecureBoot".encode("utf-16-le")
_SPEC_ID = b"Spec ID Event03\0"
_SHA1_HEAD = 32
"""Bytes before the data of an event in the SHA-1 form: PCR, type, digest, size."""


@dataclass(frozen=True, slots=True)
class Event:
    """One measured event: its register, type, a digest for each bank, and the data, which nobody signs."""

    pcr: int
    kind: int
    digests: Mapping[str, bytes]
    data: bytes


@dataclass(frozen=True, slots=True)
class EventLog:
    """A parsed log; `banks` are those of its header that are known here."""

    banks: tuple[str, ...]
    events: tuple[Event, ...]

    @classmethod
    def parse(cls, octets: bytes) -> EventLog:
        """Read a whole log and nothing after it, crypto-agile or of SHA-1 alone; raises `EvidenceMalformed`."""
        with at_the_door("TCG event log"):
            read = Reader(octets, where="TCG event log")
            agile = octets[_SHA1_HEAD : _SHA1_HEAD + len(_SPEC_ID)] == _SPEC_ID
            sizes = _header(read) if agile else {}
            events = [] if agile else [_sha1_event(read)]
            while read.left:
                if len(events) >= MOST_EVENTS:
                    raise EvidenceMalformed(f"TCG event log: more than {MOST_EVENTS} events")
                events.append(_event(read, sizes) if agile else _sha1_event(read))
            banks = tuple(HASHES[number] for number in sizes if number in HASHES) if agile else ("sha1",)
            return cls(banks, tuple(events))

    def replay(self, bank: str) -> dict[int, bytes]:
        """PCR → value after all events, for each register that the log extends; raises `EvidenceMalformed`."""
        if bank not in self.banks:
            raise EvidenceMalformed(f"TCG event log has no {bank} digests, only {', '.join(self.banks)}")
        registers: dict[int, bytes] = {}
        start = bytes(DIGEST_SIZES[bank])
        for event in self.events:
            if event.kind == EV_NO_ACTION:
                locality = _startup_locality(event)
                if locality is not None:
                    if 0 in registers:
                        raise EvidenceMalformed("TCG event log: StartupLocality after PCR 0 was extended")
                    registers[0] = start[:-1] + bytes((locality,))
                continue
            value = registers.get(event.pcr, start)
            registers[event.pcr] = hashlib.new(bank, value + event.digests[bank]).digest()
        return registers

    def secure_boot(self, bank: str) -> bool | None:
        """What the firmware measured of the SecureBoot variable into PCR 7; None where it did not.

        The data of an event is only believed where the event's digest is the digest of that data.
        """
        for event in self.events:
            if (
                event.kind != EV_EFI_VARIABLE_DRIVER_CONFIG
                or event.pcr != 7
                or event.digests[bank] != hashlib.new(bank, event.data).digest()
            ):
                continue
            state = _secure_boot_variable(event.data)
            if state is not None:
                return state
        return None


def _header(read: Reader) -> dict[int, int]:
    """TCG_EfiSpecIDEvent (section 10.4.5.1): the banks of the log, algorithm → digest size."""
    pcr, kind, digest = read.uint_le(4), read.uint_le(4), read.take(20)
    data = Reader(read.take(_size(read)), where="Spec ID Event03")
    if pcr or kind != EV_NO_ACTION or any(digest) or data.take(len(_SPEC_ID)) != _SPEC_ID:
        raise EvidenceMalformed("TCG event log: its Spec ID event is of another register or type, or has a digest")
    data.take(4 + 1 + 1 + 1 + 1)  # platform class, version minor and major, errata, size of a UINTN
    count = data.uint_le(4)
    if not 1 <= count <= 8:
        raise EvidenceMalformed(f"TCG event log of {count} banks")
    sizes = {}
    for _ in range(count):
        number, size = data.uint_le(2), data.uint_le(2)
        if number in sizes or not 20 <= size <= 64 or DIGEST_SIZES.get(HASHES.get(number, ""), size) != size:
            raise EvidenceMalformed(f"TCG event log: bank {number:#06x} of {size} bytes")
        sizes[number] = size
    data.take(data.uint_le(1))  # vendor information
    data.done()
    return sizes


def _size(read: Reader) -> int:
    size = read.uint_le(4)
    if size > LARGEST_EVENT:
        raise EvidenceMalformed(f"TCG event log: an event of {size} bytes")
    return size


def _sha1_event(read: Reader) -> Event:
    """TCG_PCR_EVENT (section 10.2.1)."""
    pcr, kind, digest = read.uint_le(4), read.uint_le(4), read.take(20)
    if pcr >= PCRS:
        raise EvidenceMalformed(f"TCG event log: an event of PCR {pcr}")
    return Event(pcr, kind, {"sha1": digest}, read.take(_size(read)))


def _event(read: Reader, sizes: Mapping[int, int]) -> Event:
    """TCG_PCR_EVENT2 (section 10.2.2): a digest for each bank of the header, none twice."""
    pcr, kind, count = read.uint_le(4), read.uint_le(4), read.uint_le(4)
    if pcr >= PCRS and not (kind == EV_NO_ACTION and pcr == 0xFFFFFFFF):
        raise EvidenceMalformed(f"TCG event log: an event of PCR {pcr}")
    if count != len(sizes):
        raise EvidenceMalformed(f"TCG event log: an event with {count} digests, the header has {len(sizes)} banks")
    digests, seen = {}, set()
    for _ in range(count):
        number = read.uint_le(2)
        if number in seen or number not in sizes:
            raise EvidenceMalformed(f"TCG event log: a digest of bank {number:#06x}")
        seen.add(number)
        digest = read.take(sizes[number])
        if number in HASHES:
            digests[HASHES[number]] = digest
    return Event(pcr, kind, digests, read.take(_size(read)))


def _startup_locality(event: Event) -> int | None:
    """TCG_EfiStartupLocalityEvent (section 10.4.5.3): 0, 3 or 4; None for another event."""
    if event.data[:16] != b"StartupLocality\0":
        return None
    if event.pcr != 0 or len(event.data) != 17 or event.data[16] not in (0, 3, 4):
        raise EvidenceMalformed("TCG event log: a StartupLocality event that is not one")
    return event.data[16]


def _secure_boot_variable(data: bytes) -> bool | None:
    """UEFI_VARIABLE_DATA (section 10.4.2): GUID, length of the name in characters, of the data, both."""
    read = Reader(data, where="UEFI variable")
    if read.left < 32 or read.take(16) != _GLOBAL_VARIABLE:
        return None
    characters, size = read.uint_le(8), read.uint_le(8)
    if characters * 2 + size != read.left or read.take(2 * characters) != _SECURE_BOOT:
        return None
    return read.rest() == b"\1"


@dataclass(frozen=True, slots=True)
class LaunchEvent:
    """One thing that `strongroom launch` extended: PCR, what it was (``configuration``), its 32-byte digest."""

    pcr: int
    event: str
    digest: bytes

    @classmethod
    def parse(cls, fields: object) -> LaunchEvent:
        """From decoded JSON; raises `MalformedInput`."""
        read = Fields(fields, where="launch event")
        event = cls(read.number("pcr", high=PCRS - 1), read.text("event", limit=64), read.hexes("digest", size=32))
        read.done()
        return event

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`."""
        return {"pcr": self.pcr, "event": self.event, "digest": self.digest.hex()}

    def extended(self, bank: str) -> bytes:
        """What is extended into the register: the bank's hash over a labelled encoding of event and digest."""
        return hashlib.new(bank, labelled(LABEL, self.event.encode(), self.digest)).digest()


def replay_launch(events: Iterable[LaunchEvent], registers: Mapping[int, bytes], bank: str) -> dict[int, bytes]:
    """Registers after our own events, which come after those of the firmware that `registers` holds."""
    after: dict[int, bytes] = {}
    start = bytes(DIGEST_SIZES[bank])
    for event in events:
        value = after.get(event.pcr, registers.get(event.pcr, start))
        after[event.pcr] = hashlib.new(bank, value + event.extended(bank)).digest()
    return after
