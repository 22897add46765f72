"""Ends a worker that holds a model which nobody may hold any longer.

Memory that was mapped, weights that were loaded and whatever a handler made of them cannot be taken back piece
by piece, and a process that ends gives all of it back at once. The server starts another worker, which finds
the model withdrawn and answers 503 until it is open again. A worker that does not end by itself is killed by
the keeper (docs/keeper.md, leases).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from strongroom.errors import ModelUnavailable, StrongroomError
from strongroom.worker.link import Link

ASK_EVERY_S = 1.0
LAST_WORDS_S = 0.5
"""For an answer that was just handed to the framework to leave the process."""

PATIENCE_S = 5.0

SILENCE_S = 120.0
"""Longer than any restart of a keeper. A worker without one can answer nobody, and nobody ends its lease."""


class Watch:
    """Asks the keeper over a line of its own; `over` is true from the moment the model is withdrawn.

    Once a second it also has the worker's line tell what it has not told yet.
    """

    def __init__(self, link: Link) -> None:
        self._line, self._link = link, link.another()
        self._busy = threading.Lock()
        self.over = False

    def start(self) -> None:
        """In a thread of its own."""
        threading.Thread(target=self._run, name="strongroom watch", daemon=True).start()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Around a batch, which may end before the process does."""
        with self._busy:
            yield

    def _run(self) -> None:
        pause, heard = threading.Event(), time.monotonic()
        while not pause.wait(ASK_EVERY_S):
            self._line.flush()
            try:
                self._link.held()
                heard = time.monotonic()
            except ModelUnavailable:
                break
            except StrongroomError:  # no keeper: nothing can be opened without it, and the next one will say
                if time.monotonic() - heard > SILENCE_S:
                    break
        self.over = True
        if self._busy.acquire(timeout=PATIENCE_S):
            self._busy.release()  # later batches are answered at once
        pause.wait(LAST_WORDS_S)
        os._exit(0)
