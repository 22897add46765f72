"""Turns at opening: models of one keeper are opened side by side, within the threads and the memory that are there.

One model is opened by a thread on each core. When several are opened at once each gets its share, so that a
keeper of many models does not run hundreds of threads; when memory is short they are opened one after the other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator

from strongroom.errors import RoomUnavailable
from strongroom.keeper.headroom import headroom

MOST_AT_ONCE = 4
SPARE = 64 << 20
"""Bytes that stay free: buffers of the opening itself, and whatever else the keeper does meanwhile."""

MEBIBYTE = 1 << 20


class Openings:
    """All openings of one keeper; thread-safe. `left` says how many bytes of memory may still be taken."""

    def __init__(self, *, most: int = MOST_AT_ONCE, left: Callable[[], float] = headroom) -> None:
        self._most, self._left = most, left
        self._cores = len(os.sched_getaffinity(0))
        self._changed = threading.Condition()
        self._running = 0
        self._promised = 0

    def check(self, size: int) -> None:
        """Raises `RoomUnavailable` where `size` bytes are not there at all, before anybody is asked for a key."""
        left = self._left()
        if size + SPARE > left:
            raise RoomUnavailable(
                f"the model needs {size // MEBIBYTE} MiB of memory, and {max(0, int(left) - SPARE) // MEBIBYTE} MiB "
                "can be had",
                hint="give the machine or its cgroup more memory, or serve fewer models; it will be tried again",
            )

    @contextlib.contextmanager
    def turn(self, size: int) -> Iterator[int]:
        """Wait until `size` bytes can be filled; gives the number of threads for it. Raises `RoomUnavailable`.

        What the kernel refuses within the block for want of memory or descriptors becomes `RoomUnavailable` too.
        """
        with self._changed:
            while self._running and (self._running >= self._most or size + SPARE > self._left() - self._promised):
                self._changed.wait()
            if not self._running:
                self.check(size)
            self._running += 1
            self._promised += size
            threads = max(1, self._cores // self._running)
        try:
            yield threads
        except MemoryError as error:
            raise _refused("out of memory") from error
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN):
                raise
            raise _refused(os.strerror(error.errno)) from error
        finally:
            with self._changed:
                self._running -= 1
                self._promised -= size
                self._changed.notify_all()


def _refused(reason: str) -> RoomUnavailable:
    return RoomUnavailable(
        f"the kernel gave no room for the model: {reason}",
        hint="raise the keeper's limit (memory: cgroup, RLIMIT_AS; files: RLIMIT_NOFILE); it will be tried again",
    )
