"""Keeps the keeper and the server running, and lets nothing of them outlive the launcher.

Each child leads a process group of its own and dies with the launcher (PR_SET_PDEATHSIG). When a child dies its whole
group is killed. What left the group, by setsid() say, comes to the launcher when its own parent ends
(PR_SET_CHILD_SUBREAPER), and is killed then; nothing is started again before all of that is gone. Restarts wait 1, 2,
4, … 30 seconds and start again at 1 after a minute of health.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.errors import LaunchRefused
from strongroom.launch.orphans import children, end_children, kill

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 60.0
GRACE = 10.0


def prctl(option: int, value: int) -> None:
    """prctl(2); raises `LaunchRefused` where the kernel says no."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise LaunchRefused(f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())}")


@dataclass(slots=True)
class Child:
    """A process to keep alive. `before` runs ahead of each start, to sweep what the last one left; `confine` runs
    in the child before its program does. `takes` are others that cannot go on without it: they end with it.
    `orphaned` is the signal that it gets when the launcher dies. `stdin` is made at each start, in the launcher."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    before: Callable[[], None] = lambda: None
    confine: Callable[[], None] = lambda: None
    takes: Sequence[Child] = ()
    orphaned: signal.Signals = signal.SIGTERM
    stdin: Callable[[], bytes] = bytes
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    pause: float = field(default=1.0)

    def start(self) -> None:
        """Start it as the leader of a new process group."""
        self.before()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            process_group=0,
            preexec_fn=self._prepare,
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(self.stdin())

    def _prepare(self) -> None:
        try:
            self.confine()
        except Exception as error:  # what is raised here reaches the parent without its text
            os.write(2, f"strongroom: {self.name} could not be confined: {error}\n".encode())
            raise
        # Last: a process that becomes another user forgets it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, self.orphaned, 0, 0, 0)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and everything it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


class Supervisor:
    """Starts children in order, restarts what dies, stops all in reverse order."""

    def __init__(self, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> None:
        self._children: list[Child] = []
        self._say = say
        self._stopping = False
        self._chores: list[Callable[[], None]] = []
        prctl(PR_SET_CHILD_SUBREAPER, 1)

    def start(self, child: Child) -> None:
        """Start a child and watch it from now on."""
        child.start()
        self._children.append(child)

    def also(self, chore: Callable[[], None]) -> None:
        """Something small to do at every look at the children."""
        self._chores.append(chore)

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT end `run` instead of the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))

    @property
    def stopping(self) -> bool:
        """Whether a signal asked for the end."""
        return self._stopping

    def run(self) -> None:
        """Watch until a signal; then stop everything."""
        try:
            while not self._stopping:
                self.tend()
                time.sleep(0.1)
        finally:
            self.stop()

    def tend(self) -> None:
        """One look at every child: bury the dead, end orphans, start what is due."""
        now = time.monotonic()
        for orphan in self._orphans():
            kill(orphan)
        for child in self._children:
            if child.process is not None and (status := child.process.poll()) is not None:
                child.signal_group(signal.SIGKILL)
                for taken in child.takes:
                    taken.signal_group(signal.SIGKILL)
                child.process = None
                self._again_later(child, now, f"ended ({_ending(status)})")
            elif child.process is None and now >= child.due and not self._orphans():
                try:
                    child.start()
                except (OSError, subprocess.SubprocessError) as error:  # no memory or no process left, say
                    child.signal_group(signal.SIGKILL)
                    self._again_later(child, now, f"could not be started ({error})")
        self._bury_orphans()
        for chore in self._chores:
            chore()

    def _again_later(self, child: Child, now: float, why: str) -> None:
        child.pause = 1.0 if now - child.started > HEALTHY_AFTER else min(2 * child.pause, LONGEST_PAUSE)
        child.due = now + child.pause
        self._say(f"strongroom: {child.name} {why}; starting it again in {child.pause:.0f} s")

    def _own(self) -> set[int]:
        return {child.process.pid for child in self._children if child.process is not None}

    def _orphans(self) -> set[int]:
        """What came to us and is nobody's any more."""
        return children() - self._own()

    def _bury_orphans(self) -> None:
        """Reap what was reparented to us; children of our own are left to their Popen."""
        own = self._own()
        while True:
            try:
                waiting = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if waiting is None or waiting.si_pid in own:
                return
            os.waitpid(waiting.si_pid, os.WNOHANG)

    def stop(self) -> None:
        """SIGTERM in reverse order, SIGKILL after a grace."""
        for child in reversed(self._children):
            if child.process is None:
                continue
            child.signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(GRACE)
            child.signal_group(signal.SIGKILL)
            child.process.wait()
            child.process = None
        if not end_children():
            self._say("strongroom: warning: a process that a handler started does not end")


def _ending(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-status).name}"
    return f"status {status}"
