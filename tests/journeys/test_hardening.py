"""A handler that shouts, and a server in which nobody hears it; a process that can reach nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.search import found_in, hits
from strongroom.demo.stage import Stage
from strongroom.errors import RequestRefused

pytestmark = pytest.mark.journey

HANDLER = Path(__file__).parents[1] / "doubles" / "loud_handler.py"
REQUEST_CANARY = "canary-of-the-request-7be20195a46d"
MODEL_CANARY = "canary-of-the-model-3f1c8a52d09b"
SECRETS = {"the request": [REQUEST_CANARY.encode()], "the model": [MODEL_CANARY.encode()]}


def loud_stage(settings: str = "") -> Stage:
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        plain = plain_archive(
            stage.owner / "digits.mar",
            {"loud_handler.py": HANDLER.read_bytes()},
            name="digits",
            handler="loud_handler.py",
        )
        stage.seal(plain)
        plant(stage.host)
        stage.start_server(settings=settings)
        stage.wait_until_ready()
    except BaseException:
        stage.close()
        raise
    return stage


def plant(folder: Path) -> None:
    """What a hostile host leaves in the folder in which the server is started."""
    for name in ("sitecustomize", "cbor2", "ts", "torch", "json", "strongroom"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'TAKEN')!r}, 'a').write('{name}')\n")
    (folder / "org/pytorch/serve").mkdir(parents=True)
    (folder / "org/pytorch/serve/ModelServer.class").write_bytes(b"no class at all")
    (folder / "log4j2.xml").write_text("<Configuration><Appenders/></Configuration>")
    (folder / "logs/config").mkdir(parents=True)
    (folder / "logs/config/20990101-startup.cfg").write_text("model_snapshot={}")


@pytest.fixture(scope="module")
def loud():
    stage = loud_stage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def ask(loud):
    session = requests.Session()
    session.mount(loud.url, SealedAdapter(policy=loud.client_policy()))
    return lambda body: session.post(f"{loud.url}/predictions/digits", json=body, timeout=60)


def test_what_a_handler_says_in_any_way_is_in_no_log_and_no_file(loud, ask):
    assert ask({"say": REQUEST_CANARY}).json() == {"said": True}
    assert ask({"raise": REQUEST_CANARY}).status_code == 500
    with pytest.raises(RequestRefused):  # the worker is gone, as it would be in a plain server
        ask({"say": REQUEST_CANARY, "exit": REQUEST_CANARY})
    loud.wait_until_ready()
    found, files, _ = hits(loud.host_places(), SECRETS)
    in_memory_by_design = [hit for hit in found if hit.place.endswith("/left-behind")]
    assert [hit for hit in found if hit not in in_memory_by_design] == []
    assert files > 10
    assert found_in(loud.relay.seen, SECRETS, "the wire") == []
    assert all(hit.place.startswith("/dev/shm/strongroom-") for hit in in_memory_by_design)


def test_in_its_place_stand_class_names_and_counts(loud, ask):
    ask({"raise": REQUEST_CANARY})
    deadline = time.monotonic() + 10
    while "raised Spill" not in loud.log() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "the model's own handler raised Spill" in loud.log()
    assert "log records (ERROR)" in loud.log()
    assert "bytes on stdout" in loud.log()


def test_metrics_that_the_servers_file_names_still_arrive(loud, ask):
    ask({"say": REQUEST_CANARY})
    deadline = time.monotonic() + 10
    while "HandlerTime.ms:1.25" not in loud.log() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "HandlerTime.ms:1.25" in loud.log()


def test_a_worker_can_reach_neither_the_network_nor_the_keeper_nor_more_rights(loud, ask):
    found = ask({"look": True}).json()["looked"]
    assert found["seccomp"] == "2"
    assert found["no_new_privs"] == "1"
    assert found["capabilities"] == 0
    assert found["dumpable"] == 0
    assert found["core"] == ["0", "0"]
    assert found["tcp"] == found["udp"] == "PermissionError"
    assert found["unix"] == "done"
    assert found["child tcp"] != 0
    assert found["keeper memory"] == found["keeper files"] == found["keeper environment"] == "PermissionError"
    assert found["ptrace"] == -1
    assert found["temp"].startswith("/dev/shm/strongroom-")
    assert not [name for name in found["environment"] if name.startswith(("AWS", "LD_", "JAVA_TOOL"))]


def test_nothing_that_lies_in_the_folder_of_the_host_was_taken_for_code_or_settings(loud, ask):
    assert ask({"say": "x"}).status_code == 200
    assert not (loud.host / "TAKEN").exists()
    assert (loud.host / "logs" / "access_log.log").read_text()


def test_passing_output_is_for_development_and_says_so(tmp_path):
    stage = loud_stage('\n[worker]\noutput = "pass"\n')
    try:
        deadline = time.monotonic() + 20
        while f"at load {MODEL_CANARY}" not in stage.log() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert f"at load {MODEL_CANARY}" in stage.log()
        assert "OUTPUT IS NOT GUARDED" in stage.log()
    finally:
        stage.close()
