"""uvicorn's HTTP/1.1 protocol, for which a request's head has to arrive in time and no peer takes every connection.

uvicorn waits for a head without end, so a peer that sends one byte a minute would keep a connection for good, and
one that opens a thousand of them would keep everybody else out. Bodies have their own limit in `http`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
CONNECTIONS_PER_PEER = 512
"""Of one address, at once: half of what a broker serves."""


class PunctualProtocol(H11Protocol):
    """Closes a connection whose next request head is not whole after `HEAD_SECONDS`."""

    _overdue: asyncio.TimerHandle | None = None

    def _waiting(self) -> bool:
        """Whether no request is being answered: a head is expected, or on its way."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._waiting():
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None
        elif self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._overdue = None
        if self._waiting() and not self.transport.is_closing():
            self.transport.close()

    def connection_made(self, transport: Any) -> None:
        """A new peer: its first head is expected."""
        super().connection_made(transport)
        if self._of_this_peer() > CONNECTIONS_PER_PEER:
            transport.abort()
            return
        self._watch()

    def _of_this_peer(self) -> int:
        peers = [each.client[0] for each in self.connections if isinstance(each, H11Protocol) and each.client]
        return peers.count(self.client[0]) if self.client else 0

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or a body."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer went out; the next head may be here in part already."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone."""
        super().connection_lost(exc)
        if self._overdue is not None:
            self._overdue.cancel()
