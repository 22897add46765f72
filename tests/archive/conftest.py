"""An author, a small sealed archive, and how the tests open one."""

from __future__ import annotations

from pathlib import Path

import pytest
from archive.makings import NOW, model_files, write_mar
from strongroom.archive.seal import Sealed, seal_archive
from strongroom.archive.signature import AuthorKey
from strongroom.archive.unseal import OpenedArchive, SealedArchive

TINY = {"chunk_log2": 12, "slot_pages": 1, "threads": 2}


@pytest.fixture(scope="session")
def author() -> AuthorKey:
    return AuthorKey.generate()


@pytest.fixture
def mar(tmp_path) -> Path:
    return write_mar(tmp_path / "tiny.mar", model_files())


@pytest.fixture
def sealed(mar, author, tmp_path) -> Sealed:
    """The tiny model, sealed in 4 KiB chunks."""
    return seal_archive(mar, tmp_path / "tiny.sealed.mar", author=author, **TINY)


@pytest.fixture
def opened(sealed, author):
    with SealedArchive.open(sealed.path) as archive:
        yield archive.verified([author.public], now=NOW).unlock(sealed.key)


def contents(opened: OpenedArchive) -> dict[str, bytes]:
    return {member.name: opened.read(member) for member in opened.members}
