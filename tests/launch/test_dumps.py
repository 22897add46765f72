"""What a crash leaves behind: nothing, where the process hardened itself first."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from strongroom.launch.hardening import report

CRASH = """
import ctypes, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
{harden}
secret = b"canary-" + os.urandom(16).hex().encode()
ctypes.string_at(0)
"""
HARDEN = "from strongroom.launch.hardening import harden; harden()"


def dumped(tmp_path, harden: str) -> bool:
    """Whether the kernel says that it wrote a core dump."""
    child = os.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", CRASH.format(harden=harden)])
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    return os.WCOREDUMP(status)


def test_a_hardened_process_that_crashes_leaves_no_core(tmp_path):
    assert not dumped(tmp_path, HARDEN)
    assert list(tmp_path.iterdir()) == []


def test_the_control_does_where_the_machine_lets_it(tmp_path):
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        return  # nothing may dump here anyway
    dumped(tmp_path, "")
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if "/" not in pattern and not pattern.startswith("|"):
        assert any(path.name.startswith(pattern.split("%")[0]) for path in tmp_path.iterdir())


def test_a_models_pages_are_left_out_of_dumps(tmp_path):
    """MADV_DONTDUMP shows as `dd` in the kernel's own account of the mapping."""
    from strongroom.keeper.mapping import AlignedMapping

    descriptor = os.memfd_create("model")
    os.ftruncate(descriptor, 4 << 20)
    mapping = AlignedMapping(descriptor, 4 << 20, shared=True)
    try:
        mapping.view[0] = 1
        here, flags = False, []
        for line in Path("/proc/self/smaps").read_text().splitlines():
            head = line.split(" ", 1)[0]
            if "-" in head and not head.endswith(":"):
                start, end = (int(each, 16) for each in head.split("-"))
                here = start <= mapping.address < end
            elif here and line.startswith("VmFlags:"):
                flags = line.split()[1:]
        assert "dd" in flags
    finally:
        mapping.close()
        os.close(descriptor)


LOCK = """
from strongroom.launch.hardening import lock_memory
import ctypes, mmap
assert lock_memory()
buffer = mmap.mmap(-1, 8 << 20)
for at in range(0, len(buffer), 4096):
    buffer[at] = 1
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmLck"].split()[0]))
"""


def test_a_keepers_pages_are_locked_also_those_that_come_later():
    if os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY:
        pytest.skip("SKIPPED LOUDLY: this user may not lock memory")
    done = subprocess.run([sys.executable, "-c", LOCK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 8 << 10


def test_where_the_limit_is_small_nothing_is_locked_and_nothing_breaks():
    """A limit of some MiB would let a keeper start and fail at its first large allocation."""
    program = """
import os, resource
from strongroom.launch import hardening
hardening.drop_capabilities(frozenset())
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
assert hardening.lock_memory() is False
assert len(bytearray(64 << 20)) == 64 << 20
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_report_is_the_kernels():
    names = {each.what for each in report()}
    assert {"dumpable", "core files", "no new rights", "system call filter", "capabilities", "locked memory"} <= names
