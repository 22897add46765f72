"""The launcher's children: restarted when they die, gone when it goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest


def launcher(tmp_path: Path, child: str) -> subprocess.Popen:
    """A process of its own that supervises one child; the child appends its pid to a file."""
    program = textwrap.dedent(
        f"""
        import os, sys
        from pathlib import Path
        from strongroom.launch.supervisor import Child, Supervisor
        supervisor = Supervisor(lambda line: print(line, flush=True))
        supervisor.stop_on_signals()
        command = [sys.executable, "-c", {child!r}]
        supervisor.start(Child("the child", command, dict(os.environ), Path({str(tmp_path)!r})))
        supervisor.run()
        """
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


LIVES = "import os,time; open('pids','a').write(f'{os.getpid()}\\n'); time.sleep(600)"
FORKS = (
    "import os,time,subprocess,sys; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(600)']);"
    "open('pids','a').write(f'{os.getpid()} {p.pid}\\n'); time.sleep(600)"
)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def pids(tmp_path: Path, count: int) -> list[str]:
    file = tmp_path / "pids"
    lines = file.read_text().splitlines() if file.exists() else []
    return lines if len(lines) >= count else []


def alive(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_that_is_killed_is_started_again(tmp_path):
    process = launcher(tmp_path, LIVES)
    try:
        [first] = wait_for(lambda: pids(tmp_path, 1))
        os.kill(int(first), signal.SIGKILL)
        second = wait_for(lambda: pids(tmp_path, 2))[1]
        assert second != first
    finally:
        process.terminate()
        process.wait(20)


def test_a_child_that_cannot_be_started_for_now_is_started_later(tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    process = launcher(room, LIVES)
    try:
        [first] = wait_for(lambda: pids(room, 1))
        room.rename(tmp_path / "away")
        os.kill(int(first), signal.SIGKILL)
        assert "by SIGKILL" in process.stdout.readline()
        assert "could not be started" in process.stdout.readline()
        (tmp_path / "away").rename(room)
        assert wait_for(lambda: pids(room, 2))[1] != first
    finally:
        process.terminate()
        process.wait(20)


def test_when_a_child_dies_what_it_started_dies_too(tmp_path):
    process = launcher(tmp_path, FORKS)
    try:
        child, grandchild = wait_for(lambda: pids(tmp_path, 1))[0].split()
        os.kill(int(child), signal.SIGKILL)
        wait_for(lambda: not alive(grandchild))
    finally:
        process.terminate()
        process.wait(20)


DETACHES = (
    "import os,time,subprocess,sys; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(600)'],"
    "start_new_session=True); open('pids','a').write(f'{os.getpid()} {p.pid}\\n'); time.sleep(600)"
)


def test_what_a_dead_child_had_detached_dies_too_before_it_is_started_again(tmp_path):
    process = launcher(tmp_path, DETACHES)
    try:
        child, detached = wait_for(lambda: pids(tmp_path, 1))[0].split()
        os.kill(int(child), signal.SIGKILL)
        wait_for(lambda: pids(tmp_path, 2))
        assert not alive(detached)
    finally:
        process.terminate()
        process.wait(20)


def test_what_a_child_had_detached_dies_when_all_is_stopped(tmp_path):
    process = launcher(tmp_path, DETACHES)
    _, detached = wait_for(lambda: pids(tmp_path, 1))[0].split()
    process.terminate()
    assert process.wait(20) == 0
    assert not alive(detached)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(tmp_path, number):
    process = launcher(tmp_path, FORKS)
    child, grandchild = wait_for(lambda: pids(tmp_path, 1))[0].split()
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not alive(child)
    assert not alive(grandchild)


def test_a_launcher_that_is_killed_takes_its_child_along(tmp_path):
    process = launcher(tmp_path, LIVES)
    [child] = wait_for(lambda: pids(tmp_path, 1))
    process.kill()
    process.wait(20)
    wait_for(lambda: not alive(child))
