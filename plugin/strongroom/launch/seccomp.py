"""System calls that a worker needs no more once it serves a model: the kernel refuses them from then on.

What is refused: looking into other processes, kernel interfaces through which a process widens its rights,
and, unless the configuration allows it, every socket that is not a unix socket. io_uring is refused too,
because sockets can be made through it past any filter. The filter is a classic BPF program over
`struct seccomp_data` (seccomp(2)); it holds for all threads and all children, and nobody can lift it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

from strongroom.errors import LaunchRefused

PR_SET_NO_NEW_PRIVS = 38
SET_MODE_FILTER, FLAG_TSYNC = 1, 1
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16
AF_UNIX = 1
X32_BIT = 0x40000000


@dataclass(frozen=True, slots=True)
class Machine:
    """System call numbers of one architecture (asm/unistd.h)."""

    audit: int
    seccomp: int
    socket: int
    refused: tuple[int, ...]


# In order: ptrace, process_vm_readv, process_vm_writev, pidfd_getfd, kcmp, perf_event_open, bpf, userfaultfd,
# io_uring_setup, io_uring_enter, io_uring_register, init_module, finit_module, delete_module, kexec_load,
# kexec_file_load, mount, umount2, pivot_root, setns, unshare, open_by_handle_at, add_key, request_key, keyctl,
# swapon, swapoff, process_madvise, move_mount, fsopen.
MACHINES = {
    "x86_64": Machine(
        0xC000003E, 317, 41,
        (101, 310, 311, 438, 312, 298, 321, 323, 425, 426, 427, 175, 313, 176, 246, 320, 165, 166, 155, 308, 272,
         304, 248, 249, 250, 167, 168, 440, 429, 430),
    ),
    "aarch64": Machine(
        0xC00000B7, 277, 198,
        (117, 270, 271, 438, 272, 241, 280, 282, 425, 426, 427, 105, 273, 106, 104, 294, 40, 39, 41, 268, 97,
         265, 217, 218, 219, 224, 225, 440, 429, 430),
    ),
}  # fmt: skip


def _machine() -> Machine:
    name = platform.machine()
    if name not in MACHINES:
        raise LaunchRefused(
            f"no system call filter is known for {name}", hint="workers are confined on x86_64 and aarch64"
        )
    return MACHINES[name]


def _statement(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)


def program(machine: Machine, *, network: bool) -> bytes:
    """The filter as `struct sock_filter` array. `network` leaves all socket families open."""
    refuse = _statement(RETURN, ERRNO | errno.EPERM)
    lines = [
        _statement(LOAD_WORD, ARCHITECTURE_AT),
        _statement(JUMP_EQUAL, machine.audit, true=1),
        refuse,  # another architecture's numbers would mean other calls
        _statement(LOAD_WORD, NUMBER_AT),
        _statement(JUMP_AT_LEAST, X32_BIT, false=1),
        refuse,
    ]
    for number in machine.refused:
        lines += [_statement(JUMP_EQUAL, number, false=1), refuse]
    if not network:
        lines += [
            _statement(JUMP_EQUAL, machine.socket, false=3),
            _statement(LOAD_WORD, FIRST_ARGUMENT_AT),
            _statement(JUMP_EQUAL, AF_UNIX, true=1),
            _statement(RETURN, ERRNO | errno.EACCES),
        ]
    return b"".join([*lines, _statement(RETURN, ALLOW)])


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
    result = libc.syscall(machine.seccomp, SET_MODE_FILTER, FLAG_TSYNC, ctypes.byref(sock_fprog))
    if result != 0:
        reason = os.strerror(ctypes.get_errno()) if result < 0 else f"thread {result} has another filter"
        raise LaunchRefused(
            f"the kernel did not take the system call filter: {reason}",
            hint="a kernel with CONFIG_SECCOMP_FILTER is needed; nothing else may have installed a filter",
        )
