"""Binary HTTP (RFC 9292, `message/bhttp`): whole messages as values, streams as pieces.

`Request` and `Response` parse both framings and write the known-length one, with every empty
section written out, since some decoders refuse truncated messages. `reader.MessageReader` is the one
decoder underneath. `ResponseWriter` and `RequestWriter` write the indeterminate-length framing
piece by piece.

Everything that is not valid raises `MessageInvalid`, whose `status` is the encapsulated answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from strongroom.channel.fields import Headers, encode_control, encode_lines, first
from strongroom.channel.reader import (
    DEFAULT_LIMITS,
    Event,
    Limits,
    MessageReader,
    Octets,
    RequestHead,
    ResponseHead,
    Trailers,
)
from strongroom.channel.varint import varint
from strongroom.channel.whole import read_whole
from strongroom.errors import MessageInvalid

__all__ = [
    "DEFAULT_LIMITS",
    "Event",
    "Headers",
    "Limits",
    "MessageReader",
    "Request",
    "RequestHead",
    "RequestWriter",
    "Response",
    "ResponseHead",
    "ResponseWriter",
    "Trailers",
]


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. `path` includes the query; an empty `authority` leaves the target to `host`."""

    method: str
    scheme: str
    authority: str
    path: str
    headers: Headers = ()
    content: bytes = field(default=b"", repr=False)
    trailers: Headers = ()

    @classmethod
    def parse(cls, octets: Octets, limits: Limits = DEFAULT_LIMITS) -> Request:
        """From either framing; raises `MessageInvalid`."""
        whole = read_whole(octets, limits, response=False)
        heads, content, trailers = ([whole[0]], *whole[1:]) if whole else _whole(octets, limits, response=False)
        head = heads[0]
        if not isinstance(head, RequestHead):
            raise MessageInvalid("a response stands where a request is expected")
        return cls(head.method, head.scheme, head.authority, head.path, head.headers, content, trailers)

    def serialise(self, *, padding: int = 0) -> bytes:
        """The known-length framing and `padding` zero bytes; raises `MessageInvalid` if it cannot be sent."""
        control = encode_control(self.method, self.scheme, self.authority, self.path)
        return _known(b"\x00" + control, self.headers, self.content, self.trailers, padding)

    def header(self, name: str) -> str | None:
        """The first value of a field (name in lower case), or None."""
        return first(self.headers, name)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response with its final status (200 to 599) and whatever informational heads came before."""

    status: int
    headers: Headers = ()
    content: bytes = field(default=b"", repr=False)
    trailers: Headers = ()
    informational: tuple[ResponseHead, ...] = ()

    @classmethod
    def parse(cls, octets: Octets, limits: Limits = DEFAULT_LIMITS) -> Response:
        """From either framing; raises `MessageInvalid`."""
        whole = read_whole(octets, limits, response=True)
        heads, content, trailers = ([whole[0]], *whole[1:]) if whole else _whole(octets, limits, response=True)
        informational = tuple(head for head in heads[:-1] if isinstance(head, ResponseHead))
        head = heads[-1]
        if not isinstance(head, ResponseHead):
            raise MessageInvalid("a request stands where a response is expected")
        return cls(head.status, head.headers, content, trailers, informational)

    def serialise(self, *, padding: int = 0) -> bytes:
        """The known-length framing and `padding` zero bytes; raises `MessageInvalid` if it cannot be sent."""
        start = bytearray(b"\x01")
        for head in self.informational:
            lines = encode_lines(head.headers)
            start += _status(head.status, informational=True) + varint(len(lines)) + lines
        start += _status(self.status, informational=False)
        return _known(bytes(start), self.headers, self.content, self.trailers, padding)

    def header(self, name: str) -> str | None:
        """The first value of a field (name in lower case), or None."""
        return first(self.headers, name)


def _status(status: int, *, informational: bool) -> bytes:
    low, high = (100, 199) if informational else (200, 599)
    if not low <= status <= high:
        raise MessageInvalid(f"status {status} stands where {low} to {high} is allowed")
    return varint(status)


def _known(start: bytes, headers: Headers, content: Octets, trailers: Headers, padding: int) -> bytes:
    lines, last = encode_lines(headers), encode_lines(trailers, trailers=True)
    return b"".join(
        (start, varint(len(lines)), lines, varint(len(content)), content, varint(len(last)), last, bytes(padding))
    )


def _whole(octets: Octets, limits: Limits, *, response: bool) -> tuple[list[Event], bytes, Headers]:
    reader = MessageReader(response=response, limits=limits)
    heads: list[Event] = []
    pieces: list[bytes] = []
    trailers: Headers = ()
    for event in (*reader.feed(octets), *reader.finish()):
        if isinstance(event, bytes):
            pieces.append(event)
        elif isinstance(event, Trailers):
            trailers = event.headers
        else:
            heads.append(event)
    return heads, pieces[0] if len(pieces) == 1 else b"".join(pieces), trailers


class ResponseWriter:
    """An indeterminate-length response: `head`, then `content` as often as wanted, then `finish`."""

    def head(self, status: int, headers: Headers = ()) -> bytes:
        """The framing indicator, a final status and its header section."""
        return b"\x03" + _status(status, informational=False) + encode_lines(headers) + b"\x00"

    def content(self, piece: Octets) -> bytes:
        """One content chunk, or nothing for an empty piece (an empty chunk would end the content)."""
        return varint(len(piece)) + bytes(piece) if len(piece) else b""

    def finish(self, trailers: Headers = ()) -> bytes:
        """The end of the content and the trailer section."""
        return b"\x00" + encode_lines(trailers, trailers=True) + b"\x00"


class RequestWriter(ResponseWriter):
    """An indeterminate-length request; as `ResponseWriter`, with `start` in place of `head`."""

    def start(self, head: RequestHead) -> bytes:
        """The framing indicator, control data and header section."""
        control = encode_control(head.method, head.scheme, head.authority, head.path)
        return b"\x02" + control + encode_lines(head.headers) + b"\x00"
