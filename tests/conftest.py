"""What every test shares: the mode in which a skip is a failure, and where real evidence lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI nothing may be skipped: what cannot run there is a hole that nobody sees."""
    report = yield
    if report.skipped and os.environ.get("STRONGROOM_SKIP_IS_FAILURE") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where a skip is a failure: {report.longrepr[-1]}"
    return report


@pytest.fixture(scope="session")
def shared_evidence() -> Path:
    """The folder of evidence from real hardware; skipped, loudly, where it is absent."""
    folder = SHARED / "evidence"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"SKIPPED LOUDLY: no evidence from real hardware at {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_vectors() -> Path:
    """The folder of protocol vectors; skipped, loudly, where it is absent."""
    folder = SHARED / "specs" / "vectors"
    if not folder.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: no protocol vectors at {folder}")
    return folder
