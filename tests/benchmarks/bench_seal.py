"""Sealing against copying, and what sealing and opening add to a small model.

    python tests/benchmarks/bench_seal.py [--gigabytes 1.5] [--rounds 5] [--folder DIR]

The ways take turns. A copy reads the page cache and ends with fsync, as a sealing does; files lie in DIR, since
the disk decides.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import strongroom
import torch
from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey

MANIFEST = {"runtime": "python", "model": {"modelName": "bench", "modelVersion": "1.0", "handler": "base_handler"}}


def plain(path: Path, weights: Path, compression: int) -> Path:
    """An ordinary archive around `weights`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(MANIFEST))
        archive.write(weights, "model.pt")
    return path


def copied(source: Path, output: Path) -> None:
    """A copy in user space, as programs without a trick make one, on the disk when this returns."""
    with source.open("rb") as reading, output.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 4 << 20)
        writing.flush()
        os.fsync(writing.fileno())


def taken(ways: dict[str, Callable[[], object]], rounds: int, output: Path) -> dict[str, list[float]]:
    """Seconds of each way, in turns; the first round does not count. What stands at `output` is removed between."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            output.unlink(missing_ok=True)
            os.sync()
            began = time.perf_counter()
            way()
            ended = time.perf_counter()
            if turn:
                seconds[name].append(ended - began)
    return seconds


def large(folder: Path, gigabytes: float, rounds: int) -> None:
    weights = folder / "model.pt"
    each = 64 << 20
    torch.save({str(n): torch.randn(each // 4) for n in range(int(gigabytes * (1 << 30)) // each)}, weights)
    stored = plain(folder / "stored.mar", weights, zipfile.ZIP_STORED)
    deflated = plain(folder / "deflated.mar", weights, zipfile.ZIP_DEFLATED)
    tree = folder / "tree"
    (tree / "MAR-INF").mkdir(parents=True)
    (tree / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(MANIFEST))
    weights.rename(tree / "model.pt")
    author, output = AuthorKey.generate(), folder / "output"
    ways: dict[str, Callable[[], object]] = {
        "copy and fsync": lambda: copied(stored, output),
        "seal a folder": lambda: seal_archive(tree, output, author=author),
        "seal a .mar, stored": lambda: seal_archive(stored, output, author=author),
        "seal a .mar, deflated": lambda: seal_archive(deflated, output, author=author),
        "inflate that one alone": lambda: inflated(deflated),
    }
    seconds = taken(ways, rounds, output)
    base = statistics.median(seconds["copy and fsync"])
    print(f"{stored.stat().st_size / 1e9:.2f} GB, medians of {rounds}")
    print("| | s | min to max | speed against the copy |\n|---|---|---|---|")
    for name, each_taken in seconds.items():
        median = statistics.median(each_taken)
        print(f"| {name} | {median:.2f} | {min(each_taken):.2f} to {max(each_taken):.2f} | {base / median:.2f} |")


def inflated(path: Path) -> None:
    with zipfile.ZipFile(path) as archive, archive.open("model.pt") as stream:
        while stream.read(4 << 20):
            pass


def small(folder: Path, rounds: int) -> None:
    weights = folder / "small.pt"
    torch.save({"weight": torch.randn(25_000)}, weights)
    mar = plain(folder / "small.mar", weights, zipfile.ZIP_DEFLATED)
    author, output, sealed = AuthorKey.generate(), folder / "output", folder / "small.sealed.mar"
    key = seal_archive(mar, sealed, author=author).key
    ways: dict[str, Callable[[], object]] = {
        "write": lambda: copied(mar, output),
        "seal": lambda: seal_archive(mar, output, author=author),
        "load": lambda: loaded_plain(mar),
        "open": lambda: loaded_sealed(sealed, key, author),
    }
    median = {name: statistics.median(each) * 1e3 for name, each in taken(ways, rounds, output).items()}
    print(f"\n{mar.stat().st_size / 1e3:.0f} KB, medians of {rounds}, milliseconds")
    print("| | plain | sealed | added |\n|---|---|---|---|")
    for what, before, after in (("written to the disk", "write", "seal"), ("loaded by torch.load", "load", "open")):
        print(f"| {what} | {median[before]:.2f} | {median[after]:.2f} | {median[after] - median[before]:.2f} |")


def loaded_plain(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        torch.load(io.BytesIO(archive.read("model.pt")))


def loaded_sealed(path: Path, key: strongroom.ModelKey, author: AuthorKey) -> None:
    with strongroom.open_archive(path, key, authors=[author.public]) as archive:
        torch.load(io.BytesIO(archive["model.pt"].read()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="an existing folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        small(Path(temporary), 40)
        large(Path(temporary), options.gigabytes, options.rounds)


if __name__ == "__main__":
    main()
