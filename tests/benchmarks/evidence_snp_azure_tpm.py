"""Time per verdict for SEV-SNP, Azure and TPM evidence, certificate chains included.

    python tests/benchmarks/evidence_snp_azure_tpm.py [EVIDENCE-FOLDER]

One line a case that is accepted: median and best of 200 verdicts in milliseconds of processor time on one core.
A verdict is everything from the JSON body and the certificates' bytes to the last check; nothing is kept
between two. Target: 5 ms. Exit status 1 where a median is above it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evidence.snp_tpm_cases import load, try_case

TEES = {"sev-snp", "az-snp-vtpm", "az-tdx-vtpm", "tpm"}
TARGET = 5.0


def main() -> int:
    default = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "evidence"
    slow = 0
    for case in load(Path(sys.argv[1]) if len(sys.argv) > 1 else default, TEES):
        if not case.accept:
            continue
        times = []
        for _ in range(200):
            begin = process_time()
            checks, _claims = try_case(case)
            times.append((process_time() - begin) * 1e3)
            assert not checks.failed, case.name
        slow += median(times) > TARGET
        print(f"{median(times):6.2f} median {min(times):6.2f} best  (target {TARGET:.0f})  {case.name}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
