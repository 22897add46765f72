"""A folder in which the user's handler finds the model's files.

As a rule each name is a symbolic link to ``/proc/self/fd/N``, a sealed memory file that the keeper handed over,
so the folder itself holds names and no content: after SIGKILL it dangles. What this cannot do (a path
that must survive `realpath`, a child that is exec'd) is in docs/limitations.md. Where the configuration says so, the
keeper made a folder of real files instead (docs/keeper.md, rooms), and it is used as it is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from strongroom.errors import MalformedInput
from strongroom.worker.link import ReceivedFile

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Room:
    """The folder and the descriptors behind it, for as long as the process lives."""

    def __init__(self, folder: Path, files: Sequence[ReceivedFile], *, ours: bool = True) -> None:
        self.folder = folder
        self._files = tuple(files)
        self._ours = ours

    @classmethod
    def of(cls, lent: Sequence[ReceivedFile] | Path, *, read_only: bool) -> Room:
        """From what the keeper lent; raises `MalformedInput`, also where a folder should be `read_only` and is not."""
        if not isinstance(lent, Path):
            return cls.furnish(lent)
        try:
            flags = os.statvfs(lent).f_flag
        except OSError as error:
            raise MalformedInput("the keeper's folder is not there") from error
        if read_only and not flags & os.ST_RDONLY:
            raise MalformedInput("the keeper's folder can be written to here, and must not")
        return cls(lent, (), ours=False)

    @classmethod
    def furnish(cls, files: Sequence[ReceivedFile], parent: Path | None = None) -> Room:
        """Make the folder (0700) under `parent` or the temporary directory.

        Raises `MalformedInput` for a descriptor that is not a sealed memory file of the stated size, or
        for a name that leaves the folder.
        """
        folder = Path(tempfile.mkdtemp(prefix=f"strongroom-room-{os.getpid()}-", dir=parent))
        try:
            for each in files:
                _check(each)
                path = folder / _inside(each.name)
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.symlink_to(f"/proc/self/fd/{each.descriptor}")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder, files)

    def close(self) -> None:
        """Remove the folder, if it is ours, and close the memory files."""
        if self._ours:
            shutil.rmtree(self.folder, ignore_errors=True)
        for each in self._files:
            os.close(each.descriptor)
        self._files = ()


def _check(file: ReceivedFile) -> None:
    try:
        sealed = fcntl.fcntl(file.descriptor, fcntl.F_GET_SEALS)
        size = os.fstat(file.descriptor).st_size
    except OSError as error:
        raise MalformedInput(f"{file.name}: not a memory file") from error
    if sealed & SEALS != SEALS or size != file.size:
        raise MalformedInput(f"{file.name}: not a sealed memory file of {file.size} bytes")


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\x00" in name:
        raise MalformedInput(f"{name!r} is not a path inside an archive")
    return path


def sweep(parent: Path) -> None:
    """Remove the folders of rooms whose process is gone."""
    for folder in parent.glob("strongroom-room-*"):
        pid = folder.name.split("-")[2]
        if not pid.isdigit() or not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
