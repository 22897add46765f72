"""Sealing and opening from Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import strongroom
from doubles.models import Author, plain_archive
from strongroom.archive.modelkey import save_model_key
from strongroom.archive.signature import AuthorPublic
from strongroom.errors import AuthorUnknown, WrongKey
from strongroom.keys import ModelKey


@pytest.fixture
def made(tmp_path):
    author = Author.make(tmp_path)
    weights = os.urandom(9_000_000)
    plain = plain_archive(tmp_path / "toy.plain.mar", {"toy.py": b"# code\n", "toy.pt": weights})
    return author, weights, strongroom.seal(plain, tmp_path / "toy.mar", author=author.private)


def test_a_member_is_a_seekable_file(made):
    author, weights, sealed = made
    with strongroom.open_archive(sealed.path, sealed.key, authors=[author.public]) as archive:
        assert set(archive) == {"toy.py", "toy.pt", "MAR-INF/MANIFEST.json"}
        with archive["toy.pt"] as file:
            file.seek(5_000_000)
            assert file.read(1000) == weights[5_000_000:5_001_000]
            file.seek(-10, os.SEEK_END)
            assert file.read() == weights[-10:]


def test_the_key_may_be_a_file(made, tmp_path):
    author, _, sealed = made
    save_model_key(tmp_path / "toy.modelkey", sealed.digest, sealed.key)
    with strongroom.open_archive(sealed.path, tmp_path / "toy.modelkey", authors=[author.public]) as archive:
        assert archive["toy.py"].read() == b"# code\n"


@pytest.mark.parametrize("kind", [str, Path, AuthorPublic.load])
def test_one_author_may_be_named_alone(kind, made, tmp_path):
    _, _, sealed = made
    with strongroom.open_archive(sealed.path, sealed.key, authors=kind(tmp_path / "author.pub")) as archive:
        assert archive["toy.py"].read() == b"# code\n"


def test_a_stranger_and_a_wrong_key_are_refused(made, tmp_path):
    author, _, sealed = made
    with pytest.raises(AuthorUnknown):
        strongroom.open_archive(sealed.path, sealed.key, authors=[Author.make(tmp_path, "other").public])
    with pytest.raises(WrongKey):
        strongroom.open_archive(sealed.path, ModelKey.generate(), authors=[author.public])
