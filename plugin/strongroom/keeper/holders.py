"""The workers that were given a model's files, and what becomes of them when nobody may hold it any longer.

They are told to end (docs/keeper.md, leases). Whoever has not ended after `FAREWELL_S` is killed, by the kernel's
name for exactly that process (a pidfd).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from functools import partial

from strongroom.archive.errand import Errand
from strongroom.keeper.peers import Peer, still_there

_log = logging.getLogger(__name__)

FAREWELL_S = 10.0


class Holders:
    """Those of one model. Whoever calls sees to it that only one thread does at a time."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._peers: set[Peer] = set()
        self._leaving: dict[Peer, float] = {}  # told to end, and killed at that time

    def add(self, peer: Peer) -> None:
        """A process holds the files, or is about to be given them."""
        if time.monotonic() >= self._leaving.get(peer, 0.0):  # one that keeps asking is not told to end each time
            self._peers.add(peer)

    def forget_the_dead(self) -> None:
        """A server that replaces workers must not make this grow."""
        self._peers = {peer for peer in self._peers if still_there(peer)}

    def dismiss(self) -> None:
        """Let go of all, and see that they end; does not wait for it."""
        if not self._peers:
            return
        try:
            Errand(partial(_end, self._model, self._peers, FAREWELL_S))
        except RuntimeError:  # no thread that could wait for them
            _end(self._model, self._peers, 0)
        now = time.monotonic()
        leaving = {peer: at for peer, at in self._leaving.items() if at > now}
        self._leaving = leaving | dict.fromkeys(self._peers, now + FAREWELL_S)
        self._peers = set()


def _end(model: str, peers: set[Peer], patience: float) -> None:
    """Kill whoever has not ended after `patience` seconds."""
    time.sleep(patience)
    for peer in peers:
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(peer.pid)
            try:
                if still_there(peer):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    _log.warning("model %s: worker %d had not ended and was killed", model, peer.pid)
            finally:
                os.close(handle)
