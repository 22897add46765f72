"""Where a process may write: folders in memory and a few devices. The kernel refuses the rest (Landlock, Linux 5.13).

A handler that writes what it works on to a disk leaves plaintext behind, whether it means to or not. Reading and
executing are not restricted. Where the kernel knows how, a signal to a process outside of the same confinement and a
connection to an abstract unix socket that was made there are refused too (Linux 6.12). A unix socket with a path can be
connected to wherever it lies: these kernels ask nobody. Nobody can lift it, and children inherit it; threads that exist
already do not, so it is done while there is one (landlock(7), Documentation/userspace-api/landlock.rst).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from strongroom.errors import LaunchRefused

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
"""System call numbers, alike on every architecture."""
VERSION_FLAG, PATH_BENEATH = 1, 1
WRITE_FILE, TRUNCATE, REFER = 1 << 1, 1 << 14, 1 << 13
REMOVE = 1 << 4 | 1 << 5
MAKE = 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2
DEVICES = (
    "null", "zero", "full", "random", "urandom", "nvidia*", "dri", "kfd", "accel", "infiniband",
)  # fmt: skip
"""Of /dev: what holds nothing, and accelerators. No disk, and no terminal: the operator reads there."""


def version() -> int:
    """The kernel's Landlock ABI, 0 where it has none."""
    found = _libc().syscall(CREATE, None, 0, VERSION_FLAG)
    return max(int(found), 0)


def confine_writes(folders: Iterable[Path]) -> bool:
    """From now on this thread and its children write below `folders` and to `DEVICES` only.

    False where the kernel has no Landlock; raises `LaunchRefused` where it has and says no. Needs no_new_privs.
    """
    abi = version()
    if not abi:
        return False
    handled = WRITE_FILE | REMOVE | MAKE | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0)
    scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL
    attributes = struct.pack("=QQQ", handled, 0, scoped) if abi >= 6 else struct.pack("=Q", handled)
    libc = _libc()
    ruleset = _asked(libc.syscall(CREATE, attributes, len(attributes), 0), "make a ruleset")
    try:
        devices = [path for name in DEVICES for path in Path("/dev").glob(name)]
        for path in [*folders, *devices, Path("/proc/self")]:
            _allow(libc, ruleset, path, handled)
        _asked(libc.syscall(RESTRICT, ruleset, 0), "confine this process")
    finally:
        os.close(ruleset)
    return True


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, handled: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there cannot be written to
    try:
        rights = handled if path.is_dir() else handled & (WRITE_FILE | TRUNCATE)
        if Path("/dev") in path.parents and path != Path("/dev/shm"):  # noqa: S108 - memory, and meant
            rights = handled & (WRITE_FILE | TRUNCATE)
        rule = struct.pack("=Qi", rights, descriptor)
        _asked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0), f"allow {path}")
    finally:
        os.close(descriptor)


def _asked(result: int, what: str) -> int:
    if result < 0:
        raise LaunchRefused(f"the kernel's Landlock did not {what}: {os.strerror(ctypes.get_errno())}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
