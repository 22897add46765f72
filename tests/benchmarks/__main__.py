"""Every benchmark, one after the other: `make bench`. Each prints its own figures and ratios.

`python -m tests.benchmarks channel archive` runs those whose names hold one of the words.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    words = sys.argv[1:]
    scripts = [path for path in sorted(HERE.glob("*.py")) if path.stem != "__main__"]
    chosen = [path for path in scripts if not words or any(word in path.stem for word in words)]
    if not chosen:
        print(f"no benchmark is called {' or '.join(words)}; there are {', '.join(path.stem for path in scripts)}")
        return 2
    failed = []
    for path in chosen:
        print(f"\n## {path.stem}\n", flush=True)
        if subprocess.run([sys.executable, str(path)], cwd=HERE.parent.parent).returncode != 0:
            failed.append(path.stem)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
