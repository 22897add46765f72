"""Journeys share one trained digits model."""

from __future__ import annotations

import pytest
from strongroom.demo.digits import Trained, train


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Trained:
    """The plain digits.mar and the scans held back from its training."""
    pytest.importorskip("torch", reason="SKIPPED LOUDLY: no torch here, no journey")
    return train(tmp_path_factory.mktemp("digits"))
