"""From the server's start to the model being ready: sealed under `strongroom launch`, plain in the same TorchServe.

    python -m tests.benchmarks.bench_ready [--gigabytes 1.5] [--rounds 5] [--folder DIR] [--deflate]

The handler loads a state dict and touches every page of it. A sealed server's time has everything in it: admission,
the keeper's start, attestation (simulated), the broker's release, and the decryption. The ways take turns; medians
are compared in one run with a warm page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doubles.serving import start_torchserve
from strongroom.demo.stage import Stage, run

HANDLER = b"""
import os
from pathlib import Path
import torch


class Loads:
    def initialize(self, context):
        path = Path(context.system_properties["model_dir"], context.manifest["model"]["serializedFile"])
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            self.state = load_file(path)
        else:
            self.state = torch.load(path)
        self.touched = sum(int(t.view(torch.uint8).flatten()[::4096].sum()) for t in self.state.values())
        self.initialized = True

    def handle(self, data, context):
        return [str(self.touched)] * len(data)
"""

WEIGHTS = """
import sys, torch, safetensors.torch
folder, gigabytes = sys.argv[1], float(sys.argv[2])
torch.manual_seed(1)
each = 32 << 20
state = {f"layer.{n}": torch.randn(each // 4) for n in range(int(gigabytes * (1 << 30)) // each)}
torch.save(state, f"{folder}/model.pt")
safetensors.torch.save_file(state, f"{folder}/model.safetensors")
"""

CONFIG = b"minWorkers: 1\nmaxWorkers: 1\nstartupTimeout: 300\nresponseTimeout: 300\n"
Way = Callable[[], contextlib.AbstractContextManager[str]]


def warm(size: int) -> None:
    """Use as much memory as a run will, and give it back: a hypervisor may have taken what was idle."""
    for huge in (True, False):
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            if huge:
                memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(23)  # MADV_POPULATE_WRITE


def make(folder: Path, gigabytes: float, *, deflate: bool) -> dict[str, Path]:
    """The plain archives and folders by name: what torch-model-archiver makes, in its three forms."""
    subprocess.run([sys.executable, "-c", WEIGHTS, str(folder), str(gigabytes)], check=True)
    made = {}
    for suffix in ("pt", "safetensors"):
        model = {"modelName": "m", "modelVersion": "1.0", "handler": "handler.py"}
        model |= {"serializedFile": f"model.{suffix}", "configFile": "config.yaml"}
        manifest = json.dumps({"runtime": "python", "model": model, "archiverVersion": "0.12.0"}).encode()
        small = {"handler.py": HANDLER, "config.yaml": CONFIG, "MAR-INF/MANIFEST.json": manifest}
        forms = {"zip-store": zipfile.ZIP_STORED} | ({"default": zipfile.ZIP_DEFLATED} if deflate else {})
        for form, compression in forms.items():
            name = f"plain .{suffix}, {form}"
            made[name] = folder / f"{suffix}-{form}" / "m.mar"
            made[name].parent.mkdir()
            with zipfile.ZipFile(made[name], "w", compression, compresslevel=6) as mar:
                for path, octets in small.items():
                    mar.writestr(path, octets)
                mar.write(folder / f"model.{suffix}", f"model.{suffix}")
        unpacked = folder / f"{suffix}-no-archive" / "m"
        for path, octets in small.items():
            (unpacked / path).parent.mkdir(parents=True, exist_ok=True)
            (unpacked / path).write_bytes(octets)
        os.link(folder / f"model.{suffix}", unpacked / f"model.{suffix}")
        made[f"plain .{suffix}, no-archive"] = unpacked
    return made


def until_ready(management: str, began: float) -> float:
    """Seconds from `began` to the worker that says READY."""
    while time.perf_counter() - began < 300:
        with contextlib.suppress(requests.RequestException, ValueError, KeyError, IndexError):
            answer = requests.get(f"{management}/models/m", timeout=5).json()
            if answer[0]["workers"][0]["status"] == "READY":
                return time.perf_counter() - began
        time.sleep(0.02)
    raise TimeoutError(management)


def plain_way(folder: Path, path: Path) -> Way:
    @contextlib.contextmanager
    def serving() -> Iterator[str]:
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            start_torchserve(Path(place, "server"), path.parent, [f"m={path.name}"]) as server,
        ):
            yield server.management

    return serving


def sealed_way(stage: Stage, name: str) -> Way:
    @contextlib.contextmanager
    def serving() -> Iterator[str]:
        stage.start_server(models=(f"m={name}",))
        try:
            yield f"http://127.0.0.1:{stage.management}"
        finally:
            stage.processes.remove(stage.launcher)
            stage.launcher.send_signal(signal.SIGTERM)
            stage.launcher.wait(60)
            if stage.relay is not None:
                stage.relay.close()
                stage.relay = None

    return serving


def sealed(stage: Stage, plain: dict[str, Path]) -> dict[str, Way]:
    """Both sealed forms of both kinds of weights."""
    store = stage.host / "model_store"
    store.mkdir()
    ways = {}
    for suffix in ("pt", "safetensors"):
        for form in ("file", "directory"):
            name = f"{suffix}-{form}" + (".mar" if form == "file" else "")
            flags = ["--author", "author.key", "--broker", stage.broker_url, "--admin-key", "broker/admin.key"]
            flags += [*(["--directory"] if form == "directory" else []), "-o", str(store / name)]
            run("seal", str(plain[f"plain .{suffix}, no-archive"]), *flags, folder=stage.owner)
            ways[f"sealed .{suffix}, {form}"] = sealed_way(stage, name)
    return ways


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the large files go; default: the temporary folder")
    parser.add_argument("--deflate", action="store_true", help="also the archiver's default form, which takes long")
    options = parser.parse_args()
    if options.folder is not None:
        tempfile.tempdir = str(options.folder)
    stage = Stage.make()
    folder = Path(tempfile.mkdtemp())
    taken: dict[str, list[float]] = {}
    try:
        stage.make_author()
        stage.start_broker()
        plain = make(folder, options.gigabytes, deflate=options.deflate)
        ways = {name: plain_way(folder, path) for name, path in plain.items()} | sealed(stage, plain)
        for turn in range(options.rounds + 1):  # the first turn warms the page cache and does not count
            for name, way in ways.items():
                warm(int(3 * options.gigabytes * (1 << 30)))
                began = time.perf_counter()
                with way() as management:
                    seconds = until_ready(management, began)
                if turn:
                    taken.setdefault(name, []).append(seconds)
    finally:
        stage.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{os.cpu_count()} cores; seconds from the server's start to READY, medians of {options.rounds}")
    print("| | s | min to max |\n|---|---|---|")
    for name, seconds_ in taken.items():
        print(f"| {name} | {statistics.median(seconds_):.2f} | {min(seconds_):.2f} to {max(seconds_):.2f} |")


if __name__ == "__main__":
    main()
