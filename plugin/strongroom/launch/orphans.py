"""Processes that lost their parent and came to this one (PR_SET_CHILD_SUBREAPER): found, ended, buried.

A handler may start a process, detach it, and end; what it keeps in its memory must not outlive the right to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

PATIENCE_S = 10.0


def children() -> set[int]:
    """The processes whose parent this one is, the dead but unburied too. One that comes meanwhile may be missing."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            found |= {int(each) for each in (task / "children").read_text().split()}
        return found
    for entry in Path("/proc").iterdir():  # kernels without CONFIG_PROC_CHILDREN
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    found.add(int(entry.name))
    return found


def kill(pid: int) -> None:
    """SIGKILL, where there is somebody to get it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end_children(patience_s: float = PATIENCE_S) -> bool:
    """Kill and bury every child, and those that come to us by that; False if one is left after `patience_s`."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        for pid in children():
            kill(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # the kernel's word that there is none
            return True
        time.sleep(0.01)
    return False
