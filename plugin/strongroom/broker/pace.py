"""How many requests one peer may make: a token bucket for each address (docs/release.md section 14).

A host can still starve its own guests; this keeps one peer from filling the audit log and the CPU of all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PEERS_REMEMBERED = 4096


class Pace:
    """`burst` requests at once, then `per_second`; zero means without limit."""

    def __init__(
        self, per_second: float = 50.0, burst: int = 600, *, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = per_second
        self._burst = float(burst)
        self._steady = steady
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def admits(self, peer: str) -> bool:
        """Whether this request of `peer` is within its pace; counts it if so."""
        if not self._rate:
            return True
        now = self._steady()
        with self._lock:
            left, at = self._buckets.pop(peer, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._rate)
            admitted = left >= 1
            self._buckets[peer] = (left - 1 if admitted else left, now)
            if len(self._buckets) > PEERS_REMEMBERED:
                del self._buckets[next(iter(self._buckets))]
        return admitted
