"""How much memory may still be taken before the kernel begins to kill.

Opened models are shared memory, which the kernel cannot write anywhere else: whoever fills it up does not get an
error but has a process killed, and that may be the keeper with every model it holds. So it is looked at before.
Two things bound it: what the machine has left, and the limits of the cgroups that this process is in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def headroom(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Bytes, of the tightest bound; infinity where the kernel states none."""
    return min(_machine(proc), *_groups(proc, groups), float("inf"))


def _machine(proc: Path) -> float:
    """MemAvailable: free memory, and what the kernel can give up without writing (proc(5))."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(proc / "meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else float("inf")


def _groups(proc: Path, groups: Path) -> Iterator[float]:
    """What is left in each memory cgroup from this process's own up to the top, of both versions (cgroups(7))."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = "memory.max", "memory.current", "inactive_file"
            tops = [groups, groups / "unified"]
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            tops = [groups / controllers]
        else:
            continue
        for top in tops:
            # In a container the path may be the outer one, which is not mounted here; then the top is ours.
            own = top.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
            for group in (own, *own.parents):
                if group == top or top in group.parents:
                    yield _left(group, *names)


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> float:
    most, used = _read(group / limit).strip(), _read(group / usage).strip()
    if not most.isdigit() or not used.isdigit():
        return float("inf")
    given_up = re.search(rf"^{reclaimable} (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
    return max(0, int(most) - int(used) + (int(given_up[1]) if given_up else 0))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
