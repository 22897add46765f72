"""A process that outlives the launcher and leaves nothing of it behind.

Whatever ends a launcher, SIGKILL included, what it started must not go on serving with nobody to hold it to a lease. A
process cannot clean up after its own SIGKILL, so the launcher is a child of one that only waits: orphans come to it
(PR_SET_CHILD_SUBREAPER), it kills them, and cleans up. Should it be the guardian that is killed, the launcher gets
SIGTERM and stops in order. Where both are killed at once the server is too (PR_SET_PDEATHSIG), its workers end with it,
and the next launch sweeps the memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from strongroom.launch.orphans import end_children
from strongroom.launch.supervisor import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def guarded(clean: Callable[[], object]) -> None:
    """Return in a child of this process; this one waits for it, ends what is left, calls `clean`, and exits alike.

    Call it while the process has one thread.
    """
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guardian:  # it was killed before it could be asked for
            os._exit(1)
        return
    for number in FORWARDED:
        signal.signal(number, lambda received, _: _send(child, received))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end_children()
    clean()
    os._exit(status if status >= 0 else 128 - status)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
