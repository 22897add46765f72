"""The one decoder of Binary HTTP (RFC 9292): bytes as they come in, events out.

`bhttp` builds its whole messages on it, and clients of streams use it directly. Anything wrong
raises `MessageInvalid`, whose `status` is the encapsulated answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from strongroom.channel.fields import Headers, decode_control, decode_line, decode_section
from strongroom.channel.varint import read_varint
from strongroom.errors import MessageInvalid

Octets = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader takes at most: bytes of one field section, its lines, bytes of content, bytes of control data.

    `pieces` is how many content chunks a request of indeterminate length may have; of an answer there may be any
    number, because a stream has one for each piece.
    """

    section: int = 64 * 1024
    lines: int = 256
    content: int = 1 << 30
    control: int = 64 * 1024
    pieces: int = 64 * 1024


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What stands before a request's content. Names in `headers` are lower case."""

    method: str
    scheme: str
    authority: str
    path: str
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A status and its header section; informational (100 to 199) or final (200 to 599)."""

    status: int
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Trailers:
    """The trailer section; the last event of a message, given even if it is empty."""

    headers: Headers = ()


Event = RequestHead | ResponseHead | bytes | Trailers
"""What a `MessageReader` gives: heads, then content in pieces, then `Trailers`."""


class _Short(Exception):
    """The buffer ends inside the element that is being read; never leaves this module."""


class _State(Enum):
    INDICATOR = auto()
    CONTROL = auto()
    HEADERS = auto()
    CONTENT = auto()
    INSIDE = auto()  # inside a content chunk or a known-length content
    TRAILERS = auto()
    PADDING = auto()


class MessageReader:
    """Decodes one message from bytes that come in any portions.

    `feed` gives the events that are complete; content is passed on as it comes and never gathered.
    `finish` says that the bytes ended and gives what truncation (RFC 9292 section 3.8) leaves out.
    Anything wrong raises `MessageInvalid`; the reader is of no use after that.
    """

    def __init__(self, *, response: bool, limits: Limits = DEFAULT_LIMITS) -> None:
        self._response = response
        self._limits = limits
        self._state = _State.INDICATOR
        self._buffer: Octets = b""
        self._at = 0
        self._indeterminate = False
        self._control: tuple[str, str, str, str] | int = 0
        self._lines: list[tuple[str, str]] = []
        self._section = 0  # bytes of the present section that were read line by line
        self._inside = 0  # bytes left of the present content chunk
        self._content = 0  # bytes of content so far
        self._pieces = 0  # chunks of content so far

    @property
    def complete(self) -> bool:
        """Whether the trailer section was read; only padding may follow."""
        return self._state is _State.PADDING

    def feed(self, octets: Octets) -> list[Event]:
        """Take the next bytes; give every event they complete."""
        self._buffer = octets if self._at == len(self._buffer) else bytes(self._buffer[self._at :]) + bytes(octets)
        self._at = 0
        events: list[Event] = []
        try:
            while self._at < len(self._buffer):
                if (event := self._step()) is not None:
                    events.append(event)
        except _Short:
            pass
        if self._at < len(self._buffer):
            self._buffer = bytes(self._buffer[self._at :])  # what the caller handed over may change under us
            self._at = 0
        return events

    def finish(self) -> list[Event]:
        """The bytes ended: give what was left out lawfully, or raise `MessageInvalid` for any other cut."""
        whole = self._at == len(self._buffer)
        state = self._state
        if whole and state is _State.PADDING:
            return []
        lines_pending = bool(self._lines) or self._section > 0
        if not whole or lines_pending or state in (_State.INDICATOR, _State.CONTROL, _State.INSIDE):
            raise MessageInvalid("the message is cut short")
        if self._indeterminate and state is _State.CONTENT and self._content:
            raise MessageInvalid("the message is cut short inside its content")
        self._state = _State.PADDING
        events: list[Event] = []
        if state is _State.HEADERS:
            head = self._head(())
            if isinstance(head, ResponseHead) and head.status < 200:
                raise MessageInvalid("the message ends behind an informational response")
            events.append(head)
        events.append(Trailers())
        return events

    # -- one element each; all or nothing, except content ---------------------------

    def _step(self) -> Event | None:
        state = self._state
        if state is _State.INSIDE:
            return self._read_content()
        if state is _State.CONTENT:
            self._read_content_length()
        elif state is _State.HEADERS:
            if self._read_section(trailers=False):
                head = self._head(tuple(self._lines))
                self._lines, self._section = [], 0
                informational = isinstance(head, ResponseHead) and head.status < 200
                self._state = _State.CONTROL if informational else _State.CONTENT
                return head
        elif state is _State.TRAILERS:
            if self._read_section(trailers=True):
                self._state = _State.PADDING
                trailers = Trailers(tuple(self._lines))
                self._lines, self._section = [], 0
                return trailers
        elif state is _State.CONTROL:
            self._read_control()
        elif state is _State.INDICATOR:
            self._read_indicator()
        else:
            if any(self._buffer[self._at :]):
                raise MessageInvalid("the padding is not zero")
            self._at = len(self._buffer)
        return None

    def _varint(self, at: int) -> tuple[int, int]:
        read = read_varint(self._buffer, at)
        if read is None:
            raise _Short
        return read

    def _read_indicator(self) -> None:
        indicator, at = self._varint(self._at)
        if indicator > 3:
            raise MessageInvalid("the framing indicator is not one of RFC 9292")
        if bool(indicator & 1) is not self._response:
            raise MessageInvalid("a request stands where a response is expected, or the reverse")
        self._indeterminate = indicator >= 2
        self._at, self._state = at, _State.CONTROL

    def _read_control(self) -> None:
        at = self._at
        if self._response:
            status, at = self._varint(at)
            if not 100 <= status <= 599:
                raise MessageInvalid("the status is not between 100 and 599")
            self._control = status
        else:
            parts = []
            for _ in range(4):
                size, at = self._varint(at)
                if at - self._at + size > self._limits.control:
                    raise MessageInvalid("the control data is too large", status=431)
                if at + size > len(self._buffer):
                    raise _Short
                parts.append(bytes(self._buffer[at : at + size]))
                at += size
            self._control = decode_control(parts[0], parts[1], parts[2], parts[3])
        self._at, self._state = at, _State.HEADERS

    def _head(self, headers: Headers) -> RequestHead | ResponseHead:
        if isinstance(self._control, int):
            return ResponseHead(self._control, headers)
        return RequestHead(*self._control, headers)

    def _read_section(self, *, trailers: bool) -> bool:
        """A field section; True when it is complete. Indeterminate ones are taken line by line."""
        if self._indeterminate:
            return self._read_open_section(trailers=trailers)
        size, at = self._varint(self._at)
        if size > self._limits.section:
            raise MessageInvalid(f"a field section of {size} bytes, the limit is {self._limits.section}", status=431)
        end = at + size
        if end > len(self._buffer):
            raise _Short
        if size:
            self._lines = decode_section(bytes(self._buffer[at:end]), self._limits.lines, trailers=trailers)
        self._at = end
        return True

    def _read_open_section(self, *, trailers: bool) -> bool:
        if self._buffer[self._at] == 0:
            self._at += 1
            return True
        size, at = self._varint(self._at)
        if size == 0:  # a zero written on more than one byte ends the section as well
            self._at = at
            return True
        line, end = _line(self._buffer, self._at)
        if self._section + end - self._at > self._limits.section:  # `end` is declared, perhaps not there yet
            raise MessageInvalid(f"a field section is larger than {self._limits.section} bytes", status=431)
        if line is None:
            raise _Short
        self._section += end - self._at
        self._at = end
        if len(self._lines) >= self._limits.lines:
            raise MessageInvalid(f"more than {self._limits.lines} field lines", status=431)
        self._lines.append(decode_line(line[0], line[1], self._lines, trailers=trailers))
        return False

    def _read_content_length(self) -> None:
        size, at = self._varint(self._at)
        if self._content + size > self._limits.content:
            raise MessageInvalid(
                f"a content of {self._content + size} bytes or more, the limit is {self._limits.content}", status=413
            )
        self._pieces += 1 if size else 0
        if self._pieces > self._limits.pieces and not self._response:
            raise MessageInvalid(f"a content of more than {self._limits.pieces} pieces", status=413)
        self._at, self._inside = at, size
        self._state = _State.INSIDE if size else _State.TRAILERS

    def _read_content(self) -> bytes:
        end = min(self._at + self._inside, len(self._buffer))
        piece = self._buffer[self._at : end]
        self._inside -= len(piece)
        self._content += len(piece)
        self._at = end
        if not self._inside:
            self._state = _State.CONTENT if self._indeterminate else _State.TRAILERS
        return bytes(piece)


def _line(octets: Octets, at: int) -> tuple[tuple[bytes, bytes] | None, int]:
    """A field line at `at`: ((name, value), offset behind it), or (None, the least offset where it can end)."""
    there = len(octets)
    read = read_varint(octets, at)
    if read is None:
        return None, there + 1
    size, start = read
    middle = start + size
    if middle > there:
        return None, middle
    read = read_varint(octets, middle)
    if read is None:
        return None, there + 1
    size, begin = read
    end = begin + size
    if end > there:
        return None, end
    return (bytes(octets[start:middle]), bytes(octets[begin:end])), end
