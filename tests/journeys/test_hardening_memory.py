"""Four workers, one copy of a large model: what a server with 1.5 GB of weights takes, less what it takes without.

STRONGROOM_WEIGHTS_MB sets the size of the weights in MiB (1536 by default), STRONGROOM_WORKERS their readers:

    python -m pytest -s -m long tests/journeys/test_hardening_memory.py
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
import requests
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import Stage

pytestmark = [pytest.mark.journey, pytest.mark.long]

MEGABYTES = int(os.environ.get("STRONGROOM_WEIGHTS_MB", "1536"))
WORKERS = int(os.environ.get("STRONGROOM_WORKERS", "4"))
WORDS = {"keeper": "keeper --config", "java": "serve.ModelServer", "worker": "model_service_worker"}

MAKE = """
import os, sys, torch
from safetensors.torch import save_file
path, mebibytes = sys.argv[1], int(sys.argv[2])
state = {}
for number in range(12):
    octets = bytearray(os.urandom(mebibytes * (1 << 20) // 12 // 2 * 2))
    state[f"layer{number}.weight"] = torch.frombuffer(octets, dtype=torch.float16)
save_file(state, path) if path.endswith(".safetensors") else torch.save(state, path)
"""
HANDLER = b"""
import os, torch
from safetensors.torch import load_file

held = []


def handle(data, context):
    folder = context.system_properties["model_dir"]
    if data is None:
        [name] = [each for each in os.listdir(folder) if each.startswith("weights")]
        path = os.path.join(folder, name)
        held.append(load_file(path) if name.endswith(".safetensors") else torch.load(path))
        return None
    pages = sum(int(each.view(torch.uint8)[::4096].to(torch.int64).sum()) for each in held[0].values())
    return [{"pid": os.getpid(), "touched": pages}] * len(data)
"""


class Figures:
    """Proportional set sizes in MiB, by kind of process; of shared memory each counts its share (proc(5), smaps)."""

    def __init__(self, stage: Stage) -> None:
        self.each: dict[str, list[dict[str, int]]] = {}
        for process in psutil.Process(stage.launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                line = " ".join(process.cmdline())
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes = {name: int(size.split()[0]) for name, _, size in (each.partition(":") for each in rollup)}
                for kind, word in WORDS.items():
                    if word in line:
                        names = ("Pss", "Pss_Anon", "Pss_Shmem")
                        self.each.setdefault(kind, []).append({name: sizes[name] >> 10 for name in names})

    @property
    def total(self) -> int:
        """Of the keeper and all workers."""
        return sum(each["Pss"] for kind in ("keeper", "worker") for each in self.each[kind])


def serve(kind: str, form: str, mebibytes: int) -> tuple[Figures, dict[str, float]]:
    """Seal, launch and ask until every worker has touched every page of its weights."""
    stage, took = HuntedStage.make(), {}
    try:
        stage.make_author()
        stage.start_broker()
        weights = stage.owner / f"weights.{kind}"
        subprocess.run([sys.executable, "-c", MAKE, str(weights), str(mebibytes)], check=True)
        files = {"large.py": HANDLER, weights.name: weights.read_bytes()}
        plain = plain_archive(
            stage.owner / "digits.mar", files, name="digits", handler="large.py", compression=zipfile.ZIP_STORED
        )
        del files
        weights.unlink()
        output = stage.host / "model_store" / ("digits.mar" if form == "archive" else "digits")
        began = time.monotonic()
        stage.seal(plain, *(["--directory"] if form == "folder" else []), output=output)
        took["sealing s"] = round(time.monotonic() - began, 1)
        plain.unlink()
        began = time.monotonic()
        stage.start_server(models=(f"digits={output.name}",), properties=f"default_workers_per_model={WORKERS}\n")
        stage.wait_until_ready(WORKERS)
        took["launch to ready s"] = round(time.monotonic() - began, 1)
        session = requests.Session()
        session.mount(stage.url, SealedAdapter(policy=stage.client_policy()))
        answers: dict[int, int] = {}
        deadline = time.monotonic() + 300
        url = f"{stage.url}/predictions/digits"
        with concurrent.futures.ThreadPoolExecutor(2 * WORKERS) as pool:
            while len(answers) < WORKERS and time.monotonic() < deadline:
                for each in pool.map(lambda _: session.post(url, json={}, timeout=120).json(), range(2 * WORKERS)):
                    answers[each["pid"]] = each["touched"]
        assert len(answers) == WORKERS
        assert len(set(answers.values())) == 1, "the workers do not see the same weights"
        return Figures(stage), took
    finally:
        stage.close()


@pytest.mark.parametrize(("kind", "form"), [("safetensors", "archive"), ("pt", "folder")])
def test_four_workers_hold_at_most_one_and_a_fifth_copies_of_a_large_model(kind, form):
    bare, _ = serve(kind, form, 1)
    large, took = serve(kind, form, MEGABYTES)
    told = {
        "kind": kind,
        "form": form,
        "weights MiB": MEGABYTES,
        "workers": WORKERS,
        **took,
        "keeper and workers with weights, PSS MiB": large.total,
        "without": bare.total,
        "difference": large.total - bare.total,
        "times one copy": round((large.total - bare.total) / MEGABYTES, 3),
        "each with weights": large.each,
        "each without": bare.each,
    }
    print(json.dumps(told))
    assert large.total <= 1.2 * MEGABYTES + bare.total
    private = max(each["Pss_Anon"] for each in large.each["worker"])
    assert private <= max(each["Pss_Anon"] for each in bare.each["worker"]) + 0.05 * MEGABYTES
