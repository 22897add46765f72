"""Where something may lie on this machine: files that were written, unnamed files, shared memory, the kernel's log."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

PSEUDO = frozenset(
    [
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl"),
        *("mqueue", "nsfs", "proc", "pstore", "securityfs", "sysfs", "tracefs"),
    ]
)
"""File systems whose files are the kernel's own words."""


def mounts() -> list[Path]:
    """Every place where a file system is mounted that a program could write files to."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place, rights = before.split()[4:6]
        if "rw" in rights.split(",") and after.split()[0] not in PSEUDO:
            found.append(Path(place.encode().decode("unicode_escape")))
    return found


def written_since(began: float, roots: Iterable[Path], spared: Iterable[Path]) -> Iterator[tuple[str, Path, str]]:
    """(type as find prints it, path, target of a link) of everything that was made or changed; links not followed."""
    words = ["find", *map(str, dict.fromkeys(roots)), "-xdev"]
    for each in spared:
        words += ["-path", str(each.resolve()), "-prune", "-o"]
    moment = f"@{began:.3f}"
    words += ["(", "-newermt", moment, "-o", "-newerct", moment, ")", "-printf", r"%y\0%p\0%l\0"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    fields = iter(done.stdout.split(b"\0"))
    for kind in fields:
        if kind:
            path, target = next(fields), next(fields)
            yield kind.decode(), Path(os.fsdecode(path)), os.fsdecode(target)


def unnamed_files(pid: int) -> Iterator[tuple[str, str]]:
    """(link to open, name it had) of regular files that a process holds open and that have no name any more."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{number}"
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.endswith(" (deleted)") and stat.S_ISREG(os.stat(link).st_mode):
                    yield link, target


def written_spans(pid: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the writable memory of a process that is really there, page by page (proc(5), pagemap)."""
    page = os.sysconf("SC_PAGESIZE")
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pages:
        for line in maps:
            span, rights = line.split()[:2]
            if "w" not in rights:
                continue
            start, end = (int(each, 16) for each in span.split("-"))
            with contextlib.suppress(OSError, ValueError, OverflowError):
                pages.seek(start // page * 8)
                present = pages.read((end - start) // page * 8)[7::8]  # the top byte of each entry
                yield from _runs(present, start, page)


def _runs(present: bytes, start: int, page: int) -> Iterator[tuple[int, int]]:
    """Neighbouring pages whose entry says present (bit 63) or swapped (bit 62), as one span."""
    begun = None
    for number, entry in enumerate(present):
        if entry & 0xC0:
            begun = number if begun is None else begun
        elif begun is not None:
            yield start + begun * page, start + number * page
            begun = None
    if begun is not None:
        yield start + begun * page, start + len(present) * page


def segments() -> Iterator[tuple[str, bytes]]:
    """(name, octets) of every System V shared memory segment of this machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    libc.shmdt.argtypes = [ctypes.c_void_p]
    with contextlib.suppress(OSError):
        for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            number, size = int(line.split()[1]), int(line.split()[3])
            address = libc.shmat(number, None, 0o10000)  # SHM_RDONLY
            if address not in (None, ctypes.c_void_p(-1).value):
                yield f"shared memory segment {number}", ctypes.string_at(address, size)
                libc.shmdt(address)


def kernel_log() -> bytes:
    """What the kernel said so far; empty where it may not be read."""
    said = bytearray()
    with contextlib.suppress(OSError):
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:
                said += os.read(descriptor, 8192)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return bytes(said)
