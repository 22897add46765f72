"""A server whose trust roots come from init-data and whose workers are another user; a handler that tries every door.

What it writes wherever libraries write is in memory, and gone at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from doubles.models import plain_archive
from doubles.namespaces import only_root, open_to_others
from leaks.hunt import Hunt, canary
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.relay import Relay
from strongroom.demo.stage import COMMAND, Stage, free_port, run
from strongroom.errors import ServerRefused
from strongroom.evidence.init_data import InitData
from strongroom.launch.variables import REFUSED_VARIABLES

pytestmark = [pytest.mark.journey, only_root("only root can start a server as another user, and hunt everywhere")]

HANDLER = Path(__file__).parents[1] / "doubles" / "nosy_handler.py"
FIXED = "canary-of-the-nosy-model-5d21f0c3"
USER = "nobody"


class House:
    """A stage whose launcher takes everything that it trusts from an init-data file."""

    def __init__(self, folder: Path) -> None:
        self.stage = stage = Stage.make()
        self.canaries = {"request": canary("request"), "model": canary("model")}
        self.hunt = Hunt(self.canaries, spared=(stage.owner,))
        stage.make_author()
        stage.start_broker()
        handler = HANDLER.read_text().replace(FIXED, self.canaries["model"]).encode()
        plain = plain_archive(stage.owner / "digits.mar", {"nosy.py": handler}, name="digits", handler="nosy.py")
        self.archive = stage.seal(plain)["digest"]
        self.pack(folder)
        stage.host.chmod(0o711)
        self.start(folder)

    def pack(self, folder: Path) -> None:
        """As the guest's owner would: the configuration, the author's key, and nothing else."""
        stage, folder = self.stage, folder / "owner"
        folder.mkdir()
        (folder / "author.pub").write_bytes((stage.owner / "author.pub").read_bytes())
        (folder / "strongroom.toml").write_text(
            f'[admission]\nauthors = ["author.pub"]\narchives = ["{self.archive}"]\n\n'
            f'[broker]\nurl = "{stage.broker_url}"\n\n[attestation]\ntee = "simulated"\n\n[worker]\nuser = "{USER}"\n'
        )
        out = stage.host / "init-data.toml"
        run("admit", "--config", "strongroom.toml", "--write-init-data", str(out), folder=folder)
        self.init_data = InitData.parse(out.read_text())

    def start(self, folder: Path) -> None:
        stage = self.stage
        stage.inference, stage.management, stage.grpc = free_port(), free_port(), free_port()
        (stage.host / "config.properties").write_text(
            f"inference_address=http://127.0.0.1:{stage.inference}\n"
            f"management_address=http://127.0.0.1:{stage.management}\n"
            f"metrics_address=http://127.0.0.1:{free_port()}\n"
            f"grpc_inference_port={stage.grpc}\ngrpc_management_port={free_port()}\ndefault_workers_per_model=1\n"
        )
        command = [*open_to_others(folder / "namespace"), *COMMAND, "launch", "--init-data", "init-data.toml", "--"]
        command += ["torchserve", "--start", "--ncs", "--model-store", "model_store", "--models", "digits=digits.mar"]
        command += ["--ts-config", "config.properties"]
        environment = {name: value for name, value in os.environ.items() if name not in REFUSED_VARIABLES}
        with (stage.host / "launch.log").open("wb") as log:
            stage.launcher = subprocess.Popen(
                command, cwd=stage.host, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        stage.processes.append(stage.launcher)
        stage.token_auth, stage.relay = True, Relay(stage.inference)
        stage.wait_until_ready(1)

    def ask(self, body: dict, *, policy: str = "") -> dict:
        """A request of a client whose policy demands this init-data, or what `policy` says in its place."""
        path = self.stage.owner / "client.toml"
        demanded = policy or f'init_data = ["{self.init_data.digest.hex()}"]'
        table = f'[simulated]\nprotects_nothing = true\nmeasurements = ["{self.stage.measurement}"]\n'
        path.write_text(f'name = "client"\n{demanded}\n{table}[admitted]\nauthors = ["{self.stage.author_id}"]\n')
        session = requests.Session()
        session.mount(self.stage.url, SealedAdapter(policy=path))
        headers = {"Authorization": f"Bearer {self.stage.token()}"}
        sent = {"canary": self.canaries["request"], "host": str(self.stage.host), **body}
        return session.post(f"{self.stage.url}/predictions/digits", json=sent, headers=headers, timeout=300).json()

    def tree(self, word: str) -> list[psutil.Process]:
        found = []
        for each in psutil.Process(self.stage.launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # one that has just ended
                found += [each] if word in " ".join(each.cmdline()) else []
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("roots"))
    yield house
    house.stage.close()


@pytest.fixture(scope="module")
def reached(house):
    return house.ask({"reach": True})["reach"]


def test_server_and_workers_are_another_user_without_groups_and_the_keeper_is_not(house, reached):
    nobody = pwd.getpwnam(USER)
    assert (reached["uid"], reached["groups"]) == (nobody.pw_uid, [])
    assert {each.uids().real for each in house.tree("serve.ModelServer")} == {nobody.pw_uid}
    assert {each.uids().real for each in house.tree("keeper --")} == {0}


@pytest.mark.parametrize(
    "door",
    ["store", "config", "another socket in place of the keeper's", "init-data", "memory of the launcher",
     "environment of the launcher", "memory of the keeper", "files of the keeper", "signal to the keeper",
     "signal to the launcher", "signal to the server", "/tmp", "the host's folder", "its logs", "a disk",
     "the kernel's settings"],
)  # fmt: skip
def test_a_handler_finds_the_door_closed(reached, door):
    assert reached[door] == "PermissionError"


def test_what_a_handler_may_put_beside_the_server_is_not_taken_for_the_operators_token_file(house):
    """Its folder is the server's own, so a handler of the same user could plant a link there: see KeyFile."""
    assert json.loads((house.stage.host / "key_file.json").read_text())["inference"]["key"]
    assert (house.stage.host / "key_file.json").stat().st_mode & 0o777 == 0o600


def test_logs_are_where_the_operator_looks(house):
    assert (house.stage.host / "logs" / "access_log.log").read_text()
    assert (house.stage.host / "logs").stat().st_uid == pwd.getpwnam(USER).pw_uid


def test_the_launcher_says_what_it_was_started_with(house):
    assert f"init-data {house.init_data.digest.hex()}: held by nothing" in house.stage.log()


def test_a_client_that_demands_other_init_data_sends_nothing(house):
    with pytest.raises(ServerRefused, match=r"simulated\.init-data"):
        house.ask({}, policy=f'init_data = ["{"11" * 32}"]')


def test_the_brokers_record_of_the_keeper_says_how_it_is_hardened(house):
    """The simulated TEE repeats it, the broker's claims carry it: self-asserted both."""
    path = house.stage.owner / "client.toml"
    house.ask({})
    adapter = SealedAdapter(policy=path)
    headers = {"Authorization": f"Bearer {house.stage.token()}"}
    verdict = adapter.verify_server(f"{house.stage.url}/predictions/digits", headers=headers, timeout=60).verdict
    claim = verdict.claims.values["hardening"]
    assert str(claim.provenance) == "self-asserted"
    assert {"not-dumpable", "no-core-files", "workers-own-user", "workers-no-disk", "workers-no-network"} <= set(
        claim.value
    )


def test_what_handlers_need_of_processes_works_and_loopback_does_not(house):
    found = house.ask({"work": True})["work"]
    assert found == {
        "DataLoader": float(4 * sum(range(32))),
        "fork pool": [2, 4],
        "manager": [1, 2],
        "asyncio": "over a unix socket",
        "threads": 400.0**3,
        "loopback": "PermissionError",
        "names": "gaierror",
        "own child": "done",
    }


def test_what_a_handler_writes_in_every_place_it_was_given_lies_in_memory_and_nowhere_else(house):
    found = house.ask({"write": True, "profile": True})
    wrote = found["write"]
    assert {"HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME", "MPLCONFIGDIR", "temp"} <= set(wrote)
    assert found["profile"]["trace holds the canary"]
    places = [*wrote.values(), found["profile"]["place"]]
    assert [place for place in places if not place.startswith("/dev/shm/strongroom-")] == []
    assert not memory_only(house)
    assert [place for place in places if not any(each.where.startswith(place) for each in house.hunt.found)] == []


@pytest.mark.long
def test_a_handler_that_compiles_leaves_sources_and_kernels_in_memory(house):
    found = house.ask({"compile": True})["compile"]
    assert found["value"] == len(house.canaries["request"])
    assert {".cpp", ".so"} <= set(found["cache"])
    assert not memory_only(house)


def searched(house) -> list:
    """Canaries in files wherever anything of a server or a library is written; test_hardening_leaks.py looks at all."""
    places = ["/tmp", "/var", "/run", "/etc", "/root", "/home", "/opt", "/usr/local", "/dev/shm", sys.prefix]
    house.hunt.found.clear()
    house.hunt.files([Path(each) for each in places])
    return house.hunt.found


def memory_only(house) -> list:
    """Canaries in files that are not below the launcher's folder in memory (nor shared memory, which is memory)."""
    return [each for each in searched(house) if not each.where.startswith("/dev/shm/")]


def test_a_keeper_that_dies_comes_back_with_the_same_roots(house):
    os.kill(house.tree("keeper --")[0].pid, signal.SIGKILL)
    assert until_it_answers(house)


def until_it_answers(house) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if (found := house.ask({"reach": True})["reach"])["uid"]:
                return found
        except Exception:
            time.sleep(0.5)
    raise AssertionError(house.stage.log_tail())


def test_what_a_handler_plants_is_run_neither_by_the_next_worker_nor_by_the_next_server(house):
    [worker] = house.tree("model_service_worker")
    with contextlib.suppress(Exception):  # the worker ends without an answer
        house.ask({"plant": True})
    psutil.wait_procs([worker], timeout=20)
    until_it_answers(house)
    [java] = house.tree("serve.ModelServer")
    planted = [Path(each) for each in Path("/dev/shm").glob("strongroom-*/*/org/pytorch/serve/ModelServer.class")]
    assert planted, "the handler could write nowhere that Java might have looked"
    java.kill()
    psutil.wait_procs([java], timeout=20)
    until_it_answers(house)
    assert not list(Path("/dev/shm").glob("nosy_ran_*"))
    assert not [each for each in planted if each.exists()]


def test_at_the_end_nothing_is_left_not_even_shared_memory_that_nobody_unlinked(house):
    house.ask({"write": True})
    assert list(Path("/dev/shm").glob("nosy_*"))
    house.stage.launcher.send_signal(signal.SIGTERM)
    house.stage.launcher.wait(60)
    assert searched(house) == []
    assert not list(Path("/dev/shm").glob("nosy_*"))
