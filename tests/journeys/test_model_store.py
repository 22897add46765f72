"""The recipe in the model store, typed as it stands there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from doubles.pages import console_commands
from doubles.serving import free_ports
from strongroom.launch.variables import REFUSED_VARIABLES

pytestmark = pytest.mark.journey

STORE = Path(__file__).parent.parent.parent / "model_store"
RECIPE = ("README.md", "config.properties", "strongroom.toml", "digits.py", "scan.json")
PORT = re.compile(r"(?<=[:=])(8090|8080|8081|8082|7070|7071)\b")
SERVING = re.compile(r"strongroom (broker serve|launch) ")


class Terminals:
    """A reader's terminals: commands in their order, those that serve go on in the background."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if name not in REFUSED_VARIABLES}
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{self._environment['PATH']}"
        self._serving: list[subprocess.Popen[bytes]] = []

    def type(self, command: str, until: str) -> str:
        """What the command prints; one that serves has answered at `until` before this returns."""
        with (self._folder / "terminal.log").open("ab") as log:
            if not SERVING.match(command):
                done = subprocess.run(
                    command, shell=True, cwd=self._folder, env=self._environment, timeout=240, stdout=-1, stderr=log
                )
                assert done.returncode == 0, f"{command}\n{self._log()}"
                return done.stdout.decode()
            serving = subprocess.Popen(
                f"exec {command}", shell=True, cwd=self._folder, env=self._environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._serving.append(serving)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and serving.poll() is None:
            with contextlib.suppress(requests.RequestException):
                answer = requests.get(until, timeout=5)
                if answer.ok and (not answer.text or "READY" in answer.text):  # a broker's health has no text
                    return ""
            time.sleep(0.2)
        raise AssertionError(f"{command} did not get ready\n{self._log()}")

    def _log(self) -> str:
        return (self._folder / "terminal.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        for serving in reversed(self._serving):
            serving.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                serving.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(serving.pid, signal.SIGKILL)


def test_the_recipe_of_the_model_store_leads_from_a_model_to_a_sealed_answer(tmp_path):
    ports = dict(zip(("8090", "8080", "8081", "8082", "7070", "7071"), map(str, free_ports(6)), strict=True))
    store = tmp_path / "model_store"
    store.mkdir()
    for name in RECIPE:
        shutil.copy(STORE / name, store / name)
    for name in ("README.md", "config.properties", "strongroom.toml"):
        moved = PORT.sub(lambda found: ports[found[0]], (store / name).read_text())
        (store / name).write_text(moved)
    ready = {
        "broker serve": f"http://127.0.0.1:{ports['8090']}/healthz",
        "launch": f"http://127.0.0.1:{ports['8081']}/models/digits",
    }
    said: dict[str, str] = {}
    terminals = Terminals(tmp_path)
    try:
        for command in console_commands((store / "README.md").read_text()):
            serves = SERVING.match(command)
            said[command.split()[1]] = terminals.type(command, ready[serves[1]] if serves else "")
    finally:
        terminals.close()
    assert '"digit": 0' in said["request"]
    assert "12 checks passed" in said["verify-server"]
    assert "1 archive would be served" in said["admit"]
    assert "event=release" in said["audit"]
