"""Event logs of TDX guests, replayed against the four run-time measurement registers.

Two forms are read (docs/attestation/tdx.md, section "Event log"): the JSON list of dstack-like guests,
and the binary TCG crypto-agile log that the CCEL ACPI table holds (TCG PC Client Platform Firmware
Profile, section 10; Intel GHCI section 4.3: log register 1..4 is RTMR 0..3, register 0 is MRTD).

A log is a story; only its digests are proved by the replay. So a value out of the log becomes a claim
only where its event's digest covers that value: dstack's run-time events (type 0x08000001), whose
digest is SHA-384 over type, name and payload; and what `tdx_launch_log` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from strongroom.encoding import Fields, Reader, parse_json
from strongroom.errors import MalformedInput

REGISTERS = 4
LONGEST_LOG = 1 << 22
MOST_EVENTS = 1 << 16
RUNTIME_EVENT = 0x08000001
EV_NO_ACTION = 0x00000003
_SHA384 = 0x000C
_SIGNATURE = b"Spec ID Event03\0"


@dataclass(frozen=True, slots=True)
class Event:
    """One extension of a register; `register` is the RTMR's index, 0 to 3."""

    register: int
    kind: int
    digest: bytes
    """SHA-384, 48 bytes."""
    name: str
    payload: bytes

    @property
    def bound(self) -> bool:
        """Whether the digest covers name and payload, so that they may be believed."""
        if self.kind != RUNTIME_EVENT:
            return False
        try:
            message = self.kind.to_bytes(4, "little") + b":" + self.name.encode() + b":" + self.payload
        except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and no digest covers
            return False
        return self.digest == hashlib.sha384(message).digest()


def parse_log(octets: bytes) -> tuple[Event, ...]:
    """A JSON or CCEL log of at most 4 MiB; raises `MalformedInput`."""
    if len(octets) > LONGEST_LOG:
        raise MalformedInput(f"event log: {len(octets)} bytes, the limit is {LONGEST_LOG}")
    return _json_log(octets) if octets.lstrip(b" \t\r\n")[:1] == b"[" else _binary_log(octets)[0]


def without_padding(octets: bytes) -> bytes:
    """A CCEL log up to its last event; raises `MalformedInput`."""
    return octets[: _binary_log(octets)[1]]


def replay(events: Iterable[Event]) -> tuple[bytes, bytes, bytes, bytes]:
    """The four registers after all events: each starts as zeros, RTMR = SHA-384(RTMR ‖ digest)."""
    registers = [bytes(48)] * REGISTERS
    for event in events:
        registers[event.register] = hashlib.sha384(registers[event.register] + event.digest).digest()
    return registers[0], registers[1], registers[2], registers[3]


def _json_log(octets: bytes) -> tuple[Event, ...]:
    listed = parse_json(octets, where="event log", limit=LONGEST_LOG)
    if not isinstance(listed, list) or len(listed) > MOST_EVENTS:
        raise MalformedInput(f"event log: not a list of at most {MOST_EVENTS}")
    events = []
    for place, value in enumerate(listed):
        read = Fields(value, where=f"event {place}")
        # What else a writer notes beside a digest is never believed, so it may be there; nor are a name and a payload
        # that no digest can cover.
        event = Event(
            read.number("imr", high=REGISTERS - 1),
            read.number("event_type", high=0xFFFF_FFFF, default=0),
            read.hexes("digest", size=48),
            _name(read),
            _payload(read),
        )
        events.append(event)
    return tuple(events)


def _name(read: Fields) -> str:
    try:
        return read.text("event")
    except MalformedInput:
        return ""


def _payload(read: Fields) -> bytes:
    try:
        return read.hexes("event_payload", limit=LONGEST_LOG)
    except MalformedInput:
        return b""


def _binary_log(octets: bytes) -> tuple[tuple[Event, ...], int]:
    """(events, length without padding) of TCG_PCR_EVENT with the Spec ID event and TCG_PCR_EVENT2 records.

    0xFF or zeros may pad the end.
    """
    read = Reader(octets, where="CCEL event log")
    read.take(4)
    if read.uint_le(4) != EV_NO_ACTION:
        raise MalformedInput("CCEL event log: it does not begin with a Spec ID event")
    read.take(20)
    sizes = _digest_sizes(Reader(read.take(read.uint_le(4)), where="CCEL Spec ID event"))
    events: list[Event] = []
    while read.left and not _only_padding(octets[read.at :]):
        register, kind = read.uint_le(4), read.uint_le(4)
        digests = {}
        for _ in range(_count(read, len(sizes))):
            algorithm = read.uint_le(2)
            if algorithm not in sizes or algorithm in digests:
                raise MalformedInput(f"CCEL event log: digest algorithm {algorithm:#06x}")
            digests[algorithm] = read.take(sizes[algorithm])
        payload = read.take(read.uint_le(4))
        if kind == EV_NO_ACTION or register == 0:
            continue  # informative, or already in MRTD
        if not 1 <= register <= REGISTERS or _SHA384 not in digests or len(events) >= MOST_EVENTS:
            raise MalformedInput(f"CCEL event log: an event for register {register} without a SHA-384 digest for it")
        events.append(Event(register - 1, kind, digests[_SHA384], "", payload))
    return tuple(events), read.at


def _only_padding(octets: bytes) -> bool:
    return octets[:1] in (b"\0", b"\xff") and octets == octets[:1] * len(octets)


def _count(read: Reader, most: int) -> int:
    count = read.uint_le(4)
    if not 1 <= count <= most:
        raise MalformedInput(f"CCEL event log: {count} digests in one event, the log declares {most}")
    return count


def _digest_sizes(read: Reader) -> dict[int, int]:
    if read.take(16) != _SIGNATURE:
        raise MalformedInput("CCEL event log: not a crypto-agile log (Spec ID Event03)")
    read.take(8)
    sizes = {}
    count = read.uint_le(4)
    if not 1 <= count <= 16:
        raise MalformedInput(f"CCEL event log: {count} digest algorithms")
    for _ in range(count):
        algorithm, size = read.uint_le(2), read.uint_le(2)
        sizes[algorithm] = size
    if sizes.get(_SHA384) != 48:
        raise MalformedInput("CCEL event log: it carries no SHA-384 digests")
    read.take(read.uint_le(1))
    read.done()
    return sizes
