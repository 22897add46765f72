"""Whether a keeper still answers. One that no longer does is ended, and the launcher starts it again.

A process that died is seen by its parent; one that hangs would leave every request with a 503 for ever. It is
asked for its status now and then, over its socket as anybody would, and `PATIENCE` questions in a row without an
answer are enough. Nothing is asked of it before its first answer, since a start can be slow.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import Popen

from strongroom.archive.errand import Errand
from strongroom.errors import StrongroomError
from strongroom.keeper import wire

EVERY_S = 5.0
ANSWER_WITHIN_S = 10.0
PATIENCE = 3


class Pulse:
    """Called now and then; `process` gives the present keeper, or None while there is none."""

    def __init__(
        self,
        path: Path,
        process: Callable[[], Popen[bytes] | None],
        say: Callable[[str], None],
        *,
        every: float = EVERY_S,
        within: float = ANSWER_WITHIN_S,
    ) -> None:
        self._path, self._process, self._say = path, process, say
        self._every, self._within = every, within
        self._watched: Popen[bytes] | None = None
        self._question: Errand | None = None
        self._next = 0.0
        self._answers: list[bool] = []  # of the watched process, since its last good one

    def __call__(self) -> None:
        """Ask if it is time, and end a keeper that is deaf; never waits."""
        now, process = time.monotonic(), self._process()
        if process is not self._watched:
            self._watched, self._question, self._answers = process, None, []
        if process is None or now < self._next or (self._question is not None and not self._question.over):
            return
        if self._answers.count(False) >= PATIENCE:
            self._say(f"strongroom: the keeper has not answered {PATIENCE} times; ending it")
            process.kill()
            self._answers = []
            return
        self._next = now + self._every
        with contextlib.suppress(RuntimeError):  # no thread: later, then
            self._question = Errand(partial(self._ask, self._answers))

    def _ask(self, answers: list[bool]) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._within)
                connection.connect(str(self._path))
                wire.send(connection, {"op": "status"})
                wire.receive(connection)
        except (OSError, StrongroomError):
            if answers:  # it has answered before
                answers.append(False)
        else:
            answers[:] = [True]
