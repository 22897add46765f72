"""An archive opened into memory files as a keeper does it: in a hardened process, and in a plain one.

    python -m tests.benchmarks.bench_hardened [--gigabytes 1.5] [--rounds 5] [--folder DIR]

Hardened is what a keeper does before it reads anything: not dumpable, no core files, no new rights, every page locked
(it needs root or an unlimited RLIMIT_MEMLOCK). Each opening runs in a process of its own, and the two take turns.
Processor time is told as well: it says more than the clock where other work runs beside.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_archive import MAKE, WARM, child

OPEN = """
import json, sys, time
from datetime import UTC, datetime
from pathlib import Path
from strongroom.archive.modelkey import load_model_key
from strongroom.archive.signature import AuthorPublic
from strongroom.archive.unseal import SealedArchive
from strongroom.keeper.room import OpenRoom
from strongroom.launch.hardening import harden, lock_memory
folder = Path(sys.argv[1])
{warm}
if {hardened}:
    harden()
    assert lock_memory(), 'pages cannot be locked here'
began, used = time.perf_counter(), time.process_time()
with SealedArchive.open(folder / 'pt.mar') as archive:
    verified = archive.verified([AuthorPublic.load(folder / 'author.pub')], now=datetime.now(UTC))
    room = OpenRoom.open(verified.unlock(load_model_key(folder / 'pt.modelkey')))
print(json.dumps({{"seconds": time.perf_counter() - began, "processor": time.process_time() - used}}))
room.close()
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files of bench_archive are, or will be")
    options = parser.parse_args()
    taken: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "st.modelkey").exists():
            folder.mkdir(exist_ok=True)
            child(MAKE, str(folder), str(options.gigabytes))
        for turn in range(options.rounds + 1):  # the first round warms the page cache and does not count
            for hardened, runs in taken.items():
                one = child(OPEN.format(warm=WARM, hardened=hardened), str(folder))
                if turn:
                    runs.append(one)
    print(f"{os.cpu_count()} cores; medians of {options.rounds}")
    print("| | s | min to max | processor time, s | min to max |\n|---|---|---|---|---|")
    for hardened, runs in taken.items():
        cells = ["hardened, pages locked" if hardened else "plain process"]
        for kind in ("seconds", "processor"):
            values = [each[kind] for each in runs]
            cells += [f"{statistics.median(values):.3f}", f"{min(values):.3f} to {max(values):.3f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
