"""Files on their way: written beside their name, and under it only once they are whole.

Key files and archives have their own such steps, in `strongroom.archive`; this is for what verbs write besides.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from strongroom.errors import ConfigurationInvalid, StrongroomError


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


@contextmanager
def replacing(path: Path, read: Callable[[Path], object], what: str) -> Iterator[Path]:
    """A draft that takes the name when it is whole; `read` raises for what is not of the same kind.

    Raises `ConfigurationInvalid` where something else has the name.
    """
    from strongroom.archive.keyfile import take_name

    path = path.resolve()
    there = path.exists()
    try:
        if there and not path.is_file():
            raise ConfigurationInvalid(f"{path} is no file")
        if there and path.stat().st_size:
            read(path)
    except (StrongroomError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(
            f"{path} exists and is no {what}: it is not replaced", hint="choose another name"
        ) from error
    draft = _beside(path)
    try:
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        if there:
            os.replace(draft, path)
        else:
            take_name(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def private(path: Path) -> Iterator[BinaryIO]:
    """A file that only its owner can read, in place of an earlier one as soon as it is whole.

    A pipe or a device is written to as it is.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    draft = _beside(path)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
