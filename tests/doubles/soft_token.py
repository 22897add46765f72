"""A real PKCS #11 token in software: Debian's SoftHSM, one token for the whole test process.

Its library reads its configuration, and lists its tokens, once a process; so there is one, made before it is loaded.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
LABEL = "strongroom"
PIN = "1234"


@cache
def soft_token() -> dict[str, str]:
    """``{"module": …, "token": …}`` of a token whose user PIN is `PIN`; skips, loudly, where there can be none."""
    pytest.importorskip("pkcs11", reason="SKIPPED LOUDLY: python-pkcs11 is not installed")
    if not Path(MODULE).exists() or shutil.which("softhsm2-util") is None:
        pytest.skip("SKIPPED LOUDLY: SoftHSM is not installed (Debian: softhsm2)")
    folder = Path(tempfile.mkdtemp(prefix="softhsm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--so-pin", "5678", "--pin", PIN],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return {"module": MODULE, "token": LABEL}
