"""Time per verdict for Nitro documents and EAR tokens, certificate chains included.

    python tests/benchmarks/evidence_nitro_ear.py [EVIDENCE-FOLDER]

One line a case that is accepted: median and best of 200 verdicts in milliseconds of processor time on one core,
from files to the last check. Target: 5 ms. Exit status 1 where a median is above it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evidence.run_manifest import judge_verdict, read_manifest

TEES = {"aws-nitro", "ear"}
TARGET = 5.0


def main() -> int:
    default = Path(__file__).resolve().parents[3] / "shared" / "evidence"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    slow = 0
    for verdict in read_manifest(folder / "MANIFEST.json"):
        if not verdict.accepted or verdict.tee not in TEES:
            continue
        times = []
        for _ in range(200):
            begin = process_time()
            checks = judge_verdict(verdict)
            times.append((process_time() - begin) * 1e3)
            assert not checks.failed, verdict.name
        slow += median(times) > TARGET
        print(f"{median(times):6.2f} median {min(times):6.2f} best  (target {TARGET:.0f})  {verdict.name}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
