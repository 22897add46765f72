"""Trains the example model and packages it as an ordinary archive, which nobody has sealed yet.

    python model_store/digits.py FOLDER

leaves FOLDER/digits.mar. It takes some seconds and needs the extra `strongroom[demo]`.
"""

import sys
from pathlib import Path

from strongroom.demo.digits import train

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    trained = train(folder)
    print(f"{trained.archive}: right on {trained.accuracy:.1%} of the scans that it never saw")
