"""What a host can do to the machine around a server: small disks, small memory, another clock. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from strongroom.demo import stage as demo_stage

GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """The folder, with what is in it, on a disk of its own of that size."""
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, kept, symlinks=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(kept)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Write a file until the disk has no byte left; gives the file."""
    junk = folder / "junk"
    with junk.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return junk


@contextlib.contextmanager
def launched_after(script: str, *arguments: object) -> Iterator[None]:
    """Every command of the stage runs after a shell script, in a mount namespace of its own, in the same process."""
    before = demo_stage.COMMAND
    words = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        f'{script}\nshift {len(arguments)}\nexec "$@"',
    ]
    demo_stage.COMMAND = (*words, "sh", *map(str, arguments), *before)  # type: ignore[misc]
    try:
        yield
    finally:
        demo_stage.COMMAND = before  # type: ignore[misc]


SMALL_MEMORY_DISK = 'mount -t tmpfs -o size="$1" none /dev/shm'
FILL_THIS_FOLDER = "head -c 1G /dev/zero > junk 2>/dev/null || true"
PRELOADED = """
mkdir -p "$1"; mount -t tmpfs none "$1"; cp -a /etc/. "$1"; echo "$2" > "$1/ld.so.preload"; mount --bind "$1" /etc
"""
"""/etc as it is, and a library for every program (ld.so(8)); arguments: an empty folder, the library."""


@contextlib.contextmanager
def little_memory(pids: Sequence[int], most: int) -> Iterator[None]:
    """Processes in a memory cgroup of `most` bytes, of either version: the kernel kills what goes beyond."""
    old = (GROUPS / "memory" / "memory.limit_in_bytes").exists()
    top = GROUPS / "memory" if old else GROUPS
    group = top / f"strongroom-test-{os.getpid()}"
    if not old and "memory" not in (GROUPS / "cgroup.subtree_control").read_text():
        pytest.skip("SKIPPED LOUDLY: no memory cgroup can be made here")
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(most))
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (top / "cgroup.procs").write_text(pid)
        group.rmdir()
