"""See every file when it is closed after writing, also one that is deleted right after (fanotify(7))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

CLOEXEC, UNLIMITED_QUEUE, UNLIMITED_MARKS = 0x1, 0x10, 0x20
ADD, WHOLE_FILE_SYSTEM = 0x1, 0x100
CLOSE_WRITE, OVERFLOW = 0x8, 0x4000
AT_FDCWD = -100
HEAD = struct.Struct("=IBBHQii")


class Watch:
    """Calls `see(path, descriptor)` for every file that somebody else wrote and closed. Needs CAP_SYS_ADMIN."""

    def __init__(self, mounts: Iterable[Path], see: Callable[[str, int], None]) -> None:
        """Begin; raises `PermissionError` where this process may not watch."""
        self._see = see
        self.seen, self.lost = 0, False
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
        self._events = libc.fanotify_init(CLOEXEC | UNLIMITED_QUEUE | UNLIMITED_MARKS, os.O_RDONLY | os.O_CLOEXEC)
        if self._events < 0:
            raise PermissionError(ctypes.get_errno(), "fanotify_init")
        marked = [
            libc.fanotify_mark(self._events, ADD | WHOLE_FILE_SYSTEM, CLOSE_WRITE, AT_FDCWD, os.fsencode(each)) == 0
            for each in mounts
        ]
        if not any(marked):
            os.close(self._events)
            raise PermissionError(ctypes.get_errno(), "fanotify_mark")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, after everything that happened so far was seen."""
        self._stop.set()
        self._thread.join()
        os.close(self._events)

    def _run(self) -> None:
        while True:
            if select.select([self._events], [], [], 0.1)[0]:
                self._take(os.read(self._events, 1 << 16))
            elif self._stop.is_set():
                return

    def _take(self, octets: bytes) -> None:
        at = 0
        while at < len(octets):
            size, _, _, _, mask, descriptor, pid = HEAD.unpack_from(octets, at)
            at += size
            self.lost |= bool(mask & OVERFLOW)
            if descriptor < 0:
                continue
            with contextlib.suppress(OSError):
                if pid != os.getpid():
                    self.seen += 1
                    self._see(os.readlink(f"/proc/self/fd/{descriptor}"), descriptor)
            os.close(descriptor)
