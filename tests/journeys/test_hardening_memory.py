"""Four workers, one copy of a large model; admission that does not read it. Both archive forms.

STRONGROOM_WEIGHTS_MB sets the size of the weights (1536 by default):

    python -m pytest -s -m long tests/journeys/test_hardening_memory.py
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import time

import psutil
import pytest
import requests
from doubles.models import plain_archive
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import Stage, run

pytestmark = [pytest.mark.journey, pytest.mark.long]

MEGABYTES = int(os.environ.get("STRONGROOM_WEIGHTS_MB", "1536"))
WORKERS = 4
HANDLER = b"""
import mmap, os

held = []


def handle(data, context):
    if data is None:
        file = open(os.path.join(context.system_properties["model_dir"], "weights.bin"), "rb")
        held.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        return None
    touched = sum(held[0][at] for at in range(0, len(held[0]), 4096))  # every page of it
    return [{"pid": os.getpid(), "touched": touched}] * len(data)
"""


def pss(stage: Stage) -> dict[str, list[float]]:
    """MiB by kind of process: proportional set sizes, which add up to what is really used."""
    found: dict[str, list[float]] = {}
    words = {"keeper": "keeper --config", "java": "serve.ModelServer", "worker": "model_service_worker"}
    for each in psutil.Process(stage.launcher.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(each.cmdline())
            for name, word in words.items():
                if word in line:
                    found.setdefault(name, []).append(each.memory_full_info().pss / 2**20)
    return found


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_four_workers_hold_one_copy_of_a_large_model(form):
    stage = Stage.make()
    try:
        stage.make_author()
        stage.start_broker()
        files = {"large.py": HANDLER, "weights.bin": os.urandom(MEGABYTES << 20)}
        plain = plain_archive(stage.owner / "digits.mar", files, name="digits", handler="large.py")
        del files
        (stage.host / "model_store").mkdir()
        output = stage.host / "model_store" / ("digits.mar" if form == "archive" else "digits")
        flags = ["--author", "author.key", "--broker", stage.broker_url, "--admin-key", "broker/admin.key"]
        flags += ["--directory"] if form == "folder" else []
        began = time.monotonic()
        run("seal", str(plain), *flags, "-o", str(output), folder=stage.owner)
        sealing = time.monotonic() - began
        plain.unlink()
        began = time.monotonic()
        stage.start_server(models=(f"digits={output.name}",), properties=f"default_workers_per_model={WORKERS}\n")
        stage.wait_until_ready(WORKERS)
        ready = time.monotonic() - began
        session = requests.Session()
        session.mount(stage.url, SealedAdapter(policy=stage.client_policy()))
        seen: set[int] = set()
        deadline = time.monotonic() + 240
        url = f"{stage.url}/predictions/digits"
        with concurrent.futures.ThreadPoolExecutor(2 * WORKERS) as pool:
            while len(seen) < WORKERS and time.monotonic() < deadline:
                answers = pool.map(lambda _: session.post(url, json={}, timeout=120).json(), range(2 * WORKERS))
                seen |= {each["pid"] for each in answers}
        assert len(seen) == WORKERS
        found = pss(stage)
        total = sum(found["keeper"]) + sum(found["worker"])
        told = {
            "form": form,
            "weights MiB": MEGABYTES,
            "workers": WORKERS,
            "sealing s": round(sealing, 1),
            "launch to ready s": round(ready, 1),
            "PSS MiB of keeper and workers together": round(total),
            "each": {name: [round(each) for each in values] for name, values in found.items()},
        }
        print(json.dumps(told))
        overhead = 60 + WORKERS * 260  # Python and TorchServe in the keeper and each worker
        assert total <= 1.2 * MEGABYTES + overhead
    finally:
        stage.close()
