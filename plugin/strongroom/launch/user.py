"""Another user for the server and its workers, so that the kernel keeps them from the keeper by more than one rule.

Only root can start a process as somebody else. The launcher and the keeper stay what they are; the server's process
becomes the named user before its program runs, with no group but that user's own, and of root's rights it keeps one at
most: to listen on a port below 1024.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from strongroom.errors import LaunchRefused

PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 8, 47, 2
CAP_VERSION_3 = 0x20080522
CAP_NET_BIND_SERVICE = 10


@dataclass(frozen=True, slots=True)
class User:
    """A name of the machine's user list and its numbers."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Self:
        """Raises `LaunchRefused` unless it exists, is not root, and this process can become it."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise LaunchRefused(
                f"worker.user is {name!r}, and there is no such user",
                hint=f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}",
            ) from error
        if entry.pw_uid == 0:
            raise LaunchRefused("worker.user is root, which is no other user", hint="name an unprivileged one")
        if os.geteuid() != 0:
            raise LaunchRefused(
                f"worker.user is {name!r}, and only root can start a server as another user",
                hint="launch as root, or leave worker.user out: then server and workers run as the launcher's user",
            )
        return cls(name, entry.pw_uid, entry.pw_gid)

    def become(self) -> None:
        """For a child: this user, for good. Raises `OSError`; what runs after that must not go on."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        keep = (1 << CAP_NET_BIND_SERVICE) & _bounding()
        header, data = struct.pack("=Ii", CAP_VERSION_3, 0), struct.pack("=IIIIII", keep, keep, keep, 0, 0, 0)
        if ctypes.CDLL(None, use_errno=True).capset(header, data) != 0:
            raise OSError(ctypes.get_errno(), "capset")
        if keep:  # survives exec, also under no_new_privs
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0)

    def own(self, folder: Path) -> None:
        """Give a folder to this user; a link is not followed."""
        os.chown(folder, self.uid, self.gid, follow_symlinks=False)

    def lend(self, path: Path, mode: int) -> None:
        """Let this user's group have `mode` of something that stays root's, whatever the umask was when it was made."""
        os.chown(path, 0, self.gid, follow_symlinks=False)
        path.chmod(mode)

    def check(self, readable: Iterable[Path], writable: Iterable[Path] = (), programs: Iterable[Path] = ()) -> None:
        """Whether this user can run programs, read files and write into folders; raises `LaunchRefused` for the first
        that fails.
        """
        wanted = [(path, "run", os.R_OK | os.X_OK) for path in programs]
        wanted += [(path, "read", os.R_OK) for path in readable]
        wanted += [(path, "write to", os.W_OK | os.X_OK) for path in writable]
        failed = self._first(
            lambda: next((n for n, (path, _, mode) in enumerate(wanted) if not _may(path, mode)), None)
        )
        if failed is not None:
            path, verb, _ = wanted[failed]
            raise LaunchRefused(
                f"user {self.name!r} may not {verb} {path}",
                hint="give this user the right (every folder above it counts too), or name another in worker.user",
            )

    def _first(self, look: Callable[[], int | None]) -> int | None:
        """The answer of `look` (below 250), asked in a child that became this user."""
        child = os.fork()
        if child == 0:
            answer = 255
            try:
                self.become()
                found = look()
                answer = 254 if found is None else min(found, 250)
            finally:
                os._exit(answer)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 254:
            return None
        if status == 255 or status < 0:
            raise LaunchRefused(f"a process could not become user {self.name!r}", hint="does a sandbox forbid setuid?")
        return status


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _bounding() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    return 0
