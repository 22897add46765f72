"""What a process does for itself before a secret arrives: no dump, no look at its memory, no way to more rights.

Best effort against other processes of the same user; root in the guest with all its capabilities and the
guest's image are outside of what a process can settle (docs/threat-model.md). `report` reads back from the
kernel what holds, and `hardened` does the same for another process: so the keeper gives a model's files to
no worker that has not done this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from strongroom.errors import KeeperRefused, LaunchRefused
from strongroom.launch.landlock import confine_writes
from strongroom.launch.seccomp import PR_SET_NO_NEW_PRIVS, confine
from strongroom.launch.supervisor import PR_SET_DUMPABLE, prctl
from strongroom.launch.user import User

PR_GET_DUMPABLE = 3
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
CAP_VERSION_3 = 0x20080522
CAP_IPC_LOCK = 14
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MEMORY = Path("/dev", "shm")
KEPT_BY_A_SERVER = frozenset([0, 1, 3, 5, 10])
"""CHOWN, DAC_OVERRIDE, FOWNER, KILL, NET_BIND_SERVICE: what a server needs that root started; no ptrace."""


def harden() -> None:
    """No core file, nothing in a dump, not dumpable, no new rights by exec.

    A process that is not dumpable also bars others of its user from its /proc/PID/mem and /proc/PID/fd.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # kernels without CONFIG_ELF_CORE have nothing to filter
        Path("/proc/self/coredump_filter").write_text("0")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)


def harden_worker(*, network: bool, disk: bool) -> None:
    """All of `harden`, no capabilities, no writing outside of memory, and the system call filter.

    `network` leaves all sockets open, `disk` all files. Raises `LaunchRefused`.
    """
    harden()
    drop_capabilities(frozenset())
    if not disk:
        confine_writes([Path(tempfile.gettempdir()), MEMORY])
    confine(network=network)


def confine_server(user: User | None, writable: Iterable[Path]) -> None:
    """For a child that becomes the server: no new rights, another user where there is one, writing to `writable` only.

    Of root's capabilities a server of root keeps `KEPT_BY_A_SERVER`. No `writable` means no such limit.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    folders = list(writable)
    if folders:
        confine_writes(folders)
    if user is None:
        drop_capabilities(KEPT_BY_A_SERVER)
    else:
        user.become()


def lock_memory() -> bool:
    """Keep every page of this process out of swap, also those to come; False where the limit does not allow it.

    Needs an unlimited RLIMIT_MEMLOCK or root's capability: a limit of some MiB would only make allocations fail.
    """
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if most != resource.RLIM_INFINITY and not _capabilities("CapEff") & 1 << CAP_IPC_LOCK:
        return False
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
    result: int = ctypes.CDLL(None, use_errno=True).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    return result == 0


def drop_capabilities(keep: frozenset[int]) -> None:
    """Give up every capability but `keep`, also what an exec as root would bring back.

    Without CAP_SYS_PTRACE a root process cannot read one that is not dumpable: the keeper.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = 0
    while (held := libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if held and number not in keep:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # refused where there is nothing to lose
        number += 1
    permitted = _capabilities("CapPrm") & sum(1 << each for each in keep)
    header = (ctypes.c_uint32 * 2)(CAP_VERSION_3, 0)
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise LaunchRefused(f"capabilities could not be dropped: {os.strerror(ctypes.get_errno())}")


def _capabilities(line: str, pid: int | str = "self") -> int:
    return int(_status(pid).get(line, "0"), 16)


def _status(pid: int | str) -> dict[str, str]:
    """/proc/PID/status by its names (proc(5)); raises `OSError`."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One property of a process, as the kernel states it."""

    what: str
    ok: bool
    found: str


def report() -> tuple[Finding, ...]:
    """What holds for this process now. Changes nothing."""
    status = _status("self")
    core = resource.getrlimit(resource.RLIMIT_CORE)
    dumpable = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    capabilities = int(status.get("CapEff", "0"), 16)
    return (
        Finding("dumpable", dumpable == 0, str(dumpable)),
        Finding("core files", core == (0, 0), "off" if core == (0, 0) else "allowed"),
        Finding("no new rights", status.get("NoNewPrivs") == "1", status.get("NoNewPrivs", "unknown")),
        Finding("system call filter", status.get("Seccomp") == "2", status.get("Seccomp", "unknown")),
        Finding("capabilities", capabilities == 0, f"{capabilities:x}"),
        Finding("swap", not swaps(), ", ".join(swaps()) or "off"),
        Finding("locked memory", status.get("VmLck", "0 kB") != "0 kB", status.get("VmLck", "unknown")),
    )


def swaps(table: Path = Path("/proc/swaps")) -> list[str]:
    """Swap in use that leaves memory: everything but compressed memory (zram)."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.split() and not line.startswith("/dev/zram")]


def check_hardened(pid: int) -> None:
    """Hold another process to what `harden_worker` does, as the kernel states it; raises `KeeperRefused`."""
    try:
        status = _status(pid)
        limits = Path("/proc", str(pid), "limits").read_text()
    except OSError as error:
        raise KeeperRefused(f"process {pid} is gone") from error
    core = next((line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")), None)
    missing = [
        name
        for name, ok in (
            ("no_new_privs", status.get("NoNewPrivs") == "1"),
            ("a system call filter", status.get("Seccomp") == "2"),
            ("an empty capability set", int(status.get("CapEff", "0"), 16) == 0),
            ("a core size of 0", core == ["0", "0"]),
        )
        if not ok
    ]
    if missing:
        raise KeeperRefused(
            f"process {pid} lacks {', '.join(missing)}, so it gets nothing",
            hint="only strongroom's own handler, which hardens its process first, is served",
        )
