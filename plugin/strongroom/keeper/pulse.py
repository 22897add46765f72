"""Whether a keeper still answers. One that no longer does is ended, and the launcher starts it again.

A process that died is seen by its parent; one that hangs would leave every request with a 503 for ever. It is
asked for its status now and then, over its socket as anybody would, and `PATIENCE` questions in a row without an
answer are enough. Nothing counts before its first answer, since a start can be slow. All of it happens between two
looks of the launcher at its children: no thread, because a launcher that forks must have none, and no waiting.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from strongroom.errors import StrongroomError
from strongroom.keeper import wire

EVERY_S = 5.0
ANSWER_WITHIN_S = 10.0
PATIENCE = 3


class Pulse:
    """Called now and then; `process` gives the present keeper, or None while there is none. Times in seconds."""

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
        self._line: socket.socket | None = None
        self._due = 0.0
        self.answered = False
        self.missed = 0

    def __call__(self) -> None:
        """Ask if it is time, listen if somebody was asked, and end a keeper that is deaf."""
        process, now = self._process(), time.monotonic()
        if process is not self._watched:
            self._watched, self.answered, self.missed = process, False, 0
            self._hang_up()
        if process is None:
            return
        if self._line is not None and self._heard():
            self.answered, self.missed = True, 0
            self._hang_up()
        if now < self._due:
            return
        if self._line is not None:  # asked, and the time for an answer is over
            self._hang_up()
            self.missed += self.answered
        if self.missed >= PATIENCE:
            self._say(f"strongroom: the keeper has not answered {PATIENCE} times; ending it")
            process.kill()
            self.missed = 0
            return
        self._ask()
        self._due = now + (self._every if self._line is None else self._within)

    def _ask(self) -> None:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            line.connect(str(self._path))
            wire.send(line, {"op": "status"})
        except (OSError, StrongroomError):
            line.close()
            # Nobody listens, or too many wait to be heard: after a first answer both are signs.
            self.missed += self.answered
        else:
            self._line = line

    def _heard(self) -> bool:
        assert self._line is not None
        with contextlib.suppress(OSError):
            return bool(self._line.recv(1 << 16))
        return False

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None
        self._due = time.monotonic() + self._every
