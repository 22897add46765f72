"""A stream's content on its way into chunks: what of it may leave now, and what fills the chunk.

`Pieces` lets everything out as it is. `PaddedPieces` obeys a `StreamPadding`: every chunk has one of the
policy's sizes (docs/protocol.md section 2). Neither knows keys or clocks: sealing and gathering are `streams`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from strongroom.channel.bhttp import Headers, ResponseWriter
from strongroom.channel.fields import first
from strongroom.channel.padding import ChunkSizes, StreamPadding
from strongroom.channel.varint import varint

EVENTS = "text/event-stream"
_ALTERED = ("content-encoding", "content-length")
"""Fields that a comment between two events would make untrue."""

_EVENT_ENDS = (b"\n\n", b"\n\r", b"\r\r")
"""A line's end and an empty line. CR LF is one line end, so it is not among them; CR LF CR LF holds the second."""

_COMMENT, _COMMENT_END = b":", b"\n\n"
_LEAST_COMMENT = len(_COMMENT + _COMMENT_END)


class Pieces:
    """Without padding: whatever waits may leave. What goes out is binary HTTP, ready to be sealed."""

    def __init__(self, head: bytes) -> None:
        self.waiting = bytearray()
        self._plain = bytearray(head)  # framed, and not given out

    def take(self, most: int) -> bytes:
        """What may leave now, of up to `most` content bytes; empty for nothing."""
        return self._piece(most) if self.waiting else b""

    def end(self, most: int) -> Iterator[bytes]:
        """All that waits and the end of the message, about `most` bytes at a time."""
        while len(self.waiting) > most:
            yield self._piece(most)
        yield self._piece(most) + ResponseWriter().finish()

    def chunks(self, plaintext: bytes) -> Iterable[bytes]:
        """The chunks of what `take` or `end` gave; what is longer than a chunk is cut by who seals it."""
        return (plaintext,)

    def _piece(self, most: int) -> bytes:
        self._frame(bytes(self.waiting[:most]))
        del self.waiting[:most]
        plain = bytes(self._plain)
        self._plain.clear()
        return plain

    def _frame(self, content: bytes) -> None:
        self._plain += ResponseWriter().content(content)


class PaddedPieces(Pieces):
    """Every chunk has one of `sizes`. `events` says that comments may stand between the content's events."""

    def __init__(self, head: bytes, sizes: ChunkSizes, *, events: bool) -> None:
        super().__init__(head)
        self._sizes = sizes
        self._events = events
        self._before = b""  # the last byte of content that was framed

    def take(self, most: int) -> bytes:
        """Whole chunks; of a stream of events all that have ended, with a comment behind them."""
        if not self._events:
            self._frame_all()
        elif end := self._event_end():
            self._frame_filled(bytes(self.waiting[:end]))
            del self.waiting[:end]
        elif len(self.waiting) >= most:
            self._frame_all()  # an event that is as long as that is not kept waiting for its end
        return self._leave(self._sizes.at_most(min(len(self._plain), self._at_once(most))))

    def end(self, most: int) -> Iterator[bytes]:
        """As without padding; zero bytes at the end of the message fill its last chunk."""
        self._frame_all()
        self._plain += ResponseWriter().finish()
        self._plain += bytes(self._sizes.at_least(len(self._plain)) - len(self._plain))
        while self._plain:
            yield self._leave(min(len(self._plain), self._at_once(most)))

    def chunks(self, plaintext: bytes) -> Iterable[bytes]:
        """Each of one of the policy's sizes."""
        return self._sizes.cut(plaintext)

    def _at_once(self, most: int) -> int:
        return max(1, most // self._sizes.largest) * self._sizes.largest

    def _leave(self, size: int) -> bytes:
        plain = bytes(self._plain[:size])
        del self._plain[:size]
        return plain

    def _frame(self, content: bytes) -> None:
        super()._frame(content)
        self._before = content[-1:] or self._before

    def _frame_all(self) -> None:
        self._frame(bytes(self.waiting))
        self.waiting.clear()

    def _frame_filled(self, events: bytes) -> None:
        """One content chunk with these events and a comment, so that what is framed fills its chunks."""
        size = len(self._plain) + len(events)
        while True:
            size = self._sizes.at_least(size + 1)
            length = _content_length(size - len(self._plain))
            spare = length - len(events)
            if spare == 0 or spare >= _LEAST_COMMENT:
                break
        comment = _COMMENT + b" " * (spare - _LEAST_COMMENT) + _COMMENT_END if spare else b""
        self._frame(events + comment)

    def _event_end(self) -> int:
        """How much of what waits is whole events; 0 where no event has ended."""
        seen = self._before + self.waiting
        end = max(seen.rfind(each) for each in _EVENT_ENDS) + 2
        if end < 2:
            return 0
        if seen[end - 1 : end + 1] == b"\r\n":
            end += 1
        return end - len(self._before)


def pieces_for(padding: StreamPadding, head: bytes, headers: Headers, most: int) -> Pieces:
    """The way of one answer by its fields; `most` bytes or so leave at once."""
    if padding.policy == "none":
        return Pieces(head)
    kind = (first(headers, "content-type") or "").partition(";")[0].strip().lower()
    events = kind == EVENTS and all(first(headers, name) is None for name in _ALTERED)
    return PaddedPieces(head, padding.sizes(most), events=events)


def _content_length(room: int) -> int:
    """The content of a content chunk that takes `room` bytes with its length, or -1 if none takes just that."""
    for width in (1, 2, 4):
        length = room - width
        if length > 0 and len(varint(length)) == width:
            return length
    return -1
