"""A hunt that finds nothing is worth something only if it finds what was planted, in each kind of place."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import tempfile

import pytest
from leaks.hunt import Hunt, canary, encodings


@pytest.fixture
def hunt():
    return Hunt({"it": canary("it")})


@pytest.mark.parametrize("where", ["a file", "a log", "shared memory", "a hidden folder"])
def test_a_leak_into_a_file_is_found(hunt, tmp_path, where):
    folder = tmp_path / ".cache" / "deep" if where == "a hidden folder" else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    roots = [tmp_path]
    if where == "shared memory":
        folder, roots = tmp_path, [tmp_path]
        handle, name = tempfile.mkstemp(dir="/dev/shm")
        os.write(handle, hunt.canaries["it"].encode())
        os.close(handle)
        hunt.files([type(tmp_path)("/dev/shm")])
        os.unlink(name)
        assert [each.where for each in hunt.found] == [name]
        return
    (folder / "thing").write_bytes(b"x" * 5_000_000 + hunt.canaries["it"].encode() + b"y" * 99)
    hunt.files(roots)
    assert len(hunt.found) == 1


@pytest.mark.parametrize("phase", range(3))
def test_a_leak_in_base64_is_found_at_every_phase(hunt, phase):
    hunt.octets(base64.b64encode(b"-" * phase + hunt.canaries["it"].encode() + b"tail"), "here")
    assert len(hunt.found) == 1


@pytest.mark.parametrize("how", [lambda t: t.encode().hex(), lambda t: repr(t), lambda t: t.upper().lower()])
def test_a_leak_in_other_encodings_is_found(hunt, how):
    hunt.octets(how(hunt.canaries["it"]).encode(), "here")
    assert len(hunt.found) == 1


def test_a_leak_over_the_border_of_two_blocks_is_found(hunt, tmp_path):
    text = hunt.canaries["it"].encode()
    for cut in (1, len(text) // 2, len(text) - 1):
        (tmp_path / "thing").write_bytes(b"x" * ((1 << 22) - cut) + text)
        hunt.found.clear()
        hunt.files([tmp_path])
        assert len(hunt.found) == 1


CHILD = (
    "import sys,time,tempfile; f=tempfile.TemporaryFile(dir='/tmp'); f.write(sys.stdin.buffer.readline()); f.flush();"
    "print('ready', flush=True); time.sleep(60)"
)
HOLDER = "import sys,time; held=bytearray(sys.stdin.buffer.readline()); print('ready', flush=True); time.sleep(60)"


def child(program, text, environment=None):
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    process.stdin.write(text.encode() + b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_leak_into_a_deleted_file_that_is_still_open_is_found(hunt):
    process = child(CHILD, hunt.canaries["it"])
    try:
        hunt.processes([process.pid])
        assert "deleted" in hunt.found[0].where
    finally:
        process.kill()
        process.wait()


def test_a_leak_into_an_environment_is_found(hunt):
    process = child(HOLDER, "nothing", {"X": hunt.canaries["it"]})
    try:
        hunt.processes([process.pid])
        assert "environ" in hunt.found[0].where
    finally:
        process.kill()
        process.wait()


def test_plaintext_in_the_memory_of_a_process_is_found(hunt):
    process = child(HOLDER, hunt.canaries["it"])
    try:
        hunt.memory([process.pid])
        assert "memory" in hunt.found[0].where
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: only root listens to the loopback device")
def test_a_leak_over_the_loopback_device_is_found(hunt):
    with hunt.listening(), socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(b"x" * 1000 + hunt.canaries["it"].encode())
        server.accept()[0].close()
    assert [each.where for each in hunt.found] == ["the loopback device"]


def test_nothing_is_found_where_nothing_is(hunt, tmp_path):
    (tmp_path / "thing").write_bytes(canary("another").encode())
    hunt.files([tmp_path])
    hunt.processes([os.getpid()])
    assert hunt.found == []
    assert hunt.searched["files"] == 1


def test_folders_that_rightly_hold_plaintext_are_spared(tmp_path):
    hunt = Hunt({"it": canary("it")}, spared=(tmp_path / "owner",))
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").write_text(hunt.canaries["it"])
    hunt.files([tmp_path])
    assert hunt.found == []


def test_every_encoding_is_long_enough_to_be_no_accident():
    assert min(map(len, encodings(canary("x")))) >= 32
