"""A whole sealed server for journeys: author, broker, archive, launcher, TorchServe, relay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from doubles.hunted import HuntedStage
from strongroom.demo.digits import Trained, held_back


def sealed_stage(digits: Trained, **server) -> Iterator[HuntedStage]:
    """Author, broker, sealed archive and launched server; in the end it is searched for leaks, and everything stops."""
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        stage.seal(digits.archive)
        stage.hunt.look_for({f"scan {number}": scan.pixels for number, scan in enumerate(digits.held_back[:10])})
        stage.start_server(**server)
        stage.wait_until_ready()
        yield stage
    finally:
        stage.close()


def train_in_a_child(folder: Path) -> Trained:
    """The digits model, trained in a process of its own: torch and the Rego engine abort beside each other."""
    program = (
        "import sys, pathlib; from strongroom.demo.digits import train; "
        "print(train(pathlib.Path(sys.argv[1])).accuracy)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    return Trained(folder / "digits.mar", float(done.stdout), held_back())
