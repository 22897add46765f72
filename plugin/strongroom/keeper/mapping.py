"""Memory files mapped at 2 MiB boundaries, on huge pages where the kernel gives them.

Touching fresh memory page by page costs more than decrypting into it. So a mapping begins at a 2 MiB
boundary, and MADV_COLLAPSE (Linux 6.1, no privilege) makes each whole 2 MiB of it one page, right before
it is first written and on the thread that writes it: the zeros that the kernel puts there are then still in
that core's cache. Where it fails the mapping stays as it is, on 4 KiB pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator

HUGE = 2 << 20
MADV_COLLAPSE = 25
MADV_DONTDUMP = 16
MAP_FIXED = 0x10

SLOWEST = 400 << 20
"""Bytes a second and thread below which huge pages are not worth their making: small ones then cost as much."""

ENOUGH = 256 << 20
"""Bytes after which `SLOWEST` is asked for; less may have been slow by chance."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


class Pace:
    """Whether huge pages are worth their making, by what they have cost so far. Thread-safe.

    On a machine whose free memory is in small pieces the kernel moves pages about for each huge one, which can
    cost far more than small pages do.
    """

    def __init__(self) -> None:
        self.worth = True
        self._made, self._seconds = 0, 0.0
        self._lock = threading.Lock()

    def note(self, size: int, seconds: float) -> None:
        """So many bytes became huge pages in so many seconds."""
        with self._lock:
            self._made += size
            self._seconds += seconds
            if self._made >= ENOUGH and self._seconds * SLOWEST > self._made:
                self.worth = False

    def give_up(self) -> None:
        """The kernel has none to give."""
        self.worth = False


class AlignedMapping:
    """`size` bytes of a file, mapped at a 2 MiB boundary; `view` is writable. Unmapped by `close`."""

    def __init__(self, descriptor: int, size: int, *, shared: bool) -> None:
        """Map it; raises `OSError`. `shared` writes reach the file, otherwise they stay with this process."""
        if size <= 0:
            raise ValueError("nothing to map")
        self._reserved, self._size = size + HUGE, size
        nothing = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._start = _mapped(None, self._reserved, 0, nothing, -1)
        self.address = -(-self._start // HUGE) * HUGE
        kind = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | MAP_FIXED
        try:
            _mapped(self.address, size, mmap.PROT_READ | mmap.PROT_WRITE, kind, descriptor)
        except OSError:
            _libc.munmap(self._start, self._reserved)
            raise
        _libc.madvise(self.address, size, MADV_DONTDUMP)
        self.view = memoryview((ctypes.c_char * size).from_address(self.address)).cast("B")
        self._asked = bytearray(size // HUGE)  # for each whole 2 MiB, whether a huge page was asked for

    def prepare(self, start: int, size: int, pace: Pace) -> None:
        """Ask for huge pages under the `size` bytes at `start`, which are about to be written for the first time.

        Other threads may write elsewhere in the mapping meanwhile. Nothing is wrong where the kernel refuses.
        """
        for number in range(start // HUGE, min(-(-(start + size) // HUGE), len(self._asked))):
            if not pace.worth or self._asked[number]:
                continue
            self._asked[number] = 1
            began, at = time.monotonic(), number * HUGE
            self.view[at]  # a page must be there to be collapsed; reading makes one, and disturbs no writer
            if _libc.madvise(self.address + at, HUGE, MADV_COLLAPSE) == 0:
                pace.note(HUGE, time.monotonic() - began)
            elif ctypes.get_errno() != errno.EAGAIN:  # which says that another thread is just writing there
                pace.give_up()

    def close(self) -> None:
        """Unmap. Whoever still holds a view of it must not touch it."""
        if self._start:
            self.view.release()
            _libc.munmap(self._start, self._reserved)
            self._start = 0

    def __del__(self) -> None:
        if getattr(self, "_start", 0):
            self.close()


def _mapped(address: int | None, size: int, protection: int, kind: int, descriptor: int) -> int:
    found: int = _libc.mmap(address, size, protection, kind, descriptor, 0)
    if found == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


@contextlib.contextmanager
def written(descriptor: int, size: int) -> Iterator[AlignedMapping]:
    """A writable mapping of a memory file that is made `size` bytes long, more than 0; unmapped at the end."""
    os.ftruncate(descriptor, size)
    mapping = AlignedMapping(descriptor, size, shared=True)
    try:
        yield mapping
    finally:
        mapping.close()
