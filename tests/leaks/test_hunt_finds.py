"""A hunt that finds nothing is worth something only if it finds what was planted, in each kind of place."""

from __future__ import annotations

import base64
import bz2
import contextlib
import ctypes
import gzip
import json
import lzma
import mmap
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from leaks import places
from leaks.hunt import Hunt, all_processes, canary, may_watch
from leaks.needles import encodings

pytestmark = pytest.mark.alone

KEY = secrets.token_bytes(32)


@pytest.fixture
def hunt():
    return Hunt({"it": canary("it"), "the key": KEY})


@pytest.fixture
def text(hunt):
    return hunt.canaries["it"]


def whats(hunt):
    return {each.what for each in hunt.found}


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["thing", "some.log", ".cache/deep/thing", "dev/a\nline and a space"])
def test_a_leak_into_a_file_is_found(hunt, text, tmp_path, where):
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_bytes(b"x" * 5_000_000 + text.encode() + b"y" * 99)
    hunt.files([tmp_path])
    assert len(hunt.found) == 1


def test_a_leak_anywhere_where_files_can_be_written_is_found(hunt, text):
    with contextlib.ExitStack() as files:
        names = set()
        for folder in ("/dev/shm", "/tmp", "/var/tmp", Path.home()):
            file = files.enter_context(tempfile.NamedTemporaryFile(dir=folder))
            file.write(text.encode())
            file.flush()
            names.add(file.name)
        hunt.files()
        assert names <= {each.where for each in hunt.found}


def test_every_writable_place_is_among_those_that_are_searched():
    mounts = [str(each) for each in places.mounts()]
    assert "/" in mounts and "/dev/shm" in mounts
    assert not [each for each in mounts if each.startswith("/proc")]


def test_a_leak_into_a_file_whose_time_was_set_back_is_found(hunt, text, tmp_path):
    (tmp_path / "thing").write_text(text)
    os.utime(tmp_path / "thing", (1, 1))
    hunt.files([tmp_path])
    assert len(hunt.found) == 1


def test_a_leak_through_a_mapping_of_a_file_is_found(hunt, text, tmp_path):
    (tmp_path / "thing").write_bytes(bytes(8192))
    with (tmp_path / "thing").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[4000 : 4000 + len(text)] = text.encode()
    hunt.files([tmp_path])
    assert len(hunt.found) == 1


@pytest.mark.parametrize("kind", ["file", "folder", "link", "target"])
def test_a_leak_into_a_name_is_found(hunt, text, tmp_path, kind):
    path = tmp_path / f"for-{text}"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/nowhere")
    else:
        (tmp_path / "link").symlink_to(f"/nowhere/{text}")
    hunt.files([tmp_path])
    assert whats(hunt) == {"it"}


def test_a_leak_into_an_extended_attribute_is_found(hunt, text, tmp_path):
    (tmp_path / "thing").touch()
    os.setxattr(tmp_path / "thing", "user.note", text.encode())
    hunt.files([tmp_path])
    assert "attribute" in hunt.found[0].where


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_leak_into_a_packed_log_is_found(hunt, text, tmp_path, pack):
    (tmp_path / "log.1.packed").write_bytes(pack(b"line\n" * 9999 + text.encode() + b"\n"))
    hunt.files([tmp_path])
    assert "unpacked" in hunt.found[0].where


def test_a_leak_into_a_compressed_member_of_a_zip_is_found(hunt, text, tmp_path):
    with zipfile.ZipFile(tmp_path / "trace.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("trace.json", f"{'x' * 9999} {text}")
    hunt.files([tmp_path])
    assert [each.where.rpartition(": ")[2] for each in hunt.found] == ["trace.json"]


def test_a_leak_over_the_border_of_two_blocks_is_found(hunt, text, tmp_path):
    for cut in (1, len(text) // 2, len(text) - 1):
        (tmp_path / "thing").write_bytes(b"x" * ((1 << 22) - cut) + text.encode())
        hunt.found.clear()
        hunt.files([tmp_path])
        assert len(hunt.found) == 1


LEAKS_AND_DELETES = """
import os, sys
text = sys.stdin.buffer.readline()
with open(sys.argv[1], "wb") as file:
    file.write(b"x" * 100_000 + text)
os.unlink(sys.argv[1])
"""


def test_a_leak_into_a_file_that_is_gone_again_is_found_where_the_kernel_lets_us_watch(hunt, text, tmp_path):
    if not may_watch():
        with pytest.raises(PermissionError), hunt.watching():
            pass
        return
    with hunt.watching():
        command = [sys.executable, "-c", LEAKS_AND_DELETES, str(tmp_path / "gone")]
        subprocess.run(command, input=text.encode(), check=True)
    hunt.files([tmp_path])
    where = [each.where for each in hunt.found]
    assert [each for each in where if each.startswith(f"{tmp_path}/gone") and each.endswith("while it was written")]
    assert not [each for each in where if each == f"{tmp_path}/gone"]
    assert hunt.searched["files that went by unseen"] == 0


# -- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", range(3))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("what", ["it", "the key"])
def test_a_leak_in_base64_is_found_at_every_phase(hunt, phase, encode, what):
    secret = hunt.canaries[what]
    octets = secret if isinstance(secret, bytes) else secret.encode()
    hunt.octets(encode(b"-" * phase + octets + b"tail"), "here")
    assert whats(hunt) == {what}


FORMS = {
    "hex": lambda octets: octets.hex().encode(),
    "capitals": lambda octets: octets.hex().upper().encode(),
    "fingerprint": lambda octets: octets.hex(":").encode(),
    "repr": lambda octets: repr(octets).encode(),
    "a list": lambda octets: str(list(octets)).encode(),
    "JSON": lambda octets: json.dumps(list(octets), separators=(",", ":")).encode(),
    "backwards": lambda octets: int.from_bytes(octets, "big").to_bytes(len(octets), "little"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["it", "the key"])
def test_a_leak_in_another_form_is_found(hunt, form, what):
    secret = hunt.canaries[what]
    hunt.octets(b"before " + FORMS[form](secret if isinstance(secret, bytes) else secret.encode()) + b" after", "here")
    assert whats(hunt) == {what}


@pytest.mark.parametrize("form", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_leak_in_wide_characters_is_found(hunt, text, form):
    hunt.octets(text.encode(form), "here")
    assert whats(hunt) == {"it"}


@pytest.mark.parametrize("cut", [slice(None, -16), slice(26, None), slice(12, None)])
def test_a_canary_that_was_cut_off_is_found(hunt, text, cut):
    hunt.octets(text[cut].encode(), "here")
    assert whats(hunt) == {"it"}


def test_every_form_is_long_enough_to_be_no_accident():
    assert min(map(len, encodings(canary("x")))) >= 16
    assert min(map(len, encodings(KEY))) >= 32


def test_what_is_so_short_that_it_stands_anywhere_is_not_searched_for(hunt):
    with pytest.raises(ValueError, match="a probability"):
        hunt.add("a probability", b"\0\0\x80\x3f")


# -- processes ------------------------------------------------------------------------------------

READY = "print('ready', flush=True); sys.stdin.read()"
DELETES = f"import sys,tempfile; f=tempfile.TemporaryFile(); f.write(sys.stdin.buffer.readline()); f.flush(); {READY}"
MEMFD = f"import os,sys; f=os.memfd_create('scratch'); os.write(f, sys.stdin.buffer.readline()); {READY}"
HOLDS = f"import sys; held=bytearray(sys.stdin.buffer.readline()); {READY}"
DIES = "import os,sys; held=bytearray(sys.stdin.buffer.readline()); os.abort()"


@contextlib.contextmanager
def child(program, text, *, environment=None, arguments=()):
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        process.stdin.write(text.encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


@pytest.mark.parametrize(("program", "word"), [(DELETES, "deleted"), (MEMFD, "memfd")])
def test_a_leak_into_a_file_without_a_name_is_found_in_whatever_process(hunt, text, program, word):
    with child(program, text) as pid:
        hunt.processes(inside=lambda each: False)
        mine = [each.where for each in hunt.found if each.where.startswith(f"process {pid}:")]
        assert len(mine) == 1 and word in mine[0]


def test_memory_files_are_left_alone_where_they_belong(hunt, text):
    with child(MEMFD, text) as pid:
        hunt.processes([pid], inside=lambda each: each == pid)
        assert hunt.found == []


def test_a_leak_into_an_environment_or_a_command_line_is_found(hunt, text):
    with child(HOLDS, "nothing", environment={"X": text}) as first, child(HOLDS, "nothing", arguments=[text]) as second:
        hunt.processes()
        found = {each.where for each in hunt.found}
        assert {f"process {first}: environ", f"process {second}: cmdline"} <= found


def test_this_process_is_not_looked_at_and_every_other_one_is():
    assert os.getpid() not in all_processes()
    assert {1, os.getppid()} <= set(all_processes())


def test_plaintext_in_the_memory_of_a_process_is_found(hunt, text):
    with child(HOLDS, text) as pid:
        hunt.memory([pid])
        assert "memory" in hunt.found[0].where


def test_memory_that_was_reserved_and_never_touched_is_not_read(hunt):
    program = f"import mmap,sys; sys.stdin.readline(); held=mmap.mmap(-1, 4 << 30); held[2 << 30]=7; {READY}"
    with child(program, "nothing") as pid:
        hunt.memory([pid])
        assert 1 << 20 < hunt.searched["bytes of memory"] < 1 << 30


def test_a_leak_into_a_core_file_is_found(hunt, text, tmp_path):
    import resource

    def allow():
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    command = [sys.executable, "-c", DIES]
    done = subprocess.run(command, input=text.encode(), cwd=tmp_path, preexec_fn=allow, capture_output=True)
    assert done.returncode == -6
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    hunt.files([tmp_path])
    written_here = not pattern.startswith(("|", "/")) and resource.getrlimit(resource.RLIMIT_CORE)[1] != 0
    assert whats(hunt) == ({"it"} if written_here else set())


# -- elsewhere --------------------------------------------------------------------------------------


def test_a_leak_into_shared_memory_of_the_old_kind_is_found(hunt, text, monkeypatch):
    monkeypatch.setattr(places, "mounts", list)  # the files have tests of their own
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    number = libc.shmget(0, 4096, 0o600)
    try:
        address = libc.shmat(number, None, 0)
        ctypes.memmove(address, text.encode(), len(text))
        libc.shmdt(address)
        hunt.everywhere()
        assert f"shared memory segment {number}" in [each.where for each in hunt.found]
    finally:
        libc.shmctl(number, 0, None)


def flow(octets, family=socket.AF_INET):
    """Pieces over one connection, each a segment of its own."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server((host, 0), family=family))
        client = sockets.enter_context(socket.create_connection(server.getsockname()[:2]))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken = sockets.enter_context(server.accept()[0])
        for each in octets:
            client.sendall(each)
            taken.recv(65536)
            time.sleep(0.02)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("cut", [0, 20, 40])
def test_a_leak_over_the_loopback_device_is_found_also_across_segments(hunt, text, family, cut):
    octets = b"x" * 1000 + text.encode() + b"y" * 10
    with hunt.listening():
        flow([octets[: 1000 + cut], octets[1000 + cut :]], family)
    assert [each.where for each in hunt.found] == ["the loopback device"]
    assert hunt.searched["packets that went by unheard"] == 0


def test_a_leak_in_a_datagram_is_found(hunt, text):
    with hunt.listening(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), ("127.0.0.1", 9))
    assert whats(hunt) == {"it"}


def test_swap_that_is_on_counts_as_found(hunt, monkeypatch, tmp_path):
    table = tmp_path / "swaps"
    table.write_text("Filename Type Size Used Priority\n/swapfile file 1048572 0 -2\n")
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: real(table if str(self) == "/proc/swaps" else self))
    hunt.swap()
    assert [each.where for each in hunt.found] == ["swap /swapfile"]


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


def test_what_was_there_before_the_hunt_is_not_searched(tmp_path):
    (tmp_path / "old").write_text("old")
    time.sleep(1.2)
    hunt = Hunt({"it": canary("it")})
    time.sleep(0.01)
    hunt.began += 1  # one second of grace is given
    hunt.files([tmp_path])
    assert "files" not in hunt.searched
