"""Who needs a model, and for how long nobody has.

A process needs a model from its claim until it ends: a server that scales a model down to no workers, or
unregisters it, ends them all. The kernel is asked whether they live, so a worker that was killed does not count.
"""

from __future__ import annotations

import threading

from strongroom.keeper.leases import Clock, boottime
from strongroom.keeper.peers import Peer, still_there


class Demand:
    """The processes that claimed one model. `patience` in seconds; 0 means that a model is always needed.

    Thread-safe. A model counts as needed at first, for as long as the patience lasts.
    """

    def __init__(self, patience: float = 0, *, clock: Clock = boottime) -> None:
        self.patience = patience
        self._clock = clock
        self._peers: set[Peer] = set()
        self._last = clock()
        self._lock = threading.Lock()
        self._wanted = threading.Event()

    def note(self, peer: Peer) -> None:
        """That process needs the model, now and until it ends."""
        with self._lock:
            self._peers.add(peer)
            self._last = self._clock()
            self._wanted.set()

    def over(self) -> bool:
        """Whether no process has needed the model for as long as the patience lasts. Then `wait` waits."""
        with self._lock:
            self._peers = {peer for peer in self._peers if still_there(peer)}
            now = self._clock()
            if self._peers:
                self._last = now
            if not self.patience or now - self._last < self.patience:
                return False
            self._wanted.clear()
            return True

    @property
    def wanted(self) -> bool:
        """Whether a process came since `over` said that none needs the model."""
        return self._wanted.is_set()

    def wait(self) -> None:
        """Until a process needs the model."""
        self._wanted.wait()
        with self._lock:
            self._last = self._clock()

    def stop(self) -> None:
        """End `wait`."""
        self._wanted.set()
