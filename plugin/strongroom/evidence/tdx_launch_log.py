"""What `strongroom launch` extended into a TDX guest's register, as records of its event log.

docs/attestation/init-data.md. A record is a TCG_PCR_EVENT2 (TCG PC Client Platform Firmware Profile section 10.2.2)
of type EV_EVENT_TAG behind the firmware's own, in the form of Confidential Containers' attestation agent: a tagged
event ``AAEL`` with the text ``<domain> <operation> <content>``. Its digest covers its data, so the data may be believed
once the log replays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from strongroom.encoding import Fields
from strongroom.errors import MalformedInput
from strongroom.evidence.tdx_event_log import Event, without_padding

EV_EVENT_TAG = 0x00000006
AAEL = 0x4141454C
SHA384 = 0x000C
LAUNCH_REGISTER = 3
"""RTMR that `launch` extends: the one that neither firmware nor boot loader use."""
END = b"\xff" * 8
_TEXT = re.compile(r"strongroom launch\.([a-z][a-z-]{0,62}) ([0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One thing that `launch` extended: what it was (``configuration``) and its 32-byte digest."""

    event: str
    digest: bytes

    @classmethod
    def parse(cls, fields: object) -> LaunchRecord:
        """From decoded JSON; raises `MalformedInput`."""
        read = Fields(fields, where="launch event")
        record = cls(read.text("event", limit=63), read.hexes("digest", size=32))
        read.done()
        if not _TEXT.match(record.text):
            raise MalformedInput(f"launch event: {record.event[:80]!r} is no name of an event")
        return record

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`."""
        return {"event": self.event, "digest": self.digest.hex()}

    @property
    def text(self) -> str:
        """The event's text."""
        return f"strongroom launch.{self.event} {self.digest.hex()}"

    @property
    def data(self) -> bytes:
        """TCG_PCClientTaggedEvent: id, size, text."""
        text = self.text.encode("ascii")
        return AAEL.to_bytes(4, "little") + len(text).to_bytes(4, "little") + text

    @property
    def extended(self) -> bytes:
        """48 bytes: what the register takes on."""
        return hashlib.sha384(self.data).digest()

    @property
    def record(self) -> bytes:
        """TCG_PCR_EVENT2; register n of a CC event log is RTMR n - 1."""
        head = (LAUNCH_REGISTER + 1, EV_EVENT_TAG, 1)
        octets = b"".join(each.to_bytes(4, "little") for each in head) + SHA384.to_bytes(2, "little") + self.extended
        return octets + len(self.data).to_bytes(4, "little") + self.data


def with_records(log: bytes, records: Iterable[LaunchRecord]) -> bytes:
    """A CCEL log with the records behind its last event; raises `MalformedInput`."""
    return without_padding(log) + b"".join(each.record for each in records) + END


@dataclass(frozen=True, slots=True)
class FoundEvent:
    """A launch event of a log: the RTMR it stands in, its name, its digest in hex."""

    register: int
    event: str
    digest: str


def launch_events(events: Iterable[Event]) -> tuple[FoundEvent, ...]:
    """Those of a log's events that are `launch`'s and whose digest covers what they say."""
    found = []
    for event in events:
        payload = event.payload
        if event.kind != EV_EVENT_TAG or event.digest != hashlib.sha384(payload).digest():
            continue
        text = payload[8:]
        if payload[:8] != AAEL.to_bytes(4, "little") + len(text).to_bytes(4, "little"):
            continue
        said = _TEXT.match(text.decode("ascii", "replace"))
        if said:
            found.append(FoundEvent(event.register, said[1], said[2]))
    return tuple(found)
