"""Pieces that a handler sends before it is done, sealed chunk by chunk (docs/protocol.md, streams).

A client that asked in the chunked form gets each piece as it comes, gathered for some milliseconds so that
the sizes of single tokens do not show; one that asked in the single-shot form gets them all in its one
answer. A handler that fails midway leaves the stream without its final chunk, and the client knows.

The timer that flushes gathered pieces runs in a thread of its own; a lock keeps it and the handler's thread
from speaking at once, and `close` is final.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from strongroom.channel.bhttp import Response, ResponseWriter
from strongroom.channel.chunked import ResponseSealer

GATHER = 0.020
"""Seconds for which pieces are gathered by default."""

Headers = tuple[tuple[str, str], ...]
Send = Callable[[Mapping[int, bytes]], None]
"""Hands sealed bytes to the framework, by place in the batch, for sending now."""


@dataclass(slots=True)
class _Item:
    index: int
    sealer: ResponseSealer | None
    started: bool = False
    status: int = 200
    headers: Headers = ()
    waiting: bytearray = field(default_factory=bytearray)
    gathered: bytearray = field(default_factory=bytearray)

    def take(self) -> bytes:
        """What may leave now, sealed; empty where nothing waits or nothing can be streamed."""
        if self.sealer is None or not self.waiting:
            return b""
        content = ResponseWriter().content(bytes(self.waiting))
        self.waiting.clear()
        if self.started:
            return self.sealer.seal(content)
        self.started = True
        return self.sealer.front + self.sealer.seal(ResponseWriter().head(self.status, self.headers) + content)


class BatchStream:
    """The streams of one batch. `sealers` maps a place in the batch to its sealer, None for single-shot."""

    def __init__(self, sealers: Mapping[int, ResponseSealer | None], send: Send | None, gather: float = GATHER) -> None:
        self._items = {index: _Item(index, sealer if send is not None else None) for index, sealer in sealers.items()}
        self._send = send
        self._gather = gather
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = self._failed = False
        self._used: set[int] = set()

    def emit(self, index: int, piece: bytes, status: int, headers: Headers) -> None:
        """One piece for one item. Status and headers count with the first."""
        with self._lock:
            item = self._items.get(index)
            if item is None or self._closed:
                return
            if index not in self._used:
                item.status, item.headers = status, headers
                self._used.add(index)
            (item.waiting if item.sealer is not None else item.gathered).extend(piece)
            if self._gather <= 0:
                self._flush()
            elif self._timer is None and item.sealer is not None:
                self._timer = threading.Timer(self._gather, self._on_time)
                self._timer.daemon = True
                self._timer.start()

    def fail(self) -> None:
        """The handler raised: what was begun stays without an end."""
        self._failed = True

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
            if not self._closed:
                self._flush()

    def _flush(self) -> None:
        sealed = {item.index: octets for item in self._items.values() if (octets := item.take())}
        if sealed and self._send is not None:
            self._send(sealed)

    def close(self) -> None:
        """No piece leaves after this; called before the last answer is handed to the framework."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def last(self, index: int, response: Response) -> bytes | Response:
        """The end of one item, after `close`: sealed bytes where it was streamed, else the whole response."""
        item = self._items[index]
        if index not in self._used:
            return response
        if item.sealer is None:
            if self._failed:
                return response
            return Response(item.status, item.headers, bytes(item.gathered) + response.content)
        if self._failed:
            return b"" if item.started else response
        item.waiting.extend(response.content)
        head = b"" if item.started else item.sealer.front
        start = b"" if item.started else ResponseWriter().head(item.status, item.headers)
        content = ResponseWriter().content(bytes(item.waiting))
        return head + item.sealer.seal(start + content + ResponseWriter().finish()) + item.sealer.finish()
