"""A server whose models lie in a mount of its own: real paths for the handler, and gone with the keeper."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from doubles.houses import HERE
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from doubles.namespaces import only_root
from leaks.hunt import Hunt, canary
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import Stage

pytestmark = [pytest.mark.journey, only_root("only root can mount")]

MAKE = """
import sys, torch
torch.manual_seed(3)
torch.save({"weight": torch.arange(3_000_000, dtype=torch.float32)}, sys.argv[1])
"""


class House:
    def __init__(self, stage: Stage, weights: bytes) -> None:
        self.stage, self.weights = stage, weights
        self.session = requests.Session()
        self.session.mount(stage.url, SealedAdapter(policy=stage.client_policy()))

    def ask(self) -> requests.Response:
        return self.session.post(f"{self.stage.url}/predictions/paths", data=canary("asked").encode(), timeout=60)

    def keeper(self) -> psutil.Process:
        below = psutil.Process(self.stage.launcher.pid).children(recursive=True)
        return next(each for each in below if "keeper" in each.cmdline())


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    subprocess.run([sys.executable, "-c", MAKE, str(folder / "weights.pt")], check=True)
    weights = (folder / "weights.pt").read_bytes()
    files = {"paths.py": (HERE / "paths_handler.py").read_bytes(), "weights.pt": weights}
    plain = plain_archive(folder / "paths.mar", files, name="paths", handler="paths.py")
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        stage.seal(plain)
        stage.start_server(models=("paths=paths.mar",), settings='\n[worker]\nroom = "mount"\n')
        stage.wait_until_ready(2, model="paths")
        yield House(stage, weights)
    finally:
        stage.close()


@pytest.fixture(scope="module")
def found(house):
    answer = house.ask()
    assert answer.status_code == 200, house.stage.log_tail()
    return answer.json()


def test_a_path_is_its_own_end(found):
    assert found["real"] is True


def test_a_program_that_the_handler_starts_reads_the_file(house, found):
    assert found["child"] == found["own"] == hashlib.sha256(house.weights).hexdigest()


def test_torch_maps_the_file_instead_of_copying_it(found):
    assert found["last"] == 2_999_999
    assert found["mapped"] is True


def test_the_handler_can_neither_change_its_weights_nor_find_others(found):
    assert found["changed"] == "Read-only file system"
    assert found["listed"] == "Permission denied"


def test_nothing_of_it_is_seen_outside(house):
    assert house.stage.search() == []
    assert not [path for place in house.stage.host_places() for path in place.rglob("weights.pt")]


def test_in_the_keepers_own_mount_the_pieces_that_are_searched_for_do_lie(house):
    keeper = house.keeper().pid
    lines = Path(f"/proc/{keeper}/mountinfo").read_text().splitlines()
    rooms = {line.split()[4] for line in lines if "/strongroom-" in line.split()[4]}
    hunt = Hunt(dict(house.stage.hunt.canaries), began=house.stage.hunt.began)
    hunt.files(Path(f"/proc/{keeper}/root{each}") for each in rooms)
    assert {each.what.partition(" at ")[0] for each in hunt.found} >= {
        "a piece of paths.mar: weights.pt",
        "a piece of paths.mar: paths.py",
    }


def test_a_keeper_that_is_killed_takes_the_server_along_and_both_come_back(house):
    keeper = house.keeper()
    os.kill(keeper.pid, signal.SIGKILL)
    deadline = time.monotonic() + 90
    status = None
    while time.monotonic() < deadline:
        try:
            status = house.ask().status_code
            if status == 200 and house.keeper().pid != keeper.pid:
                break
        except Exception as error:
            status = type(error).__name__
        time.sleep(0.5)
    assert status == 200, house.stage.log_tail()
