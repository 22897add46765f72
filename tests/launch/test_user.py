"""The server as another user: who it is then, what is left of root's rights, what it can reach."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from doubles.models import Author, sealed_toy
from doubles.namespaces import only_root, open_to_others
from strongroom.adapters.torchserve.launcher import _make_logs
from strongroom.errors import LaunchRefused
from strongroom.launch.hardening import confine_server
from strongroom.launch.supervisor import Child
from strongroom.launch.user import User
from strongroom.launch.variables import REFUSED_VARIABLES

PREPARES = """
import shutil
from pathlib import Path
from strongroom.adapters.torchserve.launcher import prepare
from strongroom.launch.user import User

launch = prepare(Path("strongroom.toml"), ["torchserve", "--model-store", "store", "--models", "toy=toy.mar"])
try:
    written = [launch.folder / "store" / "toy.mar", launch.folder / "config" / "config.properties"]
    User.named("nobody").check(written)
    print(*(f"{path.stat().st_mode & 0o777:o}" for path in (*written, *(each.parent for each in written))))
finally:
    shutil.rmtree(launch.folder)
"""

NOBODY = pwd.getpwnam("nobody")


def test_a_user_that_does_not_exist_is_refused_with_the_way_to_make_one():
    with pytest.raises(LaunchRefused, match="no such user") as refusal:
        User.named("strongroom-nobody-has-this-name")
    assert "useradd" in refusal.value.hint


def test_root_is_no_other_user():
    with pytest.raises(LaunchRefused, match="root"):
        User.named("root")


def test_only_root_can_become_somebody_else(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LaunchRefused, match="only root"):
        User.named("nobody")


def open_the_way(folder: Path) -> None:
    """Everybody may pass to `folder`; pytest makes its folders for their owner alone, one more for each process."""
    while folder != Path(tempfile.gettempdir()):
        folder.chmod(0o711)
        folder = folder.parent


def outcome(tmp_path, program: str, user: User | None) -> str:
    """What a child said that was confined as the server is."""
    (tmp_path / "out").write_text("")
    (tmp_path / "out").chmod(0o666)
    open_the_way(tmp_path)
    command = ["/bin/sh", "-c", f"{{ {program}; }} > {tmp_path}/out 2>&1"]
    child = Child("it", command, {"PATH": "/usr/bin:/bin"}, Path("/"), confine=lambda: confine_server(user, ()))
    child.start()
    child.process.wait(20)
    return (tmp_path / "out").read_text()


@only_root("only root can become somebody else")
def test_the_child_is_that_user_without_groups_and_with_one_capability_at_most(tmp_path):
    said = outcome(
        tmp_path, "id -u; id -G; grep -E 'Cap(Eff|Prm|Inh|Amb)|NoNew' /proc/self/status", User.named("nobody")
    )
    lines = said.split("\n")
    assert lines[:2] == [str(NOBODY.pw_uid), str(NOBODY.pw_gid)]
    status = dict(line.split(":\t") for line in lines[2:] if line)
    assert status.pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in status.values()} <= {0, 1 << 10}, "CAP_NET_BIND_SERVICE alone"


@only_root("only root can become somebody else")
def test_it_can_listen_on_a_low_port_and_do_nothing_else_of_roots(tmp_path):
    listen = "import socket; s = socket.socket(); s.bind((chr(0x31) + '27.0.0.1', 81)); print('listening')"
    system = "/usr/bin/python3"
    if not Path(system).exists():
        pytest.skip("SKIPPED LOUDLY: no Python of the system")
    said = outcome(tmp_path, f'{system} -c "{listen}"; cat /etc/shadow; kill -0 {os.getpid()}', User.named("nobody"))
    assert "listening" in said
    assert said.lower().count("permitted") + said.lower().count("denied") == 2


@only_root("only root can become somebody else")
def test_it_dies_with_its_parent_all_the_same(tmp_path):
    """PR_SET_PDEATHSIG is forgotten when a process becomes another user, so it comes after that."""
    note = tmp_path / "pid"
    launcher = os.fork()
    if launcher == 0:
        child = Child(
            "it", ["/bin/sleep", "60"], {}, Path("/"), confine=lambda: confine_server(User.named("nobody"), ())
        )
        child.start()
        note.write_text(str(child.process.pid))
        os._exit(0)
    os.waitpid(launcher, 0)
    pid, deadline = int(note.read_text()), time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if ") Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("it outlived its parent")


@only_root("only root can become somebody else")
def test_what_the_user_cannot_reach_is_refused_before_anything_starts(tmp_path):
    private, shared = tmp_path / "private", tmp_path / "shared"
    for folder in (private, shared):
        folder.mkdir()
        (folder / "file").write_text("x")
    open_the_way(tmp_path)
    private.chmod(0o700)
    user = User.named("nobody")
    user.check([shared / "file"])
    with pytest.raises(LaunchRefused, match="may not read"):
        user.check([shared / "file", private / "file"])
    with pytest.raises(LaunchRefused, match="may not write"):
        user.check([shared / "file"], [shared])
    user.own(shared)
    user.check([], [shared])


@only_root("only root can become somebody else")
def test_a_link_is_not_followed_when_a_folder_is_given_away(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "link").symlink_to(target)
    User.named("nobody").own(tmp_path / "link")
    assert target.stat().st_uid == os.geteuid()
    assert (tmp_path / "link").lstat().st_uid == NOBODY.pw_uid


def test_the_interpreter_itself_has_to_be_in_reach():
    """What a launch says where Python lies in a private home: see tests/doubles/namespaces.py."""
    if os.geteuid() != 0 or all(each.stat().st_mode & 0o001 for each in Path(sys.executable).resolve().parents):
        return
    with pytest.raises(LaunchRefused, match="may not read"):
        User.named("nobody").check([Path(sys.executable)])


@only_root("only root can become somebody else")
def test_a_program_that_the_user_may_read_and_not_run_is_refused(tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\n")
    open_the_way(tmp_path)
    user = User.named("nobody")
    with pytest.raises(LaunchRefused, match="may not run"):
        user.check([], [], [tmp_path / "java"])
    (tmp_path / "java").chmod(0o755)
    user.check([], [], [tmp_path / "java"])


@pytest.fixture
def private():
    """A umask that leaves nobody else anything, as hardened services and the measured image have it."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@only_root("only root can become somebody else")
def test_the_servers_user_reads_what_was_written_for_it_whatever_the_umask(tmp_path, private):
    (tmp_path / "store").mkdir()
    author = Author.make(tmp_path)
    sealed_toy(tmp_path / "store", author, name="toy", weights=b"weights")
    (tmp_path / "strongroom.toml").write_text(
        '[admission]\nauthors = ["author.pub"]\n[broker]\nurl = "http://127.0.0.1:1"\n'
        '[attestation]\ntee = "simulated"\n[worker]\nuser = "nobody"\n'
    )
    words = [*open_to_others(tmp_path / "kept"), sys.executable, "-P", "-c", PREPARES]
    environment = {name: value for name, value in os.environ.items() if name not in REFUSED_VARIABLES}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["640", "640", "750", "750"]


@only_root("only root can become somebody else")
def test_log_folders_are_reached_by_the_servers_user_whatever_the_umask(tmp_path, private):
    open_the_way(tmp_path)
    user = User.named("nobody")
    _make_logs([tmp_path / "var" / "log" / "server", tmp_path / "var" / "log" / "server"], user)
    user.check([], [tmp_path / "var" / "log" / "server"])
    assert (tmp_path / "var" / "log").stat().st_uid == 0
