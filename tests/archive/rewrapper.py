"""Rewraps one archive again and again until it is killed: ``python rewrapper.py ARCHIVE IDENTITY``."""

from __future__ import annotations

import sys
from pathlib import Path

from strongroom.archive.recipients import KeyIdentity
from strongroom.archive.rewrap import rewrap_archive

keep = KeyIdentity.load(sys.argv[2])
mine = keep.recipient
print("ready", flush=True)
while True:
    guest = KeyIdentity.generate("xwing").recipient
    rewrap_archive(Path(sys.argv[1]), identities=[keep], add=[mine, guest], drop=lambda slot, digest: True)
