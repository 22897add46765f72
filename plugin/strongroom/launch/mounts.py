"""A file system in memory that the launcher's processes alone can see, and that its server can only read.

The launcher takes a mount namespace of its own (mount_namespaces(7)) and mounts a tmpfs in it; the keeper, its child,
writes there; the server's process takes another namespace, in which the same mount is read-only, before its program
runs. Nothing of it is visible outside, and it is gone with the last process inside. Huge pages are asked for, since
touching memory page by page costs more than decrypting into it. Needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from strongroom.errors import LaunchRefused

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PASSABLE = 0o311
"""Of the folder that holds all rooms: it can be passed through by who knows a name inside, and not be listed."""


def own_mount(folder: Path) -> None:
    """Leave the machine's mounts for a namespace of our own, with an empty tmpfs on `folder`.

    Its size is not limited, as that of memory files is not. Raises `LaunchRefused`.
    """
    _asked(_libc().unshare(CLONE_NEWNS), "take a mount namespace of its own")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    options = f"size=0,nr_inodes=0,mode={PASSABLE:o}"
    try:
        _mount("strongroom", str(folder), "tmpfs", MS_NOSUID | MS_NODEV, f"{options},huge=always")
    except LaunchRefused:  # a kernel without huge pages in tmpfs
        _mount("strongroom", str(folder), "tmpfs", MS_NOSUID | MS_NODEV, options)


def read_only(folder: Path) -> None:
    """For a child: a namespace of its own again, in which the mount on `folder` cannot be written to."""
    _asked(_libc().unshare(CLONE_NEWNS), "take a mount namespace of its own")
    _mount(None, str(folder), None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def unmount(folder: Path) -> None:
    """Give the memory back, also where something is still open; nothing is wrong where nothing is mounted."""
    _libc().umount2(os.fsencode(folder), MNT_DETACH)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if each is None else each.encode() for each in (source, target, kind)]
    data = None if options is None else options.encode()
    _asked(_libc().mount(*words, ctypes.c_ulong(flags), data), f"mount on {target}")


def _asked(result: int, what: str) -> None:
    if result != 0:
        raise LaunchRefused(
            f"the launcher could not {what}: {os.strerror(ctypes.get_errno())}",
            hint='launch as root (CAP_SYS_ADMIN), or leave out room = "mount" of [worker]',
        )


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
