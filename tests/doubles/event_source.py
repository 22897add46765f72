"""A client of server-sent events, by the rules of the HTML standard (section 9.2.6), for what a stream means."""

from __future__ import annotations

import re


def parse_events(octets: bytes) -> list[tuple[str, str]]:
    """(event type, data) of each event that a browser would dispatch; what did not end is none."""
    text = octets.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _ = re.split("\r\n|\n|\r", text)
    events: list[tuple[str, str]] = []
    kind, data = "", ""
    for line in lines:
        if not line:
            if data:
                events.append((kind or "message", data.removesuffix("\n")))
            kind, data = "", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data += value + "\n"
        elif name == "event":
            kind = value
    return events
