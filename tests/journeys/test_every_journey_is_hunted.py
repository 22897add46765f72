"""The search in which each journey ends finds what is planted in each kind of place, and no journey goes without it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from doubles.houses import archives, sealed_stage
from leaks.hunt import Hunt, canary

pytestmark = pytest.mark.journey

HERE = Path(__file__).parent
WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"
HOLDS = "import os,sys,tempfile; f=tempfile.TemporaryFile(); f.write(os.environb.pop(b'X')); f.flush(); " + WAITS


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    models = {"talk": "talking_handler.py"}
    store = archives(tmp_path_factory.mktemp("store") / "plain", models, b"minWorkers: 1\nmaxWorkers: 1\n")
    with sealed_stage(store, models) as stage:
        yield stage


@contextlib.contextmanager
def written(path: Path, text: str):
    with path.open("a") as file:
        file.write(text)
    yield
    path.write_text("")


@contextlib.contextmanager
def child(stage, program: str, **process):
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, **process) as running:
        assert running.stdout.readline() == b"ready\n"
        stage.processes.append(running)
        yield
        stage.processes.remove(running)
        running.kill()


@contextlib.contextmanager
def told_by_metrics(stage, text: str):
    """Something else answers at the address of the metrics."""

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'Requests{{of="{text}"}} 1\n'.encode())

        def log_message(self, *_):
            pass

    properties = stage.host / "config.properties"
    kept = properties.read_text()
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"metrics_address=http://127.0.0.1:{server.server_port}"
        properties.write_text(re.sub(r"^metrics_address=.*$", here, kept, flags=re.MULTILINE))
        yield
        properties.write_text(kept)
        server.shutdown()


@contextlib.contextmanager
def sent_in_the_clear(stage, text: str):
    before = stage.relay.mark()[0]
    requests.post(f"{stage.url}/predictions/talk", data=text, timeout=30)
    yield
    del stage.relay.requests[before:]


@contextlib.contextmanager
def in_shared_memory(text: str):
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="strongroom-") as folder:
        Path(folder, "thing").write_text(text)
        yield


PLACES = {
    "launch.log": lambda stage, text: written(stage.host / "planted.log", text),
    "broker.log": lambda stage, text: written(stage.owner / "planted.log", text),
    "/dev/shm": lambda stage, text: in_shared_memory(text),
    "environ": lambda stage, text: child(stage, WAITS, env={"X": text}),
    "deleted": lambda stage, text: child(stage, HOLDS, env={"X": text}),
    "metrics": told_by_metrics,
    "relay": sent_in_the_clear,
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_planted_around_a_server_is_found(stage, place):
    planted = canary("planted")
    hunt = Hunt({}, began=stage.hunt.began)
    with PLACES[place](stage, planted):
        stage.search(hunt)
    where = [each.where for each in hunt.found if each.what == planted]
    assert where
    assert {each.what for each in hunt.found} == {planted}


def test_the_memory_files_of_the_keeper_do_hold_the_model_so_that_its_pieces_are_the_right_ones(stage):
    hunt = Hunt(dict(stage.hunt.canaries))
    hunt.processes(stage.pids(), inside=lambda pid: False)
    assert {each.what.partition(": ")[0] for each in hunt.found} == {"a piece of talk.mar"}


def test_what_is_looked_for_is_of_every_kind(stage):
    stage.search()
    names = set(stage.hunt.canaries)
    assert {"the author's key", "the administrator's key"} <= names
    assert {"the key of a request to talk", "the secret of a response by talk"} <= names
    for kind in ("the model key ", "a piece of talk.mar: talking_handler.py", "canary-"):
        assert [each for each in names if each.startswith(kind)], kind
    assert stage.hunt.searched["bytes of files"] > 10_000
    assert stage.hunt.searched["processes"] >= 4


def test_no_journey_starts_a_server_that_is_not_hunted():
    for path in [*HERE.glob("test_*.py"), HERE.parent / "doubles" / "houses.py", HERE.parent / "doubles" / "stages.py"]:
        text = path.read_text()
        if re.search(r"(?<!Hunted)\bStage(\.make)?\(", text):
            assert re.search(r"\bHunt\(", text), f"{path.name} takes a Stage and has no Hunt; take a HuntedStage"
