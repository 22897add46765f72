"""A real NVSwitch's evidence, and the RIM that NVIDIA signed for it: an endorsement that needs no network."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from strongroom.encoding import b64


def real_switch(shared_evidence: Path, folder: Path) -> tuple[Path, Path]:
    """Writes the evidence as a file, and a folder with its RIM (valid into 2027)."""
    if datetime.now(UTC) > datetime(2027, 11, 1, tzinfo=UTC):
        pytest.skip("SKIPPED LOUDLY: the captured RIM has expired by this machine's clock")
    found = shared_evidence / "nvidia" / "ls10-nvswitch"
    device = {"arch": "LS10", "uuid": "", "evidence": b64((found / "evidence.bin").read_bytes()),
              "certificate": b64((found / "cert_chain.pem").read_bytes())}  # fmt: skip
    evidence = folder / "switch.json"
    evidence.write_text(json.dumps({"tee": "nvidia", "evidence": {"device_evidence_list": [device]}}))
    rims = folder / "files" / "rim"
    rims.mkdir(parents=True)
    (rims / "NV_SWITCH_BIOS_5612_0002_890_9610550001.xml").write_bytes((found / "rim.xml").read_bytes())
    return evidence, folder / "files"
