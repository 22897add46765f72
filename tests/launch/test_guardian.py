"""The process that stays behind a launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from strongroom.launch.guardian import guarded

guarded(lambda: Path("cleaned").write_text("by the guardian"))
detached = "import os, time; os.setsid(); open('detached', 'w').write(str(os.getpid())); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", detached])
while not Path("detached").exists() or not Path("detached").read_text():
    time.sleep(0.01)
Path("inner").write_text(str(os.getpid()))
{then}
"""


def started(folder: Path, then: str = "time.sleep(600)") -> subprocess.Popen:
    program = textwrap.dedent(PROGRAM.format(then=then))
    return subprocess.Popen([sys.executable, "-c", program], cwd=folder, stderr=subprocess.PIPE)


def number(path: Path) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path.name} did not come")


def alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_guarded_process_that_is_killed_leaves_nothing_that_it_started(tmp_path):
    guardian = started(tmp_path)
    inner, detached = number(tmp_path / "inner"), number(tmp_path / "detached")
    os.kill(inner, signal.SIGKILL)
    assert guardian.wait(20) == 128 + signal.SIGKILL
    assert not alive(detached)
    assert (tmp_path / "cleaned").read_text() == "by the guardian"


@pytest.mark.parametrize(("then", "status"), [("sys.exit(3)", 3), ("pass", 0)])
def test_a_guardian_exits_as_the_guarded_process_does(tmp_path, then, status):
    guardian = started(tmp_path, then)
    assert guardian.wait(20) == status
    assert not alive(number(tmp_path / "detached"))


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
def test_a_guardian_passes_signals_on(tmp_path, received):
    then = "import signal; [signal.signal(n, lambda n, _: sys.exit(n)) for n in (2, 15)]; open('ready', 'w').write('1')"
    guardian = started(tmp_path, f"{then}\ntime.sleep(600)")
    number(tmp_path / "ready")
    guardian.send_signal(received)
    assert guardian.wait(20) == received


def test_a_guarded_process_is_told_when_its_guardian_is_killed(tmp_path):
    then = "import signal; signal.signal(15, lambda *_: (open('told', 'w').write('1'), sys.exit()))"
    then += "; open('ready', 'w').write('1')"
    guardian = started(tmp_path, f"{then}\ntime.sleep(600)")
    number(tmp_path / "ready")
    guardian.kill()
    guardian.wait(20)
    number(tmp_path / "told")
    os.kill(number(tmp_path / "detached"), signal.SIGKILL)
