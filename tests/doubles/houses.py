"""One sealed server with several odd models, and a plain server beside it, for the journeys of the serving path."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from doubles.serving import Serving, start_torchserve
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import Stage

HERE = Path(__file__).parent

MODELS = {
    "echo": "echo_handler.py",
    "talk": "talking_handler.py",
    "iris": "instances_handler.py",
    "tensors": "instances_handler.py",
    "count": "counting_handler.py",
}
CONFIG = b"minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\nhandler:\n  labels: [a, b]\n  depth: 3\n"
TALK_CONFIG = b"minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 60\n"
SEQUENCE_CONFIG = (
    b"minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 60\nsequenceBatching: true\nmaxNumSequence: 4\n"
    b"sequenceMaxIdleMSec: 60000\nmaxSequenceJobQueueSize: 10\n"
)
CONFIGS = {"talk": TALK_CONFIG, "count": SEQUENCE_CONFIG}
MOST = 400_000
"""max_response_size of both servers: small enough to be exceeded at little cost."""


def archives(folder: Path, models: Mapping[str, str], config: bytes) -> Path:
    """Plain archives of all models, in a folder of their own."""
    folder.mkdir()
    for name, handler in models.items():
        files = {
            handler: (HERE / handler).read_bytes(),
            "config.yaml": CONFIGS.get(name, config),
            "labels.json": json.dumps(["a", "b"]).encode(),
        }
        plain_archive(folder / f"{name}.mar", files, name=name, handler=handler, configFile="config.yaml")
    return folder


@dataclass(slots=True)
class House:
    """The sealed server `stage`, and a plain one with the first two of its models."""

    stage: Stage
    plain: Serving
    session: requests.Session

    def url(self, path: str) -> str:
        return self.stage.url + path


@contextlib.contextmanager
def standing(
    folder: Path,
    settings: str = "",
    *,
    models: Mapping[str, str] = MODELS,
    config: bytes = CONFIG,
    workers: int = 1,
    limit: int = MOST,
) -> Iterator[House]:
    """Start both at once, so that they load beside each other."""
    store = archives(folder / "plain-store", models, config)
    names = [f"{name}={name}.mar" for name in models]
    with (
        start_torchserve(folder / "plain", store, names[:2], properties=limits(limit)) as plain,
        sealed_stage(store, models, settings, workers=workers, limit=limit) as stage,
    ):
        for name in list(models)[:2]:
            plain.wait_until_ready(name, workers=workers)
        yield House(stage, plain, session_for(stage))


@contextlib.contextmanager
def sealed_stage(
    store: Path, models: Mapping[str, str], settings: str = "", *, workers: int = 1, limit: int = MOST
) -> Iterator[Stage]:
    """A sealed server alone, of plain archives that lie in `store`; searched for leaks in the end."""
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        for name in models:
            stage.seal(store / f"{name}.mar")
        names = tuple(f"{name}={name}.mar" for name in models)
        stage.start_server(models=names, properties=limits(limit), settings=settings)
        for name in models:
            stage.wait_until_ready(workers, model=name)
        yield stage
    finally:
        stage.close()


def limits(limit: int) -> str:
    """The size limits of all servers, as lines of config.properties."""
    return f"max_response_size={limit}\nmax_request_size={2 * limit}\n"


def session_for(stage: Stage) -> requests.Session:
    """A client of the sealed server, through the relay and past it."""
    session = requests.Session()
    for url in (stage.url, f"http://127.0.0.1:{stage.inference}"):
        session.mount(url, SealedAdapter(policy=stage.client_policy()))
    return session
