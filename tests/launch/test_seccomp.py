"""The system call filter: its numbers, its program by hand on both architectures, and what this kernel makes of it."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from strongroom.launch import seccomp
from strongroom.launch.hardening import MEMORY
from strongroom.launch.seccomp import ALLOW, ERRNO, LOOKED_AT, MACHINES, REFUSED, program

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
CLONE_THREAD_OF_GLIBC = 0x3D0F00
CLONE_VFORK_OF_SUBPROCESS = 0x4111
NAMESPACES = {
    "time": 0x80, "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
    "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip


def decided(octets: bytes, audit: int, number: int, *arguments: int) -> int:
    """Run the program as the kernel does (Documentation/networking/filter.rst), for the statements it uses."""
    data = struct.pack("<iIQ6Q", number, audit, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    lines = list(struct.iter_unpack("=HBBI", octets))
    place = accumulator = 0
    while True:
        code, true, false, value = lines[place]
        place += 1
        match code:
            case 0x06:
                return value
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
                place += true if holds else false
            case _:
                raise AssertionError(f"statement {code:#x}")


@pytest.fixture(params=sorted(MACHINES))
def machine(request):
    return MACHINES[request.param]


@pytest.fixture
def ask(machine):
    octets = program(machine, network=False)
    return lambda name, *arguments: decided(octets, machine.audit, machine.number(name), *arguments)


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_the_numbers_are_those_of_the_kernels_headers(name):
    if not HEADERS[name].exists():
        pytest.skip(f"SKIPPED LOUDLY: no {HEADERS[name]}")
    text = HEADERS[name].read_text()
    known = {each[1]: int(each[2]) for each in re.finditer(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", text)}
    newer = {"open_tree_attr": 467}  # Linux 6.15; since 5.1 a new call has one number everywhere
    for call, numbers in (REFUSED | LOOKED_AT).items():
        assert (newer | known)[call] == numbers[MACHINES[name].column], call


def test_what_is_refused_is_refused_whatever_the_arguments(machine):
    octets = program(machine, network=True)
    for number in machine.refused:
        assert decided(octets, machine.audit, number, 1, 2, 3) == ERRNO | errno.EPERM
    assert decided(octets, machine.audit ^ 1, machine.number("ioctl")) == ERRNO | errno.EPERM
    assert decided(octets, machine.audit, 0x40000000) == ERRNO | errno.EPERM
    assert decided(octets, machine.audit, 1) == ALLOW


@pytest.mark.parametrize("kind", NAMESPACES)
def test_clone_makes_no_namespace_and_clone3_does_not_exist(ask, kind):
    assert ask("clone", NAMESPACES[kind] | 17) == ERRNO | errno.EPERM
    assert ask("clone", 0xFFFFFFFF00000000 | NAMESPACES[kind]) == ERRNO | errno.EPERM
    assert ask("clone3", 0x7FFF0000, 88) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("flags", [17, CLONE_THREAD_OF_GLIBC, CLONE_VFORK_OF_SUBPROCESS, 0x1200011])
def test_threads_and_children_are_made_as_before(ask, flags):
    assert ask("clone", flags, NAMESPACES["user"]) == ALLOW


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_sockets_are_unix_sockets_without_datagrams(ask, machine, call):
    close_on_exec, stream, datagram, packets = 0o2000000, 1, 2, 5
    assert ask(call, 1, stream | close_on_exec) == ALLOW
    assert ask(call, 1, packets) == ALLOW
    assert ask(call, 1, datagram) == ask(call, 1, datagram | close_on_exec) == ERRNO | errno.EACCES
    for family in (0, 2, 10, 16, 17, 30, 40):  # none, IPv4, IPv6, netlink, packets, TIPC, a hypervisor's
        assert ask(call, family, stream) == ERRNO | errno.EACCES
    opened = program(machine, network=True)
    assert decided(opened, machine.audit, machine.number(call), 2, datagram) == ALLOW


def test_nobody_types_at_the_operators_terminal(ask):
    assert [ask("ioctl", 0, each) for each in (0x5412, 0x541C, 0xFFFF000000005412)] == [ERRNO | errno.EPERM] * 3
    assert ask("ioctl", 0x5412, 0x5413) == ask("ioctl", 3, 0xC0104620) == ALLOW


PROGRAM = """
import ctypes, fcntl, json, os, platform, socket, subprocess, sys, threading
from strongroom.launch.hardening import harden_worker
from strongroom.launch.seccomp import LOOKED_AT, MACHINES, REFUSED
harden_worker(network=False, disk=True)
libc = ctypes.CDLL(None, use_errno=True)
column = MACHINES[platform.machine()].column

def called(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result == 0 and number == LOOKED_AT["clone"][column]:
        os._exit(0)
    return 0 if result >= 0 else ctypes.get_errno()

def tried(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"

def threads():
    started = [threading.Thread(target=int) for _ in range(4)]
    [each.start() for each in started], [each.join() for each in started]

print(json.dumps({
    "refused": {name: called(numbers[column], 0, 0, 0, 0, 0, 0) for name, numbers in REFUSED.items()},
    "namespaces": [called(LOOKED_AT["clone"][column], flag | 17, 0, 0, 0, 0) for flag in json.loads(sys.argv[1])],
    "clone3": called(LOOKED_AT["clone3"][column], 0, 0),
    "typing": tried(lambda: fcntl.ioctl(0, 0x5412, b"x")),
    "syslog": tried(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "a pair of datagrams": tried(lambda: socket.socketpair(type=socket.SOCK_DGRAM)),
    "a pair": tried(socket.socketpair),
    "threads": tried(threads),
    "fork": os.waitpid(os.fork() or os._exit(3), 0)[1] >> 8,
    "subprocess": subprocess.run(["/bin/sh", "-c", "exit 3"]).returncode,
    "posix_spawn": os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {}), 0)[1] >> 8,
}))
"""


@pytest.fixture(scope="module")
def told():
    command = [sys.executable, "-c", PROGRAM, json.dumps(sorted(NAMESPACES.values()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_this_kernel_refuses_what_the_program_says(told):
    assert set(told["refused"].values()) == {errno.EPERM}
    assert set(told["namespaces"]) == {errno.EPERM}
    assert told["clone3"] == errno.ENOSYS
    assert told["typing"] == told["syslog"] == told["a pair of datagrams"] == "PermissionError"


def test_threads_children_and_pairs_of_sockets_still_work(told):
    assert (told["threads"], told["a pair"]) == ("done", "done")
    assert told["fork"] == told["subprocess"] == told["posix_spawn"] == 3


STARTS = """
import asyncio, multiprocessing, sys, tempfile
from strongroom.launch.hardening import harden_worker

def double(number):
    return 2 * number

async def child():
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "echo out", stdout=-1)
    return (await process.communicate())[0]

def main():
    tempfile.tempdir = sys.argv[1]
    harden_worker(network=False, disk=False)
    for start in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(start)
        with context.Pool(2) as pool:
            assert pool.map(double, [1, 2]) == [2, 4], start
        with context.Manager() as manager:
            assert list(manager.list([1, 2])) == [1, 2], start
        ours, theirs = context.Pipe()
        process = context.Process(target=theirs.send, args=(start,))
        process.start()
        assert ours.recv() == start
        process.join()
    assert asyncio.run(child()) == b"out\\n"

if __name__ == "__main__":
    main()
"""


def test_every_way_in_which_python_starts_processes_works_behind_all_walls(tmp_path):
    (tmp_path / "starts.py").write_text(STARTS)
    with tempfile.TemporaryDirectory(dir=MEMORY) as memory:  # a short path, for sockets, as a worker has
        command = [sys.executable, str(tmp_path / "starts.py"), memory]
        surroundings = os.environ | {"TMPDIR": memory}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr


def test_a_machine_of_another_kind_is_told_so(monkeypatch):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    with pytest.raises(seccomp.LaunchRefused, match="riscv64"):
        seccomp.confine(network=False)
