"""The leak hunt over a real server: while it serves, after each kind of death, and after its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import requests
from doubles.models import plain_archive
from leaks.hunt import Hunt, canary
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import Stage
from strongroom.errors import StrongroomError

pytestmark = [
    pytest.mark.journey,
    pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: the hunt needs root to look everywhere"),
]

HANDLER = Path(__file__).parents[1] / "doubles" / "loud_handler.py"
FIXED = "canary-of-the-model-3f1c8a52d09b"


class Ground:
    """A server whose model, requests and answers are canaries."""

    def __init__(self) -> None:
        self.stage = Stage.make()
        self.canaries = {name: canary(name) for name in ("model", "weights", "request")}
        self.canaries["answer"] = hashlib.sha256(self.canaries["request"].encode()).hexdigest()
        # This process is the client and the author, so its own files are spared, and it writes none elsewhere.
        self.hunt = Hunt(self.canaries, spared=(self.stage.owner,))
        stage = self.stage
        stage.make_author()
        stage.start_broker()
        files = {
            "loud_handler.py": HANDLER.read_text().replace(FIXED, self.canaries["model"]).encode(),
            "weights.bin": self.canaries["weights"].encode() * 1000,
        }
        plain = plain_archive(stage.owner / "digits.mar", files, name="digits", handler="loud_handler.py")
        stage.seal(plain)
        stage.start_server(properties="metrics_mode=prometheus\n")
        stage.wait_until_ready()

    def tree(self, word: str = "") -> list[psutil.Process]:
        everybody = [psutil.Process(self.stage.launcher.pid)]
        everybody += everybody[0].children(recursive=True)
        return [each for each in everybody if word in " ".join(each.cmdline())]

    def talk(self) -> None:
        """Requests of every kind, until one of each was answered."""
        session = requests.Session()
        session.mount(self.stage.url, SealedAdapter(policy=self.stage.client_policy()))
        url, deadline = f"{self.stage.url}/predictions/digits", time.monotonic() + 90
        wanted = [{"answer": self.canaries["request"]}, {"say": self.canaries["request"]}]
        wanted += [{"raise": self.canaries["request"]}, {"exit": self.canaries["request"]}]
        while wanted and time.monotonic() < deadline:
            body = wanted[0]
            try:
                answer = session.post(url, json=body, timeout=30)
            except (StrongroomError, requests.RequestException):
                if "exit" not in body:
                    time.sleep(0.3)
                    continue
            else:
                if answer.status_code not in (200, 500):
                    continue
                if "answer" in body:
                    assert answer.json() == {"answered": self.canaries["answer"]}
            wanted.pop(0)
        assert not wanted
        # The clear outside of it all, with a canary in every place that a client could put one by mistake
        # would be the client's own leak; what the server says by itself is looked at.
        for path in ("/ping", "/api-description", "/models"):
            with contextlib.suppress(requests.RequestException):
                self.hunt.octets(requests.get(f"{self.stage.url}{path}", timeout=5).content, path)
        with contextlib.suppress(requests.RequestException):
            management = f"http://127.0.0.1:{self.stage.management}/models/digits"
            self.hunt.octets(requests.get(management, timeout=5).content, "the management API")

    def search(self) -> list:
        self.hunt.octets(self.stage.relay.seen, "the relay")
        self.hunt.files()
        self.hunt.processes([each.pid for each in self.tree()])
        outsiders = [self.stage.launcher.pid, *(each.pid for each in self.tree("serve.ModelServer"))]
        self.hunt.memory([*outsiders, *(each.pid for each in self.tree("-m ts.model_server"))])
        self.hunt.swap()
        return [each for each in self.hunt.found if not handlers_own(each.where)]


def handlers_own(where: str) -> bool:
    """What the handler itself wrote into the temporary folder it was given: in memory, and swept at the end."""
    return where.startswith("/dev/shm/strongroom-") and where.endswith("/temp/left-behind")


@pytest.fixture(scope="module")
def ground():
    ground = Ground()
    yield ground
    ground.stage.close()


@pytest.mark.parametrize("death", ["none", "worker", "keeper", "java"])
def test_after_every_death_there_is_no_canary_anywhere(ground, death):
    with ground.hunt.listening():
        ground.talk()
        words = {"worker": "model_service_worker", "keeper": "keeper --config", "java": "serve.ModelServer"}
        for each in ground.tree(words[death])[:1] if death != "none" else []:
            os.kill(each.pid, signal.SIGKILL)
        ground.talk()
    assert ground.search() == []
    assert ground.hunt.searched["files"] > 20
    assert ground.hunt.searched["bytes of memory"] > 50 << 20
    assert ground.hunt.searched["bytes of loopback traffic"] > 10_000


def test_a_leak_that_is_planted_in_the_same_ground_is_found(ground):
    place = ground.stage.host / "logs" / "planted.log"
    place.write_text(f"a line with {ground.canaries['request']}\n")
    try:
        hunt = Hunt(ground.canaries, spared=(ground.stage.owner,), began=ground.hunt.began)
        hunt.files([ground.stage.host])
        assert [each.where for each in hunt.found] == [str(place)]
    finally:
        place.unlink()


def test_the_workers_memory_does_hold_the_model_so_the_search_of_memory_is_not_blind(ground):
    hunt = Hunt(ground.canaries)
    hunt.memory([each.pid for each in ground.tree("model_service_worker")])
    assert "model" in {each.what for each in hunt.found}


def test_after_the_end_nothing_is_left_not_even_what_the_handler_wrote(ground):
    ground.talk()
    ground.stage.launcher.send_signal(signal.SIGTERM)
    ground.stage.launcher.wait(40)
    ground.hunt.found.clear()
    ground.hunt.files()
    assert ground.hunt.found == []
