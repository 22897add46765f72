"""A whole Binary HTTP message in the known-length framing, read in one pass.

This is what nearly every request and response is, and `reader.MessageReader`, which takes bytes in any portions,
costs several times as much for it. Whatever is not complete, valid and within the limits gives None here; the
reader then says what it is, so that there is one place that refuses (tests hold the two against each other).
"""

from __future__ import annotations

from collections.abc import Callable

from strongroom.channel.fields import Headers, decode_control, decode_section
from strongroom.channel.reader import Limits, Octets, RequestHead, ResponseHead
from strongroom.channel.varint import read_varint
from strongroom.errors import MessageInvalid

Whole = tuple[RequestHead | ResponseHead, bytes, Headers]
"""Head, content, trailers."""


def read_whole(octets: Octets, limits: Limits, *, response: bool) -> Whole | None:
    """The message in `octets`, or None for what needs the reader: another framing, informational heads, any fault."""
    try:
        return _response(octets, limits) if response else _request(octets, limits)
    except (IndexError, TypeError, MessageInvalid):  # IndexError and TypeError: the bytes end inside a length
        return None


def _request(octets: Octets, limits: Limits) -> Whole | None:
    if octets[0] != 0:
        return None
    at, parts = 1, []
    for _ in range(4):
        size = octets[at]
        if size < 64:  # nearly always: one byte of length
            at += 1
        else:
            size, at = read_varint(octets, at)  # type: ignore[misc]
        parts.append(bytes(octets[at : at + size]))
        at += size
    if at - 1 > limits.control or at > len(octets):
        return None
    control = decode_control(*parts)
    return _rest(octets, at, limits, lambda headers: RequestHead(*control, headers))


def _response(octets: Octets, limits: Limits) -> Whole | None:
    if octets[0] != 1:
        return None
    status, at = read_varint(octets, 1)  # type: ignore[misc]
    if not 200 <= status <= 599:
        return None
    return _rest(octets, at, limits, lambda headers: ResponseHead(status, headers))


def _rest(
    octets: Octets, at: int, limits: Limits, make: Callable[[Headers], RequestHead | ResponseHead]
) -> Whole | None:
    size, at = read_varint(octets, at)  # type: ignore[misc]
    end = at + size
    if size > limits.section or end > len(octets):
        return None
    headers = tuple(decode_section(bytes(octets[at:end]), limits.lines, trailers=False))
    size, at = read_varint(octets, end)  # type: ignore[misc]
    end = at + size
    if size > limits.content or end > len(octets):
        return None
    content = bytes(octets[at:end])
    size, at = read_varint(octets, end)  # type: ignore[misc]
    end = at + size
    if size > limits.section or end > len(octets):
        return None
    trailers = tuple(decode_section(bytes(octets[at:end]), limits.lines, trailers=True)) if size else ()
    if end < len(octets) and bytes(octets[end:]).strip(b"\x00"):  # padding is zero
        return None
    return make(headers), content, trailers
