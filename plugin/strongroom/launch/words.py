"""Hardening in words, as the evidence carries it (docs/keeper.md, hardening)."""

from __future__ import annotations

from strongroom.launch.config import Worker
from strongroom.launch.hardening import report
from strongroom.launch.landlock import version as landlock_version

WORDS = {
    "dumpable": "not-dumpable",
    "core files": "no-core-files",
    "no new rights": "no-new-rights",
    "swap": "swap-off",
    "locked memory": "memory-locked",
}
"""Finding about the keeper → the word for it in evidence."""


def hardening_words(worker: Worker, *, own_user: bool) -> tuple[str, ...]:
    """What holds for this process, and what its workers are held to, as words for the evidence.

    Said by software about itself: as true as the measured image.
    """
    words = {WORDS[each.what] for each in report() if each.ok and each.what in WORDS}
    words.add("workers-confined")  # `check_hardened` refuses others
    words |= {"workers-no-network"} if worker.network == "deny" else set()
    words |= {"workers-no-disk"} if worker.disk == "deny" and landlock_version() else set()
    words |= {"workers-no-output"} if worker.output == "drop" else set()
    words |= {"workers-own-user"} if own_user else set()
    return tuple(sorted(words))
