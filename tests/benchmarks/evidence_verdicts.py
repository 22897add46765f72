"""Time per verdict for every TEE, certificate chains, revocation lists and collateral included.

    python tests/benchmarks/evidence_verdicts.py [EVIDENCE-FOLDER]

One line an accepted verdict of the manifest: the median and the best of 200, and the median of 50 first ones,
before which every memory of certificates and collateral was emptied. Milliseconds of processor time on one
core, from the files' octets to the last check. Targets: 5 ms for CPU evidence, 50 ms for a GPU's. Exit status 1
where a median is above its target.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.run_manifest import Verdict, judge_verdict, read_manifest
from strongroom.evidence import certificates, crl, dcap_endorsement

TARGETS = {"nvidia": 50.0}
TARGET = 5.0


def times(verdict: Verdict, rounds: int, *, first: bool = False) -> list[float]:
    """Milliseconds of each round."""
    spent = []
    for _ in range(rounds):
        if first:
            certificates.forget()
            crl.forget()
            dcap_endorsement.forget_decoded()
        begin = process_time()
        checks = judge_verdict(verdict)
        spent.append((process_time() - begin) * 1e3)
        assert not checks.failed, verdict.name
    return spent


def main() -> int:
    default = Path(__file__).resolve().parents[3] / "shared" / "evidence"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    slow = 0
    for verdict in read_manifest(folder / "MANIFEST.json"):
        if not verdict.accepted:
            continue
        again, first = times(verdict, 200), times(verdict, 50, first=True)
        target = TARGETS.get(verdict.tee, TARGET)
        slow += median(again) > target
        print(
            f"{median(again):6.2f} median {min(again):6.2f} best {median(first):6.2f} first"
            f"  (target {target:2.0f})  {verdict.name}",
            flush=True,
        )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
