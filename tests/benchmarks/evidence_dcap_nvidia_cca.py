"""Time per verdict for SGX, TDX, NVIDIA and CCA evidence, certificate chains and collateral included.

    python tests/benchmarks/evidence_dcap_nvidia_cca.py [EVIDENCE-FOLDER]

One line a case: median and best of 200 verdicts, and the median of first ones (nothing decoded before), in
milliseconds of processor time on one core. A verdict is everything from the JSON body and the collateral's
bytes to the last check. Targets: 5 ms for CPU evidence, 50 ms for a GPU's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evidence.dcap_device_mutants import accepted_cases
from strongroom.evidence.dcap_endorsement import forget_decoded

TARGETS = {"tdx": 5.0, "sgx": 5.0, "cca": 5.0, "nvidia": 50.0}


def measure(case, rounds: int, *, first: bool = False) -> list[float]:
    times = []
    for _ in range(rounds):
        if first:
            forget_decoded()
        begin = process_time()
        accepted = case.accepts()
        times.append((process_time() - begin) * 1e3)
        assert accepted
    return times


def main() -> int:
    default = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "evidence"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    slow = 0
    for case in accepted_cases(folder):
        times, first = measure(case, 200), measure(case, 40, first=True)
        slow += median(times) > TARGETS[case.tee]
        figures = f"{median(times):6.2f} median {min(times):6.2f} best {median(first):6.2f} first"
        print(f"{figures}  (target {TARGETS[case.tee]:2.0f})  {case.name}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
