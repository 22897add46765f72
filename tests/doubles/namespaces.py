"""A mount namespace in which another user can reach this interpreter: what an image does with its permissions.

Developers' interpreters often lie in a home that only its owner may enter. Inside the namespace that home shows nothing
but the folder with the interpreter, to everybody; outside nothing changes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
set -e
mount -t tmpfs -o mode=755 none "$1"
mkdir "$1/kept"
mount --bind "$2/$3" "$1/kept"
mount -t tmpfs -o mode=755 none "$2"
mkdir "$2/$3"
mount --move "$1/kept" "$2/$3"
shift 3
exec "$@"
"""


def open_to_others(folder: Path) -> list[str]:
    """The words to put in front of a command; empty where everybody can reach the interpreter anyway."""
    real = Path(sys.executable).resolve()
    closed = [each for each in real.parents if not each.stat().st_mode & 0o005]
    if not closed:
        return []
    if len(closed) > 1:
        pytest.skip(f"SKIPPED LOUDLY: {real} lies below several private folders")
    inner = real.relative_to(closed[0]).parts[0]
    folder.mkdir(exist_ok=True)
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh", str(folder)]
    words += [str(closed[0]), inner]
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"SKIPPED LOUDLY: no mount namespace here: {tried.stderr.strip()}")
    return words


def only_root(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(os.geteuid() != 0, reason=f"SKIPPED LOUDLY: {reason}")
