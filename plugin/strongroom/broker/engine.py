"""Ask the policy interpreter, which runs as a process of its own (`evaluation`), and survive whatever it does.

An interpreter that dies or does not answer in time is ended and started anew, and the question that did it is
answered with no: `Unanswered`. One question at a time is fast enough, so there is one process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from strongroom.broker.evaluation import receive, send

SECONDS = 10.0
"""How long one evaluation may take; on a quiet machine it takes a thousandth of that."""

STARTING_SECONDS = 60.0
"""How long a fresh interpreter may take until it answers a question of ours: on a busy machine Python starts slowly."""

_GREETING = json.dumps(
    {
        "policy": "package policy\n\nallow := true\n",
        "query": "data.policy.allow",
        "claims": {},
        "data": "{}",
        "binding": "",
    }
).encode()

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class Unanswered(Exception):
    """The interpreter died of this question, or did not answer it in time; its text says which."""


class Uninstalled(Unanswered):
    """There is no interpreter here to ask."""


class Engine:
    """One interpreter process, started at the first question. May be asked from many threads."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._owner = 0

    def ask(self, policy: str, query: str, claims: Mapping[str, Any], data: str, *, binding: str = "") -> Any:
        """(whether it was evaluated, the value or what went wrong); raises `Unanswered`.

        `data` is JSON. A value of None is undefined.
        """
        question = {"policy": policy, "query": query, "claims": dict(claims), "data": data, "binding": binding}
        octets = json.dumps(question, ensure_ascii=False).encode("utf-8")
        with self._lock:
            answer = self._exchange(self._connected(), octets, self._seconds)
        read = json.loads(answer)
        return read["ok"] is True, read["value"]

    def close(self) -> None:
        """End the interpreter; the next question starts another."""
        with self._lock:
            self._end()

    def _exchange(self, link: socket.socket, octets: bytes, seconds: float) -> bytes:
        """One question and its answer; whatever goes wrong ends this interpreter."""
        link.settimeout(seconds)
        try:
            send(link, octets)
            answer = receive(link)
        except TimeoutError as error:
            self._end()
            raise Unanswered(f"the interpreter did not answer within {seconds:.0f} s") from error
        except OSError as error:
            raise Unanswered(f"the interpreter died of it ({self._death()})") from error
        if answer is None:
            raise Unanswered(f"the interpreter died of it ({self._death()})")
        return answer

    def _connected(self) -> socket.socket:
        if self._link is not None and self._process is not None and self._owner == os.getpid():
            if self._process.poll() is None:
                return self._link
            self._end()
        if importlib.util.find_spec("regopy") is None:
            raise Uninstalled("the interpreter, regopy, is not installed")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "strongroom.broker.evaluation", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # a terminal's Ctrl-C is for the broker, which ends it in order
            )
        self._link, self._owner = ours, os.getpid()
        self._exchange(ours, _GREETING, STARTING_SECONDS)  # so that the limit of a question is not that of a start
        return ours

    def _death(self) -> str:
        """End what is left of it, and say how it ended."""
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        status = None if process is None else process.returncode
        self._end()
        return f"signal {-status}" if status is not None and status < 0 else f"status {status}"

    def _end(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        self._link = self._process = None


ENGINE = Engine()
"""The interpreter of this process."""

atexit.register(ENGINE.close)
