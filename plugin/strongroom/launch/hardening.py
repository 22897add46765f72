"""What a process does for itself before a secret arrives: no core dump, no ptrace, no look at its memory.

Best effort against other processes of the same user; root in the guest and the guest's image are
outside of what a process can settle (docs/threat-model.md).
"""

from __future__ import annotations

import resource

from strongroom.launch.supervisor import PR_SET_DUMPABLE, prctl


def harden() -> None:
    """Not dumpable (which also bars same-user access to /proc/PID/mem and fd), and no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(PR_SET_DUMPABLE, 0)
