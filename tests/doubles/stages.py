"""A whole sealed server for journeys: author, broker, archive, launcher, TorchServe, relay."""

from __future__ import annotations

from collections.abc import Iterator

from strongroom.demo.digits import Trained
from strongroom.demo.stage import Stage


def sealed_stage(digits: Trained, **server) -> Iterator[Stage]:
    """Author, broker, sealed archive and launched server; everything stops in the end."""
    stage = Stage.make()
    try:
        stage.make_author()
        stage.start_broker()
        stage.seal(digits.archive)
        stage.start_server(**server)
        stage.wait_until_ready()
        yield stage
    finally:
        stage.close()
