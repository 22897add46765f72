"""Pieces that a handler sends before it is done, sealed chunk by chunk (docs/protocol.md, streams).

A client that asked in the chunked form gets each piece as it comes, gathered for some milliseconds so that
the sizes of single tokens do not show; one that asked in the single-shot form gets them all in its one
answer. A handler that fails midway leaves the stream without its final chunk, and the client knows.

The timer that flushes gathered pieces runs in a thread of its own; a lock keeps it and the handler's thread
from speaking at once, and `close` is final.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from strongroom.channel.bhttp import Response, ResponseWriter
from strongroom.channel.chunked import ResponseSealer
from strongroom.channel.problems import HANDLER_FAILED
from strongroom.errors import MessageInvalid

Headers = tuple[tuple[str, str], ...]
Send = Callable[[Mapping[int, bytes]], None]
"""Hands sealed bytes to the framework, by place in the batch, for sending now."""


@dataclass(slots=True)
class _Item:
    """One answer on its way. Without a sealer nothing leaves early: pieces are gathered for the end."""

    sealer: ResponseSealer | None
    head: bytes | None = None
    status: int = 200
    headers: Headers = ()
    started: bool = False
    failed: bool = False
    waiting: bytearray = field(default_factory=bytearray)

    def begin(self, status: int, headers: Headers) -> None:
        """The first piece settles status and headers; fields that cannot be sent make the item fail."""
        self.status, self.headers = status, headers
        try:
            self.head = ResponseWriter().head(status, headers)
        except MessageInvalid:
            self.head, self.failed = b"", True

    def take(self, most: int) -> bytes:
        """Up to `most` waiting bytes, sealed for sending now."""
        assert self.sealer is not None
        piece = bytes(self.waiting[:most])
        del self.waiting[:most]
        return self._front() + self.sealer.seal(self._start() + ResponseWriter().content(piece))

    def end(self) -> bytes:
        """All that waits and the authenticated end."""
        assert self.sealer is not None
        front, start = self._front(), self._start()
        content = ResponseWriter().content(bytes(self.waiting)) + ResponseWriter().finish()
        self.waiting.clear()
        return front + self.sealer.seal(start + content) + self.sealer.finish()

    def _front(self) -> bytes:
        assert self.sealer is not None
        return b"" if self.started else self.sealer.front

    def _start(self) -> bytes:
        start = b"" if self.started else self.head or b""
        self.started = True
        return start


class BatchStream:
    """The streams of one batch.

    `sealers` maps a place in the batch to its sealer, or to None where nothing can leave before the end.
    `gather` is in seconds. `limit` is the most bytes that the framework takes at once for one item.
    """

    def __init__(
        self, sealers: Mapping[int, ResponseSealer | None], send: Send | None, *, gather: float, limit: int
    ) -> None:
        self._items = {index: _Item(sealer if send is not None else None) for index, sealer in sealers.items()}
        self._send = send
        self._gather = gather
        self._most = max(1, limit // 2)  # the rest is room for the head and for what sealing adds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def emit(self, index: int, piece: bytes, status: int, headers: Headers) -> None:
        """One piece for one item. Status and headers count with the first."""
        with self._lock:
            item = self._items.get(index)
            if item is None or self._closed:
                return
            if item.head is None:
                item.begin(status, headers)
            if item.failed:
                return
            item.waiting += piece
            if item.sealer is None:
                return
            if self._gather <= 0 or len(item.waiting) >= self._most:
                self._flush()
            elif self._timer is None:
                self._timer = threading.Timer(self._gather, self._on_time)
                self._timer.daemon = True
                self._timer.start()

    def used(self, indices: Sequence[int]) -> bool:
        """Whether any of these has sent a piece."""
        return any(self._items[index].head is not None for index in indices)

    def fail(self, indices: Sequence[int]) -> None:
        """The handler failed for these: what was begun stays without an end."""
        for index in indices:
            self._items[index].failed = True

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
            if not self._closed:
                self._flush()

    def _flush(self) -> None:
        """Send what waits, at most `_most` bytes of an item at a time."""
        assert self._send is not None
        while sealed := {
            index: item.take(self._most) for index, item in self._items.items() if item.sealer and item.waiting
        }:
            self._send(sealed)

    def close(self) -> None:
        """No piece leaves by the timer after this; called before the last answer is handed to the framework."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def last(self, index: int, response: Response) -> bytes | Response:
        """The end of one item, after `close`: sealed bytes where it was streamed, else the whole response.

        A stream that failed ends without its final chunk, which the client reports as `StreamTruncated`.
        """
        item = self._items[index]
        if item.head is None:
            return response
        if item.failed:
            if item.started:
                return item.take(self._most) if item.waiting else b""
            return response if response.status >= 400 else HANDLER_FAILED.response()
        if item.sealer is None:
            return Response(item.status, item.headers, bytes(item.waiting) + response.content)
        assert self._send is not None
        item.waiting += response.content
        while len(item.waiting) > self._most:
            self._send({index: item.take(self._most)})
        return item.end()
