"""Memory files mapped at 2 MiB boundaries, on huge pages where the kernel gives them.

Touching fresh memory page by page costs more than decrypting into it. So a mapping begins at a 2 MiB
boundary, and MADV_COLLAPSE (Linux 6.1, no privilege) makes each whole 2 MiB of it one page; where it
fails the mapping stays as it is, on 4 KiB pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator

HUGE = 2 << 20
MADV_COLLAPSE = 25
MADV_DONTDUMP = 16
MAP_FIXED = 0x10

STEP = 32 << 20
SLOWEST = 1 << 30
"""Bytes a second below which huge pages are not worth their making; filling small ones runs at about this."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


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

    def collapse(self) -> bool:
        """Ask for huge pages on every whole 2 MiB; False where the kernel did not give them all.

        On a machine whose free memory is in small pieces the kernel moves pages about for each huge one, which
        can cost far more than small pages do. So it is asked a step at a time, and no more once a step was slow.
        """
        whole = self._size // HUGE * HUGE
        for start in range(0, whole, STEP):
            size = min(STEP, whole - start)
            began = time.monotonic()
            for at in range(start, start + size, HUGE):
                self.view[at] = self.view[at]
            if _libc.madvise(self.address + start, size, MADV_COLLAPSE) != 0:
                return False
            if (time.monotonic() - began) * SLOWEST > size:
                return False
        return True

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
def written(descriptor: int, size: int) -> Iterator[memoryview]:
    """A writable view of a memory file that is made `size` bytes long; unmapped at the end."""
    if size == 0:
        yield memoryview(bytearray())
        return
    os.ftruncate(descriptor, size)
    mapping = AlignedMapping(descriptor, size, shared=True)
    try:
        mapping.collapse()
        yield mapping.view
    finally:
        mapping.close()
