"""The launcher's own file system in memory: who sees it, who can write to it, who can list it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.namespaces import only_root
from strongroom.errors import LaunchRefused
from strongroom.launch import mounts

pytestmark = only_root("only root can mount")

PROGRAM = """
import json, os, pathlib, sys
from strongroom.launch.hardening import drop_capabilities
from strongroom.launch.mounts import own_mount, read_only, unmount
folder = pathlib.Path(sys.argv[1])
own_mount(folder)
room = folder / "0123456789abcdef"
room.mkdir(mode=0o555)
(room / "model.bin").write_bytes(b"weights")
mounted = next(line.split() for line in open("/proc/self/mountinfo") if str(folder) in line)
found = {"kind": mounted[mounted.index("-") + 1], "size": os.statvfs(folder).f_blocks}
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    read_only(folder)
    drop_capabilities(frozenset())
    tried = {}
    def attempt(name, what):
        try:
            tried[name] = what()
        except OSError as error:
            tried[name] = error.strerror
    attempt("read", lambda: (room / "model.bin").read_text())
    attempt("list", lambda: os.listdir(folder))
    attempt("write", lambda: (room / "model.bin").write_bytes(b"other"))
    attempt("make", lambda: (folder / "mine").mkdir())
    attempt("open up", lambda: folder.chmod(0o755))
    os.write(writer, json.dumps(tried).encode())
    os._exit(0)
os.waitpid(child, 0)
found["child"] = json.loads(os.read(reader, 65536))
found["still"] = (room / "model.bin").read_text()
print(json.dumps(found), flush=True)
sys.stdin.readline()
unmount(folder)
print(json.dumps(os.listdir(folder)), flush=True)
"""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    """What a process with a mount of its own and its child found, and what we see meanwhile."""
    folder = tmp_path_factory.mktemp("rooms")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(process.stdout.readline())
    found["outside"] = os.listdir(folder)
    process.stdin.write("\n")
    process.stdin.flush()
    found["after"] = json.loads(process.stdout.readline())
    assert process.wait(20) == 0
    return found


def test_it_is_a_file_system_in_memory_without_a_size_of_its_own(mounted):
    assert mounted["kind"] == "tmpfs"
    assert mounted["size"] == 0


def test_nobody_outside_sees_it(mounted):
    assert mounted["outside"] == []


def test_the_servers_process_reads_what_it_knows_the_name_of(mounted):
    assert mounted["child"]["read"] == "weights"


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("list", "Permission denied"),
        ("write", "Read-only file system"),
        ("make", "Read-only file system"),
        ("open up", "Read-only file system"),
    ],
)
def test_the_servers_process_can_neither_list_nor_change_anything(mounted, what, why):
    assert mounted["child"][what] == why
    assert mounted["still"] == "weights"


def test_after_unmounting_nothing_is_there(mounted):
    assert mounted["after"] == []


def test_who_may_not_mount_is_told_what_to_do(monkeypatch):
    class Kernel:
        @staticmethod
        def unshare(flags: int) -> int:
            return -1

    monkeypatch.setattr(mounts, "_libc", lambda: Kernel)
    with pytest.raises(LaunchRefused, match="mount namespace") as refusal:
        mounts.own_mount(Path("/"))
    assert "root" in refusal.value.hint
