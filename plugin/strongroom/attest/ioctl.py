"""One way to ask a character device, with a seam for tests.

`Device` opens a file and calls ioctl with a buffer that the kernel reads and writes. The buffers'
addresses are real, so that a double in tests can follow pointers just as a driver does.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from strongroom.errors import AttesterUnavailable

PATIENCE_S = 3.0
"""How long `opened` waits for its turn."""
Ioctl = Callable[[int, int, int], int]
"""(descriptor, request, address of the argument) → result; raises `OSError`."""


def read_write(kind: str | int, number: int, size: int) -> int:
    """The request code _IOWR(kind, number, size) of the asm-generic encoding (x86, Arm)."""
    letter = ord(kind) if isinstance(kind, str) else kind
    return 3 << 30 | size << 16 | letter << 8 | number


def system_ioctl(descriptor: int, request: int, address: int) -> int:
    """The kernel's own ioctl, by address."""
    argument = ctypes.c_void_p(address)
    library = ctypes.CDLL(None, use_errno=True)
    library.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    result: int = library.ioctl(descriptor, request, argument)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def missing(path: Path, module: str) -> str:
    """What this machine lacks to use the device, in one sentence; empty when nothing."""
    if not path.exists():
        return f"there is no {path}: not inside such a guest, or the module {module} is not loaded"
    if not os.access(path, os.R_OK | os.W_OK):
        return f"{path} may not be opened by this user"
    return ""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the device, with our lock on it where it can be had soon; raises `AttesterUnavailable`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise AttesterUnavailable(
            f"{path}: {error.strerror}", hint="`strongroom doctor` says what is missing"
        ) from error
    try:
        _take_turns(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _take_turns(descriptor: int) -> None:
    """Lock the device, or go on without after `PATIENCE_S`.

    It is advice, so that two keepers do not disturb each other: whoever may read the device can hold the lock for ever.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.02)
        except OSError:
            return  # a device that knows no locks
        else:
            return
