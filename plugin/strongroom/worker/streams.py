"""Pieces that a handler sends before it is done, sealed chunk by chunk (docs/protocol.md, streams).

A client that asked in the chunked form gets each piece as it comes, gathered for some milliseconds so that
the sizes of single tokens do not show; `pieces` says what of it may leave, and fills it where the policy says
so. One that asked in the single-shot form gets them all in its one answer. A handler that fails midway leaves
the stream without its final chunk, and the client knows.

The timer that flushes gathered pieces runs in a thread of its own; a lock keeps it and the handler's thread
from speaking at once, and `close` is final. A process that the handler forks seals nothing: it has a copy of the
counter, and two chunks under one nonce would give the key away.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from strongroom.channel.bhttp import Headers, Response, ResponseWriter
from strongroom.channel.chunked import ResponseSealer
from strongroom.channel.padding import NO_STREAM_PADDING, StreamPadding
from strongroom.channel.problems import HANDLER_FAILED
from strongroom.errors import MessageInvalid
from strongroom.worker.pieces import Pieces, pieces_for

Send = Callable[[Mapping[int, bytes]], None]
"""Hands sealed bytes to the framework, by place in the batch, for sending now."""


@dataclass(slots=True)
class _Item:
    """One answer on its way. Without a sealer nothing leaves early: pieces are gathered for the end."""

    sealer: ResponseSealer | None
    pieces: Pieces | None = None
    status: int = 200
    headers: Headers = ()
    started: bool = False
    failed: bool = False

    def begin(self, status: int, headers: Headers, padding: StreamPadding, most: int) -> Pieces:
        """The first piece settles status and headers; fields that cannot be sent make the item fail."""
        self.status, self.headers = status, headers
        head = b""
        try:
            head = ResponseWriter().head(status, headers)
        except MessageInvalid:
            self.failed = True
        self.pieces = pieces_for(padding, head, headers, most)
        return self.pieces

    def take(self, most: int) -> bytes:
        """About `most` of the waiting bytes, sealed for sending now; empty where none may leave yet."""
        plaintext = self.pieces.take(most) if self.pieces is not None else b""
        return self._sealed(plaintext) if plaintext else b""

    def rest(self, most: int) -> Iterable[bytes]:
        """What may still leave of an answer that failed."""
        while sealed := self.take(most):
            yield sealed

    def end(self, most: int) -> Iterable[bytes]:
        """All that waits and the end of the message; the authenticated end comes behind the last of it."""
        assert self.pieces is not None
        return map(self._sealed, self.pieces.end(most))

    def _sealed(self, plaintext: bytes) -> bytes:
        assert self.sealer is not None and self.pieces is not None
        front = b"" if self.started else self.sealer.front
        self.started = True
        return front + b"".join(map(self.sealer.seal, self.pieces.chunks(plaintext)))


class BatchStream:
    """The streams of one batch.

    `sealers` maps a place in the batch to its sealer, or to None where nothing can leave before the end.
    `gather` is in seconds. `limit` is the most bytes that the framework takes at once for one item; of a padded
    stream that is one chunk at least.
    """

    def __init__(
        self,
        sealers: Mapping[int, ResponseSealer | None],
        send: Send | None,
        *,
        gather: float,
        limit: int,
        padding: StreamPadding = NO_STREAM_PADDING,
    ) -> None:
        self._items = {index: _Item(sealer if send is not None else None) for index, sealer in sealers.items()}
        self._send = send
        self._gather = gather
        self._padding = padding
        self._most = max(1, limit // 2)  # the rest is room for the head and for what sealing adds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False
        self._process = os.getpid()

    def emit(self, index: int, piece: bytes, status: int, headers: Headers) -> None:
        """One piece for one item. Status and headers count with the first.

        Raises `RuntimeError` in a forked process.
        """
        self._check_process()
        with self._lock:
            item = self._items.get(index)
            if item is None or self._closed:
                return
            pieces = item.pieces or item.begin(status, headers, self._padding, self._most)
            if item.failed:
                return
            pieces.waiting += piece
            if item.sealer is None:
                return
            if self._gather <= 0 or len(pieces.waiting) >= self._most:
                self._flush()
            elif self._timer is None:
                self._timer = threading.Timer(self._gather, self._on_time)
                self._timer.daemon = True
                self._timer.start()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("a stream belongs to the worker's own process, and this is one that it forked")

    def used(self, indices: Sequence[int]) -> bool:
        """Whether any of these has sent a piece."""
        return any(self._items[index].pieces is not None for index in indices)

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
        """Send what waits and may leave, about `_most` bytes of an item at a time."""
        assert self._send is not None
        while sealed := {
            index: taken for index, item in self._items.items() if item.sealer and (taken := item.take(self._most))
        }:
            self._send(sealed)

    def _hand_over(self, index: int, messages: Iterable[bytes]) -> bytes:
        """Send all but the last of these, which goes out with the framework's own answer."""
        last = b""
        for message in messages:
            if last:
                assert self._send is not None
                self._send({index: last})
            last = message
        return last

    def close(self) -> None:
        """No piece leaves by the timer after this; called before the last answer is handed to the framework."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def last(self, index: int, response: Response) -> bytes | Response:
        """The end of one item, after `close`: sealed bytes where it was streamed, else the whole response.

        A stream that failed ends without its final chunk, which the client reports as `StreamTruncated`. Raises
        `RuntimeError` in a forked process.
        """
        self._check_process()
        item = self._items[index]
        if item.pieces is None:
            return response
        if item.failed:
            if item.started:
                return self._hand_over(index, item.rest(self._most))
            return response if response.status >= 400 else HANDLER_FAILED.response()
        if item.sealer is None:
            return Response(item.status, item.headers, bytes(item.pieces.waiting) + response.content)
        item.pieces.waiting += response.content
        return self._hand_over(index, item.end(self._most)) + item.sealer.finish()
