"""Try on this machine what a keeper and a worker do for themselves, and look whether it holds.

Two short-lived processes: one hardens itself as a keeper does, the other as a worker, and the second then tries to
get at the first, at a disk and at the network. Nothing is believed that the kernel did not answer. Run as a program
(`python -m strongroom.launch.probe keeper|worker`) it is such a process; `look` starts both.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strongroom.launch import hardening
from strongroom.launch.landlock import version as landlock_version
from strongroom.launch.words import WORDS

PTRACE_ATTACH = 16
SECONDS = 30.0
COMMAND = (sys.executable, "-P", "-m", "strongroom.launch.probe")
HINTS = {
    "keeper: dumpable": "the kernel refused PR_SET_DUMPABLE: a sandbox around this process?",
    "keeper: core files": "a crash could write memory to disk: allow setrlimit(RLIMIT_CORE)",
    "keeper: no new rights": "the kernel refused no_new_privs: it is older than 3.5, or a sandbox forbids it",
    "keeper: locked memory": "keys may be swapped: LimitMEMLOCK=infinity for the service, or launch as root",
    "worker: system call filter": "workers would be refused: the kernel needs CONFIG_SECCOMP_FILTER",
    "worker: capabilities": "workers would be refused: capabilities could not be dropped",
    "worker reads the keeper's memory": "processes of one user can read each other: sysctl kernel.yama.ptrace_scope=2",
    "worker traces the keeper": "processes of one user can trace each other: sysctl kernel.yama.ptrace_scope=2",
    "worker writes to a disk": "a handler can leave plaintext on a disk: use a kernel with CONFIG_SECURITY_LANDLOCK",
    "worker makes a network socket": "the system call filter does not hold: report this as a bug",
}


def look() -> list[hardening.Finding]:
    """What holds here for a keeper, and for a worker beside it; what could not be tried is a finding too."""
    try:
        with subprocess.Popen([*COMMAND, "keeper"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
            assert keeper.stdout is not None
            said = json.loads(keeper.stdout.readline() or b"null")
            done = subprocess.run(
                [*COMMAND, "worker", str(keeper.pid)], capture_output=True, timeout=SECONDS, check=False
            )
            tried = json.loads(done.stdout or b"null")
            keeper.communicate(timeout=SECONDS)
        if said is None or tried is None:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            raise ValueError(words[-1][:200] if words else "it ended without a word")
        return [hardening.Finding(*each) for each in (*said, *tried)]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [hardening.Finding("a worker's hardening", False, f"could not be tried: {error}")]


def _keeper() -> None:
    hardening.harden()
    hardening.lock_memory()
    _say([("keeper", each) for each in hardening.report() if each.what in WORDS and each.what != "swap"])
    sys.stdin.read()


def _worker(keeper: int) -> None:
    with tempfile.TemporaryDirectory(dir=hardening.MEMORY) as memory:
        tempfile.tempdir = memory
        disk = Path.home() if os.access(Path.home(), os.W_OK) else Path("/var/tmp")  # noqa: S108 - a place to be refused
        hardening.harden_worker(network=False, disk=False)
        report = [
            ("worker", each) for each in hardening.report() if each.what in ("system call filter", "capabilities")
        ]
        libc = ctypes.CDLL(None, use_errno=True)
        doors: dict[str, Callable[[], Any]] = {
            "worker reads the keeper's memory": lambda: open(f"/proc/{keeper}/mem", "rb").close(),
            "worker traces the keeper": lambda: _traced(libc, keeper),
            "worker writes to a disk": lambda: _written(disk),
            "worker makes a network socket": lambda: socket.socket().close(),
        }
        findings = [hardening.Finding(name, *_refused(door)) for name, door in doors.items()]
        _say(report, findings)


def _refused(door: Callable[[], Any]) -> tuple[bool, str]:
    try:
        door()
    except PermissionError:
        return True, "refused by the kernel"
    except OSError as error:
        return False, f"not tried: {error.strerror}"
    return False, "it can"


def _traced(libc: ctypes.CDLL, pid: int) -> None:
    if libc.ptrace(PTRACE_ATTACH, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _written(folder: Path) -> None:
    if not landlock_version():
        return
    path = folder / f".strongroom-probe-{os.getpid()}"
    path.write_text("")
    path.unlink()


def _say(report: list[tuple[str, hardening.Finding]], more: list[hardening.Finding] | None = None) -> None:
    told = [[f"{whose}: {each.what}", each.ok, each.found] for whose, each in report]
    told += [[each.what, each.ok, each.found] for each in more or ()]
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["keeper"]:
        _keeper()
    else:
        _worker(int(sys.argv[2]))
