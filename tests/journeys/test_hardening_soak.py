"""Thousands of requests, one in a hundred hostile, workers coming and going: nothing lost, nothing leaking.

STRONGROOM_SOAK sets the number of requests (10,000 by default). The figures of docs/reliability.md are what
this prints:

    STRONGROOM_SOAK=10000 python -m pytest -s -m long tests/journeys/test_hardening_soak.py
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import requests
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from leaks.hunt import canary
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import Stage
from strongroom.errors import StrongroomError

pytestmark = [pytest.mark.journey, pytest.mark.long]

REQUESTS = int(os.environ.get("STRONGROOM_SOAK", "10000"))
CLIENTS = 4
ATTEMPTS = 6
HANDLER = Path(__file__).parents[1] / "doubles" / "loud_handler.py"
CANARY = canary("soaked")
SEALED = "message/ohttp-req"


@pytest.fixture(scope="module")
def stage():
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        files = {"loud_handler.py": HANDLER.read_bytes()}
        plain = plain_archive(stage.owner / "digits.mar", files, name="digits", handler="loud_handler.py")
        stage.seal(plain)
        stage.start_server()
        stage.wait_until_ready()
        yield stage
    finally:
        stage.close()


class Figures:
    """What a process holds: descriptors, threads, MiB of memory that is its own share (PSS)."""

    def __init__(self, stage: Stage) -> None:
        self.of: dict[str, dict[str, float]] = {}
        launcher = psutil.Process(stage.launcher.pid)
        words = {"keeper": "keeper --config", "java": "serve.ModelServer", "worker": "model_service_worker"}
        for name, word in words.items():
            for each in launcher.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if word in " ".join(each.cmdline()):
                        figures = {
                            "descriptors": each.num_fds(),
                            "threads": each.num_threads(),
                            "pss": each.memory_full_info().pss / 2**20,
                        }
                        known = self.of.setdefault(name, figures)
                        self.of[name] = {key: max(known[key], value) for key, value in figures.items()}
        [shared] = launcher.children()  # the process itself is only its guardian
        self.of["launcher"] = {"descriptors": shared.num_fds(), "threads": shared.num_threads(), "pss": 0.0}

    def told(self) -> dict:
        return {name: {key: round(value, 1) for key, value in each.items()} for name, each in self.of.items()}


class Soak:
    def __init__(self, stage: HuntedStage) -> None:
        self.stage = stage
        self.url = f"http://127.0.0.1:{stage.inference}/predictions/digits"  # past the relay, which keeps every byte
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._left = REQUESTS

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def run(self) -> None:
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    def _client(self, seed: int) -> None:
        dice = random.Random(seed)
        session = requests.Session()
        session.mount(f"http://127.0.0.1:{self.stage.inference}", SealedAdapter(policy=self.stage.client_policy()))
        while True:
            with self._lock:
                if self._left <= 0:
                    return
                self._left -= 1
                number = self._left
            if dice.random() < 0.01:
                self._hostile(dice)
            else:
                self._honest(session, number)

    def _honest(self, session: requests.Session, number: int) -> None:
        import hashlib

        text = f"{CANARY} in request {number}"
        for _ in range(ATTEMPTS):
            try:
                answer = session.post(self.url, json={"answer": text}, timeout=30)
            except (StrongroomError, requests.RequestException) as error:
                self.count(f"tried again after {type(error).__name__}")
                time.sleep(0.5)
                continue
            if answer.status_code == 200:
                expected = hashlib.sha256(text.encode()).hexdigest()
                right = answer.json() == {"answered": expected}
                if number % 1000 == 0:
                    self.stage.hunt.canaries[f"the answer to request {number}"] = expected
                self.count("answered rightly" if right else "WRONG ANSWER")
                return
            self.count(f"tried again after {answer.status_code}")
            time.sleep(0.5)
        self.count("LOST")

    def _message(self) -> bytes:
        answer = requests.post(self.url, data=b"{}", headers={"Content-Type": KEYS_REQUEST_TYPE}, timeout=30)
        config, pair = KeyList.parse(KeyBundle.parse(answer.content).parts.ohttp_keys).choose()
        inner = Request("POST", "http", "h", "/predictions/digits", (("content-type", "application/json"),), b"{}")
        return bytes(ohttp.encapsulate(config, pair, inner.serialise())[0])

    def _hostile(self, dice: random.Random) -> None:
        kind = dice.choice(
            ["rubbish", "cut", "flipped", "replay", "plain", "unknown key", "half-open", "large", "raises"]
        )
        try:
            allowed = self._attack(kind, dice)
        except (requests.RequestException, StrongroomError, OSError, ValueError) as error:
            self.count(f"hostile {kind}: {type(error).__name__}")
            return
        self.count(f"hostile {kind}: {allowed}")

    def _attack(self, kind: str, dice: random.Random) -> str:
        if kind == "half-open":
            with socket.create_connection(("127.0.0.1", self.stage.inference), 5) as connection:
                connection.sendall(b"POST /predictions/digits HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc")
                time.sleep(0.2)
            return "left"
        if kind == "rubbish":
            body = dice.randbytes(dice.randrange(0, 3000))
        elif kind == "large":
            body = bytes(20 << 20)
        else:
            body = self._message()
        if kind == "cut":
            body = body[: dice.randrange(len(body))]
        if kind == "flipped":
            at = dice.randrange(7, len(body))
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if kind == "unknown key":
            body = bytes([body[0] ^ 0x55]) + body[1:]
        media = "application/json" if kind == "plain" else SEALED
        answer = requests.post(self.url, data=body, headers={"Content-Type": media}, timeout=30)
        if kind == "replay":
            assert answer.status_code in (200, 500, 503)
            answer = requests.post(self.url, data=body, headers={"Content-Type": media}, timeout=30)
        if kind == "raises":
            return "served" if answer.status_code == 200 else str(answer.status_code)
        if answer.status_code == 200:
            self.wrong.append(f"{kind} was answered 200")
        return str(answer.status_code)


def scale(stage: Stage, workers: int) -> None:
    url = f"http://127.0.0.1:{stage.management}/models/digits?min_worker={workers}&max_worker={workers}"
    requests.put(url, timeout=30)


def test_a_soak_loses_nothing_answers_nothing_wrongly_and_leaks_nothing(stage):
    warm = Soak(stage)
    warm._left = min(500, REQUESTS // 4)
    warm.run()
    time.sleep(3)
    before = Figures(stage)
    soak, done, scalings = Soak(stage), threading.Event(), [0]

    def breathe() -> None:
        while not done.wait(15):
            scale(stage, (3, 1, 2)[scalings[0] % 3])
            scalings[0] += 1

    lungs = threading.Thread(target=breathe, daemon=True)
    began = time.monotonic()
    lungs.start()
    soak.run()
    seconds = time.monotonic() - began
    done.set()
    lungs.join()
    scale(stage, 2)
    stage.wait_until_ready()
    time.sleep(12)
    after = Figures(stage)
    told = {
        "requests": REQUESTS,
        "seconds": round(seconds),
        "scalings": scalings[0],
        "counts": dict(sorted(soak.counts.items())),
        "before": before.told(),
        "after": after.told(),
    }
    print(json.dumps(told, indent=1))
    assert soak.wrong == []
    assert soak.counts["WRONG ANSWER"] == soak.counts["LOST"] == 0
    assert sum(n for what, n in soak.counts.items() if what.startswith(("answered", "hostile"))) == REQUESTS
    for name in ("keeper", "launcher", "worker"):
        assert after.of[name]["descriptors"] <= before.of[name]["descriptors"] + 8, name
        assert after.of[name]["threads"] <= before.of[name]["threads"] + 8, name
    assert after.of["keeper"]["pss"] <= before.of["keeper"]["pss"] + 40
    assert after.of["worker"]["pss"] <= before.of["worker"]["pss"] + 60
