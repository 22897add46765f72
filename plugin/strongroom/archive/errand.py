"""One function on a thread of its own, begun without waiting for it.

`threading.Thread.start` waits until the new thread says that it runs. Where memory runs out in between, the thread
dies before it can, and whoever started it waits for ever, with every lock that it holds. A thread that opens an
archive, and a process that holds keys, must get over that: here nobody waits, and a thread that never ran counts
as over.
"""

from __future__ import annotations

import _thread
import threading
import weakref
from collections.abc import Callable

LOOK_EVERY_S = 0.1


class _Token:
    """Held by the thread alone, from before it runs: when it is gone, so is the thread."""

    __slots__ = ("__weakref__",)


class Errand:
    """A function that runs, or ran, beside. It must not raise. Like a daemon thread it keeps no process alive."""

    def __init__(self, work: Callable[[], None]) -> None:
        """Begin; raises `RuntimeError` where the kernel gives no thread."""
        self._done = threading.Event()
        token = _Token()
        self._token = weakref.ref(token)
        _thread.start_new_thread(_run, (token, work, self._done))

    @property
    def over(self) -> bool:
        """Whether it has ended, or never ran and never will."""
        return self._done.is_set() or self._token() is None

    def wait(self, seconds: float = float("inf")) -> bool:
        """Until it is over, or so many seconds; gives `over`."""
        left = seconds
        while left > 0 and not self.over:
            step = min(left, LOOK_EVERY_S)
            self._done.wait(step)
            left -= step
        return self.over


def _run(token: _Token, work: Callable[[], None], done: threading.Event) -> None:
    try:
        work()
    finally:
        done.set()
