"""Folders in memory: emptied to the last file, and files that are put back as they were written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, also where its owner took away its own right to write.

    Links are removed, not followed. Raises `OSError` where something stays; what is gone already is no fault.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.geteuid() != 0:  # root needs no right, and a link in the way could lead it elsewhere
            _open_up(folder)
        shutil.rmtree(folder, onerror=_unless_gone)


def _unless_gone(function: Callable[..., Any], path: str, error: Any) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _open_up(folder: Path) -> None:
    os.chmod(folder, 0o700)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _open_up(Path(entry.path))


def empty(folder: Path) -> None:
    """Remove all that is in a folder; raises `OSError` where something stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove(path)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Written:
    """Files of ours that a server reads, with their rights: a handler of the same user could have changed them."""

    folders: tuple[Path, ...]
    files: tuple[tuple[Path, bytes, int, int, int], ...]

    @classmethod
    def of(cls, *folders: Path) -> Self:
        """As they are now. The folders hold files only, and small ones."""
        paths = [path for folder in folders for path in sorted(folder.iterdir())]
        states = [path.stat() for path in paths]
        return cls(
            folders,
            tuple(
                (path, path.read_bytes(), state.st_mode & 0o777, state.st_uid, state.st_gid)
                for path, state in zip(paths, states, strict=True)
            ),
        )

    def restore(self) -> None:
        """Write them anew, and nothing beside them; raises `OSError`."""
        for folder in self.folders:
            empty(folder)
        for path, octets, mode, uid, gid in self.files:
            with path.open("xb") as file:
                os.fchmod(file.fileno(), mode)
                os.fchown(file.fileno(), uid, gid)
                file.write(octets)
