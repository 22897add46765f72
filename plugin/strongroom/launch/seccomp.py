"""System calls that a worker needs no more once it serves a model: the kernel refuses them from then on.

What is refused: looking into other processes, kernel interfaces through which a process widens its rights (new
namespaces too, in which it would have all of them), and, unless the configuration allows it, every socket that is not
a unix socket, and unix sockets for datagrams, which is how system logs are written to. io_uring is refused too,
because sockets can be made through it past any filter. The filter is a classic BPF program over
`struct seccomp_data` (seccomp(2)); it holds for all threads and all children, and nobody can lift it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from strongroom.errors import LaunchRefused

PR_SET_NO_NEW_PRIVS = 38
SET_MODE_FILTER, FLAG_TSYNC = 1, 1
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, MASK, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT, SECOND_ARGUMENT_AT = 0, 4, 16, 24
"""The lower half of an argument comes first on both architectures, and the kernel takes no more of these."""
AF_UNIX, SOCK_DGRAM, SOCK_TYPES = 1, 2, 0xF
X32_BIT = 0x40000000
NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME (sched.h)."""
TYPING = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: to type at the terminal that started the server."""

REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272), "perf_event_open": (298, 241),
    "bpf": (321, 280), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "swapon": (167, 224), "swapoff": (168, 225),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "move_mount": (429, 429),
    "open_tree": (428, 428), "open_tree_attr": (467, 467), "mount_setattr": (442, 442), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "setns": (308, 268), "unshare": (272, 97), "open_by_handle_at": (304, 265),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
}  # fmt: skip
"""System call numbers (asm/unistd.h) on x86_64 and aarch64."""
LOOKED_AT = {
    "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29), "socket": (41, 198), "socketpair": (53, 199),
    "seccomp": (317, 277),
}  # fmt: skip
"""Those that are refused by their arguments, and the one that installs the filter."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One architecture: how the kernel names it (linux/audit.h), and its column of the tables."""

    audit: int
    column: int

    def number(self, name: str) -> int:
        """Of a call in `LOOKED_AT`."""
        return LOOKED_AT[name][self.column]

    @property
    def refused(self) -> tuple[int, ...]:
        """The numbers that are refused whatever the arguments."""
        return tuple(numbers[self.column] for numbers in REFUSED.values())


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}


def _machine() -> Machine:
    name = platform.machine()
    if name not in MACHINES:
        raise LaunchRefused(
            f"no system call filter is known for {name}", hint="workers are confined on x86_64 and aarch64"
        )
    return MACHINES[name]


def _statement(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)


def _refuse(number: int) -> bytes:
    return _statement(RETURN, ERRNO | number)


def _where(number: int, lines: Iterable[bytes]) -> list[bytes]:
    """`lines` for this system call alone; after them it is allowed."""
    body = [*lines, _statement(RETURN, ALLOW)]
    return [_statement(JUMP_EQUAL, number, false=len(body)), *body]


def program(machine: Machine, *, network: bool) -> bytes:
    """The filter as `struct sock_filter` array. `network` leaves all socket families open."""
    lines = [
        _statement(LOAD_WORD, ARCHITECTURE_AT),
        _statement(JUMP_EQUAL, machine.audit, true=1),
        _refuse(errno.EPERM),  # another architecture's numbers would mean other calls
        _statement(LOAD_WORD, NUMBER_AT),
        _statement(JUMP_AT_LEAST, X32_BIT, false=1),
        _refuse(errno.EPERM),
    ]
    for number in machine.refused:
        lines += [_statement(JUMP_EQUAL, number, false=1), _refuse(errno.EPERM)]
    lines += _where(
        machine.number("clone"),
        [
            _statement(LOAD_WORD, FIRST_ARGUMENT_AT),
            _statement(JUMP_ANY_BIT, NEW_NAMESPACES, false=1),
            _refuse(errno.EPERM),
        ],
    )
    # Its flags lie in memory, where no filter can look. C libraries take clone where the kernel does not know it.
    lines += [_statement(JUMP_EQUAL, machine.number("clone3"), false=1), _refuse(errno.ENOSYS)]
    typing = [line for each in TYPING for line in (_statement(JUMP_EQUAL, each, false=1), _refuse(errno.EPERM))]
    lines += _where(machine.number("ioctl"), [_statement(LOAD_WORD, SECOND_ARGUMENT_AT), *typing])
    if not network:
        for name in ("socket", "socketpair"):  # a pair may be sent through to others, where its family can
            lines += _where(machine.number(name), _NO_NETWORK)
    return b"".join([*lines, _statement(RETURN, ALLOW)])


_NO_NETWORK = (
    _statement(LOAD_WORD, FIRST_ARGUMENT_AT),
    _statement(JUMP_EQUAL, AF_UNIX, true=1),
    _refuse(errno.EACCES),
    _statement(LOAD_WORD, SECOND_ARGUMENT_AT),
    _statement(MASK, SOCK_TYPES),
    _statement(JUMP_EQUAL, SOCK_DGRAM, false=1),
    _refuse(errno.EACCES),
)


def confine(*, network: bool) -> None:
    """Install the filter for every thread of this process; raises `LaunchRefused` where the kernel will not."""
    machine = _machine()
    octets = program(machine, network=network)
    buffer = ctypes.create_string_buffer(octets, len(octets))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise LaunchRefused(f"no_new_privs: {os.strerror(ctypes.get_errno())}")
    sock_fprog = Program(len(octets) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    result = libc.syscall(machine.number("seccomp"), SET_MODE_FILTER, FLAG_TSYNC, ctypes.byref(sock_fprog))
    if result != 0:
        reason = os.strerror(ctypes.get_errno()) if result < 0 else f"thread {result} has another filter"
        raise LaunchRefused(
            f"the kernel did not take the system call filter: {reason}",
            hint="a kernel with CONFIG_SECCOMP_FILTER is needed; nothing else may have installed a filter",
        )
