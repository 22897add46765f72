"""What is killed comes back, clients recover, and nothing readable is left. Token authorisation is on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests
from doubles.hunted import HuntedStage
from doubles.stages import sealed_stage
from strongroom.adapters.torchserve.preparation import sweep_abandoned
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.search import hits
from strongroom.demo.stage import Stage
from strongroom.demo.story import Story
from strongroom.errors import RequestRefused, ServerUnavailable, ServerUnsealed

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def guarded(digits):
    """A sealed server that demands TorchServe's tokens."""
    yield from sealed_stage(digits, token_auth=True)


def connect(stage: Stage) -> requests.Session:
    session = requests.Session()
    session.mount(stage.url, SealedAdapter(policy=stage.client_policy()))
    return session


def ask(stage: Stage, session: requests.Session, scan) -> requests.Response:
    headers = {"Authorization": f"Bearer {stage.token()}"} if stage.token_auth else {}
    return session.post(f"{stage.url}/predictions/digits", data=scan.pixels, headers=headers, timeout=30)


def until_it_answers(stage: Stage, session: requests.Session, scan, seconds: float = 90) -> requests.Response:
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        try:
            answer = ask(stage, session, scan)
            if answer.status_code == 200:
                return answer
            last = answer.status_code
        except (requests.RequestException, RequestRefused, ServerUnavailable, ServerUnsealed, OSError) as error:
            last = error
        time.sleep(0.3)
    raise AssertionError(f"no answer after {seconds} s, the last was {last!r}\n{stage.log_tail()}")


def processes(stage: Stage, word: str) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(stage.launcher.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end while we look
            if word in " ".join(each.cmdline()):
                found.append(each)
    return found


class Traffic:
    """Asks all the time from its own threads; counts what came."""

    def __init__(self, stage: Stage, scans) -> None:
        self.stage, self.scans = stage, scans
        self.good, self.wrong = 0, []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(3)]

    def _run(self) -> None:
        session = connect(self.stage)
        while not self._stop.is_set():
            for scan in self.scans:
                try:
                    answer = ask(self.stage, session, scan)
                    if answer.status_code == 200 and answer.json()["digit"] not in range(10):
                        self.wrong.append(answer.content)
                    self.good += answer.status_code == 200
                except (requests.RequestException, RequestRefused, ServerUnavailable, ServerUnsealed, OSError):
                    time.sleep(0.1)
                if self._stop.is_set():
                    return

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_a_request_without_torchserves_token_is_refused_and_one_with_it_answered(guarded, digits):
    session = connect(guarded)
    with pytest.raises(ServerUnsealed) as refusal:
        session.post(f"{guarded.url}/predictions/digits", data=digits.held_back[0].pixels, timeout=30)
    assert refusal.value.hint
    assert ask(guarded, session, digits.held_back[0]).status_code == 200


@pytest.mark.parametrize("victim", ["worker", "keeper", "java"])
def test_what_is_killed_under_requests_comes_back_and_clients_recover(guarded, digits, victim):
    session = connect(guarded)
    scan = digits.held_back[0]
    expected = until_it_answers(guarded, session, scan).content
    log = guarded.log()
    with Traffic(guarded, digits.held_back[:20]) as traffic:
        time.sleep(1)
        if victim == "worker":
            pids = [worker["pid"] for worker in guarded.workers()][:1]
        else:
            words = {"keeper": "strongroom.cli keeper", "java": "serve.ModelServer"}
            pids = [each.pid for each in processes(guarded, words[victim])]
        assert pids
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(1)
        assert until_it_answers(guarded, session, scan).content == expected, guarded.log()[len(log) :]
        before = traffic.good
        deadline = time.monotonic() + 60
        while traffic.good < before + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert traffic.good >= before + 20
    assert not traffic.wrong
    assert not psutil.pid_exists(pids[0]) or psutil.Process(pids[0]).status() == psutil.STATUS_ZOMBIE


def test_after_all_that_no_plaintext_is_left_anywhere(guarded, digits):
    secrets = Story._secrets(digits)
    began = psutil.Process(guarded.launcher.pid).create_time()
    temporary = [*Path("/tmp").glob("model*"), *Path("/tmp").glob("tmp*")]
    places = [*guarded.host_places(), *(path for path in temporary if path.stat().st_ctime >= began)]
    found, files, _ = hits(places, secrets)
    assert files > 10
    assert found == []
    planted = guarded.host / "planted"
    planted.write_bytes(b"." * 5000 + secrets["the scans"][0])
    assert len(hits(guarded.host_places(), secrets)[0]) == 1
    planted.unlink()


def test_each_process_killed_once_while_the_model_loads_comes_back(digits):
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        stage.seal(digits.archive)
        stage.start_server()
        for word in ("strongroom.cli keeper", "serve.ModelServer", "model_service_worker.py"):
            deadline = time.monotonic() + 60
            while not (found := processes(stage, word)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert found, f"{word} never started\n{stage.log_tail()}"
            found[0].kill()
        assert until_it_answers(stage, connect(stage), digits.held_back[0]).status_code == 200
        found, _, _ = hits(stage.host_places(), Story._secrets(digits))
        assert found == []
    finally:
        stage.close()


@pytest.mark.parametrize("victims", [("guardian",), ("launcher",), ("guardian", "launcher")], ids="+".join)
def test_a_launcher_that_is_killed_takes_everything_along(digits, victims):
    stages = sealed_stage(digits)
    stage = next(stages)
    children = psutil.Process(stage.launcher.pid).children(recursive=True)
    try:
        [launcher] = psutil.Process(stage.launcher.pid).children()
        memory = {folder for folder in Path("/dev/shm").glob("strongroom-*") if str(folder) in everything(children)}
        assert len(children) >= 4 and len(memory) == 1  # launcher, keeper, Java, workers
        for victim in victims:
            os.kill(stage.launcher.pid if victim == "guardian" else launcher.pid, signal.SIGKILL)
        assert psutil.wait_procs(children, timeout=30)[1] == []
        found, _, _ = hits(stage.host_places(), Story._secrets(digits))
        assert found == []
        if len(victims) == 2:  # nobody was left to clean up
            sweep_abandoned()
        deadline = time.monotonic() + 10
        while any(folder.exists() for folder in memory) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(folder.exists() for folder in memory)
    finally:
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        stages.close()


def everything(processes):
    """The command lines of processes."""
    return " ".join(" ".join(each.cmdline()) for each in processes)


def test_while_the_broker_is_down_requests_get_a_clear_503_and_recovery_is_by_itself(digits):
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        stage.seal(digits.archive)
        os.killpg(stage.processes[-1].pid, signal.SIGKILL)
        stage.processes[-1].wait()
        stage.start_server()
        stage.wait_until_ready()
        session = connect(stage)
        before = time.monotonic()
        with pytest.raises((RequestRefused, ServerUnavailable)) as refusal:
            ask(stage, session, digits.held_back[0])
        assert "503" in str(refusal.value)
        assert time.monotonic() - before < 10
        assert "BrokerUnreachable" in stage.log()
        stage.start_broker()
        assert until_it_answers(stage, session, digits.held_back[0], 60).status_code == 200
    finally:
        stage.close()
