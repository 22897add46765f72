"""What a worker may say aloud: our own lines and the framework's, never the user's handler's.

A handler prints, logs, warns and fails with whatever it was working on, and a worker's stdout and stderr
are read by the host. `OutputGuard.install` therefore comes before the handler is imported: descriptors 1
and 2 lead nowhere from then on (C code and child processes included), Python's streams and root logger
count what they are given, and what is allowed goes out through a duplicate of the old descriptor. In place
of what was dropped stand class names and counts.

The descriptors lead to the null device and not to a pipe of ours: C code that fills a pipe while it holds
the interpreter's lock would wait for ever for the thread that has to empty it.

This keeps a careless handler from talking. One that wants to send data out finds other ways (a file, the
duplicate itself); docs/limitations.md says which are closed by `launch.hardening`.

The guard is called from anywhere: out of a finalizer that the collector runs while the guard itself allocates, under
any lock of the handler's, and in a child that was forked while another thread was in here. So nobody ever waits for
the guard: what is dropped goes onto a queue, whoever finds the guard free counts for all, and the streams have no
buffer, whose lock is one to wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, TextIO

OURS = "strongroom"
REPORT_EVERY_S = 60.0
MOST_HEARD = 100_000
"""Entries that wait while somebody counts; beyond that the oldest are forgotten rather than memory filled."""
LOWEST_COPY = 64
"""The duplicate's number is at least this, out of the way of code that closes low descriptors."""


class OutputGuard:
    """The policy of one process. `passes` says which foreign log lines are the framework's own protocol."""

    def __init__(self, passes: Callable[[str], bool], descriptor: int, dropped: Counter[str]) -> None:
        self._passes = passes
        self._descriptor = descriptor
        self._dropped = dropped
        self._reported = -REPORT_EVERY_S
        self._heard: deque[tuple[str, int]] = deque(maxlen=MOST_HEARD)
        self._telling = threading.Lock()
        self._restore: Callable[[], None] = lambda: None

    @classmethod
    def install(cls, passes: Callable[[str], bool] = lambda line: False, loggers: Sequence[str] = ()) -> OutputGuard:
        """Close stdout and stderr to everybody but us.

        `loggers` are the framework's own, which keep working when a handler reconfigures the root logger.
        """
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        copy = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, LOWEST_COPY)
        dropped: Counter[str] = Counter()
        guard = cls(passes, copy, dropped)
        second = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, LOWEST_COPY)
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = guard._counting("stdout", 1), guard._counting("stderr", 2)
        hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        sys.excepthook = lambda kind, value, trace: guard.failed("the main thread", kind)
        threading.excepthook = lambda raised: guard.failed("a thread", raised.exc_type)
        sys.unraisablehook = lambda raised: guard.failed("a finalizer", raised.exc_type)
        handlers = guard._take_loggers(loggers)

        def restore() -> None:
            os.dup2(copy, 1)
            os.dup2(second, 2)
            sys.stdout, sys.stderr = streams
            sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
            for logger, (old, propagate) in handlers.items():
                logger.handlers[:] = old
                logger.propagate = propagate

        guard._restore = restore
        os.register_at_fork(after_in_child=guard._renew)
        return guard

    def _renew(self) -> None:
        """In a child: whoever was counting was not forked along, and would never be done."""
        self._telling = threading.Lock()

    def lift(self) -> None:
        """Let everything out again, for development; says so loudly, in the output itself."""
        self._restore()
        self._restore = lambda: None
        self.say("strongroom: warning: OUTPUT IS NOT GUARDED: what the handler prints and raises can be read here")

    def say(self, line: str) -> None:
        """One line of our own."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace") + b"\n")

    def failed(self, where: str, kind: type[BaseException] | None) -> None:
        """Report an exception that nobody caught, by class only."""
        self.say(f"strongroom: the model's own code raised {kind.__name__ if kind else 'nothing'} in {where}")

    def drop(self, what: str, count: int = 1) -> None:
        """Count what was not let out; says so for each kind at once, then at most once a minute."""
        self._heard.append((what, count))
        while self._heard and (telling := self._telling).acquire(blocking=False):
            try:
                told = self._told()
            finally:
                telling.release()
            if told:
                self.say(f'strongroom: dropped what the handler put out (output = "drop"): {told} so far')

    def _told(self) -> str:
        """Count what was heard; what is to be told of it now, or nothing."""
        new = False
        for _ in range(len(self._heard)):
            what, count = self._heard.popleft()
            new |= what not in self._dropped
            self._dropped[what] += count
        if not new and time.monotonic() - self._reported < REPORT_EVERY_S:
            return ""
        self._reported = time.monotonic()
        return ", ".join(f"{number} {name}" for name, number in sorted(self._dropped.items()))

    def record(self, record: logging.LogRecord) -> None:
        """Decide about one log record."""
        if record.name == OURS or record.name.startswith(f"{OURS}."):
            self.say(f"strongroom: {record.getMessage()}")
            return
        try:
            line = record.getMessage()
        except Exception:  # a handler's own format arguments; nothing of them may be shown
            line = ""
        if self._passes(line):
            self.say(line)
        else:
            self.drop(f"log records ({record.levelname if record.levelno in _LEVELS else 'other'})")

    def _counting(self, name: str, descriptor: int) -> TextIO:
        raw = _Counted(self, name, descriptor)  # as under `python -u`: a BufferedWriter cannot be entered again
        return io.TextIOWrapper(raw, "utf-8", "replace", write_through=True)  # type: ignore[type-var]

    def _take_loggers(self, names: Sequence[str]) -> dict[logging.Logger, tuple[list[logging.Handler], bool]]:
        taken = {}
        root = logging.getLogger()
        for logger in (root, logging.getLogger(OURS), *map(logging.getLogger, names)):
            taken[logger] = (list(logger.handlers), logger.propagate)
            logger.handlers[:] = [_Guarded(self)]
            logger.propagate = False
        return taken


_LEVELS = frozenset([logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL])


class _Guarded(logging.Handler):
    """Hands records to the guard."""

    def __init__(self, guard: OutputGuard) -> None:
        super().__init__()
        self._guard = guard

    def emit(self, record: logging.LogRecord) -> None:
        self._guard.record(record)


class _Counted(io.RawIOBase):
    """A stream that keeps nothing but the count; its descriptor leads nowhere too."""

    def __init__(self, guard: OutputGuard, name: str, descriptor: int) -> None:
        self._guard, self._name, self._descriptor = guard, name, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, octets: Any) -> int:
        size = memoryview(octets).nbytes
        if size:
            self._guard.drop(f"bytes on {self._name}", size)
        return size
