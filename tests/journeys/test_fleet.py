"""Two launched hosts of a fleet behind a round-robin balancer: clients notice neither host nor midnight."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import psutil
import pytest
import requests
from doubles.balancer import Balancer
from doubles.hunted import HuntedStage
from doubles.models import Author, plain_archive
from leaks.hunt import canary
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker import directory
from strongroom.broker.epochs import EPOCH_S
from strongroom.broker.serve import running
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import Stage
from strongroom.errors import RequestRefused, ServerRefused

pytestmark = pytest.mark.journey

HANDLER = Path(__file__).parents[1] / "doubles" / "echo_handler.py"
ONE_WORKER = b"minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\n"
CANARY = canary("asked")
LEASE_S = 3
"""Short, so that keepers hear soon of the broker's time, which this test turns on."""


class Clock:
    """The time of the broker and of its clients: the machine's, until a test moves it on."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset

    def to_noon(self) -> int:
        """It becomes noon of the next day, far from what happens around midnight; the day's epoch."""
        self.offset += 1.5 * EPOCH_S - self() % EPOCH_S
        return int(self()) // EPOCH_S

    def to_midnight(self, seconds: float) -> None:
        """It becomes so many seconds to the end of the broker's day."""
        self.offset += EPOCH_S - self() % EPOCH_S - seconds


@dataclass
class Fleet:
    hosts: list[Stage]
    balancer: Balancer
    clock: Clock

    @property
    def url(self) -> str:
        return f"{self.balancer.url}/predictions/echo"

    def client(self) -> requests.Session:
        """A client whose clock is right, and whose policy takes keys of a fleet."""
        policy = self.hosts[0].owner / "fleet-client.toml"
        policy.write_text(self.hosts[0].client_policy().read_text() + '[channel]\nmodes = ["fleet"]\n')
        adapter = SealedAdapter(policy=policy)
        adapter._exchanges = dataclasses.replace(adapter._exchanges, clock=self.clock)
        session = requests.Session()
        session.mount(self.balancer.url, adapter)
        return session

    def ask(self, session: requests.Session, said: str) -> None:
        said = f"{said} {CANARY}"
        answer = session.post(self.url, data=said.encode(), timeout=60)
        assert answer.status_code == 200
        assert said.encode().hex() in answer.text

    def wait_for_log(self, said: str, hosts: list[Stage] | None = None) -> None:
        deadline = time.monotonic() + 60
        for host in hosts or self.hosts:
            while said not in host.log():
                assert time.monotonic() < deadline, f"{said!r} is not in the log: {host.log_tail()}"
                time.sleep(0.1)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    clock, first = Clock(), HuntedStage.make()
    second = HuntedStage(first.owner, Path(tempfile.mkdtemp(prefix="strongroom-host-")), hunt=first.hunt)
    try:
        first.author_id = str(Author.make(first.owner).key.public.id)
        first.measurement = SimulatedAttester().measurement.hex()
        policy = first.owner / "appraisal.toml"
        policy.write_text(
            f'name = "fleet"\n[simulated]\nprotects_nothing = true\nmeasurements = ["{first.measurement}"]\n'
        )
        directory.init(first.owner / "broker")
        with running(first.owner / "broker", policy=policy, rego="development", clock=clock) as (first.broker_url, _):
            seal(first)
            shutil.copytree(first.host / "model_store", second.host / "model_store")
            second.broker_url = first.broker_url
            for host in (first, second):
                host.start_server(models=("echo=echo.mar",), settings='[channel]\nmode = "fleet"\n')
            for host in (first, second):
                host.wait_until_ready(1, model="echo")
            with Balancer([first.inference, second.inference]) as balancer:
                fleet = Fleet([first, second], balancer, clock)
                fleet.wait_for_log("offers the keys of epoch")
                fleet.wait_for_log(f"offers the keys of epoch {clock.to_noon()}")
                yield fleet
            close(first, second)
    finally:
        close(first, second)


def close(*hosts: HuntedStage) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(HuntedStage.close, hosts))


def seal(stage: HuntedStage) -> None:
    """As an author does it; nothing about fleets is said."""
    files = {"echo_handler.py": HANDLER.read_bytes(), "config.yaml": ONE_WORKER}
    plain = plain_archive(
        stage.owner / "echo.mar", files, name="echo", handler="echo_handler.py", configFile="config.yaml"
    )
    stage.seal(plain, "--lease", str(LEASE_S))


def an_evening(fleet: Fleet) -> int:
    """Some seconds to midnight, and all keepers hold tomorrow's seed; the number of the epoch that ends."""
    while True:
        fleet.clock.to_midnight(9)
        today = int(fleet.clock()) // EPOCH_S
        fleet.wait_for_log(f"offers the keys of epoch {today} and opens with those of {today}, {today + 1}")
        if fleet.clock() < (today + 1) * EPOCH_S - 2:
            return today  # else this machine was too slow for that evening, and there is another one


def test_every_request_is_answered_across_midnight_and_none_needs_a_second_verification(fleet):
    today = an_evening(fleet)
    before = len(fleet.balancer.passed)
    early, asked = fleet.client(), 0
    while int(fleet.clock()) // EPOCH_S == today:
        fleet.ask(early, f"today {asked}")
        asked += 1
    fleet.wait_for_log(f"offers the keys of epoch {today + 1}")
    late = fleet.client()
    for number in range(6):
        fleet.ask(early, f"still {number}")
        fleet.ask(late, f"tomorrow {number}")
        fleet.ask(late, f"and again {number}")
    passed = fleet.balancer.passed[before:]
    assert {each.status for each in passed} == {200}
    assert [each.asks_for_keys for each in passed].count(True) == 2  # one verification a client, at its first request
    sealed = [each for each in passed if not each.asks_for_keys]
    assert len(sealed) == asked + 18
    for key_id in {each.body[0] for each in sealed}:
        assert {each.host for each in sealed if each.body[0] == key_id} == {0, 1}
    assert len({each.body[0] for each in sealed}) == 2  # both days' keys were in use


def test_a_client_that_did_not_say_that_it_takes_a_fleets_keys_sends_nothing(fleet):
    session = requests.Session()
    session.mount(fleet.balancer.url, SealedAdapter(policy=fleet.hosts[0].client_policy()))
    before = len(fleet.balancer.passed)
    with pytest.raises(ServerRefused, match=r"bundle\.mode"):
        session.post(fleet.url, data=b"secret", timeout=60)
    assert all(each.asks_for_keys for each in fleet.balancer.passed[before:])


def post(host: Stage, body: bytes, kind: str) -> requests.Response:
    return requests.post(
        f"http://127.0.0.1:{host.inference}/predictions/echo", data=body, headers={"Content-Type": kind}, timeout=60
    )


def test_a_host_can_replay_once_to_each_keeper_and_never_to_one_that_started_later(fleet):
    first, second = fleet.hosts
    config, pair = KeyList.parse(
        KeyBundle.parse(post(first, b"{}", KEYS_REQUEST_TYPE).content).parts.ohttp_keys
    ).choose()
    inner = Request("POST", "http", "h", "/predictions/echo", (("date", formatdate(fleet.clock(), usegmt=True)),), b"x")
    message, opener = ohttp.encapsulate(config, pair, inner.serialise())
    for host in (first, second):
        assert [post(host, bytes(message), "message/ohttp-req").status_code for _ in range(2)] == [200, 409]

    session = fleet.client()
    fleet.ask(session, "verified")
    before = len(fleet.balancer.passed)
    os.kill(keeper_of(first), signal.SIGKILL)
    deadline, in_a_row, statuses = time.monotonic() + 60, 0, set()
    while in_a_row < 4:  # the host whose keeper is new is closed for a moment; the other one goes on
        try:
            fleet.ask(session, "still verified")
            in_a_row += 1
        except RequestRefused as error:
            statuses.add(error.status)
            in_a_row = 0
            time.sleep(0.3)
        assert time.monotonic() < deadline
    assert statuses == {503}
    assert not any(each.asks_for_keys for each in fleet.balancer.passed[before:])

    answer = post(first, bytes(message), "message/ohttp-req")
    assert answer.status_code == 200
    refusal = Response.parse(opener.open(answer.content))
    assert refusal.status == 400
    assert b"#date" in refusal.content


def keeper_of(stage: Stage) -> int:
    children = psutil.Process(stage.launcher.pid).children(recursive=True)
    [keeper] = [each.pid for each in children if "keeper" in each.cmdline()]
    return keeper
