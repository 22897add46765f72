"""Install the Node client's packages into a folder, and run it.

The versions stand in package.json. `INTEROP_NODE_MODULES` may name a folder where they are installed already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def install(folder: Path) -> Callable[..., dict[str, Any]]:
    """A function that runs the client: (url, form, kem, body[, media type]) → what it printed."""
    ready = os.environ.get("INTEROP_NODE_MODULES")
    if shutil.which("node") is None or (shutil.which("npm") is None and not ready):
        pytest.skip("SKIPPED LOUDLY: node and npm are needed for the interoperability tests")
    for name in ("package.json", "client.mjs"):
        shutil.copy(HERE / name, folder)
    if ready:
        (folder / "node_modules").symlink_to(ready)
    else:
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        if installed.returncode:
            pytest.skip(f"SKIPPED LOUDLY: npm could not install the packages: {installed.stderr[-300:]}")

    def run(*arguments: str) -> dict[str, Any]:
        command = ["node", str(folder / "client.mjs"), *arguments]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer

    return run
