"""Read payload blocks on several threads, each into a private buffer that stays hot in its core's cache."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence

from strongroom.archive.errand import Errand
from strongroom.archive.header import SignedCore
from strongroom.archive.storage import Storage


class Crew:
    """Threads that take blocks one by one. The first error stops all, and is the one raised."""

    def __init__(self, storage: Storage, core: SignedCore, threads: int | None) -> None:
        self._storage, self._core = storage, core
        self._threads = threads or len(os.sched_getaffinity(0))

    def each(
        self,
        numbers: Sequence[int],
        look: Callable[[int, memoryview], None],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Call `look` with each block's number and octets, the latter valid during the call only."""
        block, payload = self._core.grid.block, self._core.payload_length
        lock, pending = threading.Lock(), iter(numbers)
        failures: list[BaseException] = []
        done = 0

        def work() -> None:
            nonlocal done
            buffer = memoryview(bytearray(min(block, payload)))
            try:
                while not failures:
                    with lock:
                        number = next(pending, None)
                    if number is None:
                        return
                    octets = buffer[: min(block, payload - number * block)]
                    self._storage.payload.read_into(octets, self._storage.payload_at + number * block)
                    look(number, octets)
                    if progress is not None:
                        with lock:
                            done += 1
                            progress(done, len(numbers))
            except BaseException as error:
                failures.append(error)

        helpers: list[Errand] = []
        with contextlib.suppress(RuntimeError):  # fewer hands, where the kernel gives no more threads
            for _ in range(1, min(self._threads, len(numbers))):
                helpers.append(Errand(work))
        work()
        for each in helpers:
            each.wait()
        if failures:
            raise failures[0]
