"""Writing is for memory: what the kernel refuses to a process that confined itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from strongroom.launch import landlock
from strongroom.launch.landlock import confine_writes, version

PROGRAM = """
import json, os, socket, sys
from pathlib import Path
from strongroom.launch.landlock import confine_writes
from strongroom.launch.hardening import harden
harden()
memory, disk = Path(sys.argv[1]), Path(sys.argv[2])
(memory / "before").write_text("x")
assert confine_writes([memory])

def tried(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"

def own_abstract_socket():
    with socket.socket(1) as listener, socket.socket(1) as client:
        listener.bind("\\0own" + sys.argv[4])
        listener.listen()
        client.connect("\\0own" + sys.argv[4])

print(json.dumps({
    "write in memory": tried(lambda: (memory / "a").write_text("x")),
    "make and move in memory": tried(lambda: ((memory / "d").mkdir(), (memory / "a").rename(memory / "d" / "a"))),
    "remove in memory": tried(lambda: (memory / "before").unlink()),
    "a socket in memory": tried(lambda: socket.socket(1).bind(str(memory / "s"))),
    "a memory file": tried(lambda: open(f"/proc/self/fd/{os.memfd_create('x')}", "w").write("x")),
    "the null device": tried(lambda: open("/dev/null", "w").write("x")),
    "read from a disk": tried(lambda: (disk / "there").read_text()),
    "write to a disk": tried(lambda: (disk / "there").write_text("x")),
    "append to a disk": tried(lambda: (disk / "there").open("a")),
    "shorten on a disk": tried(lambda: os.truncate(disk / "there", 0)),
    "make on a disk": tried(lambda: (disk / "new").write_text("x")),
    "remove from a disk": tried(lambda: (disk / "there").unlink()),
    "move to a disk": tried(lambda: (memory / "d" / "a").rename(disk / "moved")),
    "link to a disk": tried(lambda: os.link(memory / "d" / "a", disk / "linked")),
    "a symbolic link on a disk": tried(lambda: (disk / "link").symlink_to(memory)),
    "through a link in memory": tried(lambda: ((memory / "o").symlink_to(disk), (memory / "o" / "n").write_text("x"))),
    "write on the terminal": tried(lambda: open("/dev/tty", "w").write("x")),
    "write on any terminal": tried(lambda: open(os.readlink(f"/proc/self/fd/{sys.argv[3]}"), "w").write("x")),
    "an abstract socket of a stranger's": tried(lambda: socket.socket(1).connect("\\0" + sys.argv[4])),
    "a datagram to an abstract socket": tried(lambda: socket.socket(1, 2).sendto(b"x", "\\0d" + sys.argv[4])),
    "an abstract socket of its own": tried(own_abstract_socket),
    "signal a stranger": tried(lambda: os.kill(os.getppid(), 0)),
    "a child": __import__("subprocess").run(["/bin/sh", "-c", f"echo x > {disk}/child"], stderr=-3).returncode,
}))
"""
ALLOWED = {"write in memory", "make and move in memory", "remove in memory", "a socket in memory", "a memory file",
           "the null device", "read from a disk", "an abstract socket of its own"}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    if not version():
        pytest.skip("SKIPPED LOUDLY: this kernel has no Landlock")
    memory, disk = tmp_path_factory.mktemp("memory"), tmp_path_factory.mktemp("disk")
    (disk / "there").write_text("kept")
    name = f"strongroom-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        for kind, prefix in ((socket.SOCK_STREAM, ""), (socket.SOCK_DGRAM, "d")):
            stranger = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            stranger.bind(f"\0{prefix}{name}")
            if kind == socket.SOCK_STREAM:
                stranger.listen()
        master, slave = pty.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, slave)

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        command = [sys.executable, "-c", PROGRAM, str(memory), str(disk), str(slave), name]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, pass_fds=[slave], preexec_fn=take_terminal
        )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in disk.iterdir()) == ["there"]
    assert (disk / "there").read_text() == "kept"
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", sorted(ALLOWED))
def test_what_a_handler_needs_still_works(told, what):
    assert told[what] == "done"


def test_every_way_to_a_disk_is_refused_also_to_children(told):
    assert told["a child"] != 0
    refused = {what: said for what, said in told.items() if what not in ALLOWED | {"a child"}}
    assert set(refused.values()) <= {"PermissionError", "OSError"}, refused
    assert len(refused) == 14


def test_a_kernel_without_it_is_told_and_not_an_error(monkeypatch):
    monkeypatch.setattr(landlock, "version", lambda: 0)
    assert confine_writes([Path("/")]) is False
    Path(os.devnull).write_text("still possible")
