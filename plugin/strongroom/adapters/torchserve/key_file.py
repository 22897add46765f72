"""TorchServe's token file, brought to where an operator looks for it."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

LARGEST = 1 << 16


class KeyFile:
    """Copies the file out whenever it changes.

    TorchServe writes it into its working folder, and searches that folder first for Java classes and log
    settings. So the working folder is ours. It may belong to another user, in whose place a handler could put
    anything there: only a regular file of `owner`, and no link, is read.
    """

    def __init__(self, source: Path, target: Path, *, owner: int | None = None) -> None:
        self._source, self._target = source, target
        self._owner = os.geteuid() if owner is None else owner
        self._seen = 0

    def __call__(self) -> None:
        """Copy it if it is new."""
        found = self._read()
        if found is None or found[0] == self._seen or not found[1]:
            return
        fresh = self._target.with_name(f".{self._target.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(found[1])
            fresh.replace(self._target)
            self._seen = found[0]

    def _read(self) -> tuple[int, bytes] | None:
        """(time of change, contents), or None where there is nothing to copy."""
        try:
            descriptor = os.open(self._source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != self._owner or status.st_nlink != 1:
                return None
            octets = file.read(LARGEST + 1)
        return None if len(octets) > LARGEST else (status.st_mtime_ns, octets)
