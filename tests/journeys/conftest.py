"""Journeys share one trained digits model and one sealed server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from doubles.houses import House, standing
from doubles.stages import sealed_stage, train_in_a_child
from strongroom.demo.digits import Trained
from strongroom.demo.stage import Stage

BATCHES = json.dumps(
    {
        "digits": {
            "1.0": {"marName": "digits.mar", "minWorkers": 2, "maxWorkers": 2, "batchSize": 4, "maxBatchDelay": 150}
        }
    }
)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Trained:
    """The plain digits.mar and the scans held back from its training."""
    return train_in_a_child(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def sealed(digits) -> Iterator[Stage]:
    """A sealed digits server with two workers and batches of up to four."""
    yield from sealed_stage(digits, properties=f"models={BATCHES}\nmetrics_mode=prometheus\n")


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> Iterator[House]:
    """One sealed server with several models, and the same models served plain."""
    settings = '[worker.envelopes]\niris = "kserve"\ntensors = "kservev2"\n'
    with standing(tmp_path_factory.mktemp("house"), settings) as house:
        yield house
