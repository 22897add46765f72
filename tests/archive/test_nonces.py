"""No key and nonce ever encrypt two plaintexts: not after an interruption, a retry, or a change under our hands."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from archive.conftest import TINY
from archive.makings import MANIFEST, manifest, write_folder
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from strongroom.archive import cipher
from strongroom.archive.seal import seal_archive
from strongroom.errors import SealRefused


@pytest.fixture
def used(monkeypatch) -> list[tuple[bytes, bytes]]:
    """Every (key, nonce) that was encrypted with; the real cipher does the work."""
    seen: list[tuple[bytes, bytes]] = []

    class Recording:
        def __init__(self, key: bytes) -> None:
            self.key, self.real = bytes(key), AESGCM(key)

        def encrypt(self, nonce, *rest):
            seen.append((self.key, bytes(nonce)))
            return self.real.encrypt(nonce, *rest)

        def encrypt_into(self, nonce, *rest):
            seen.append((self.key, bytes(nonce)))
            return self.real.encrypt_into(nonce, *rest)

    monkeypatch.setattr(cipher, "AESGCM", Recording)
    return seen


@pytest.fixture
def model(tmp_path):
    files = {"a.bin": os.urandom(60_000), "b.bin": os.urandom(50_000), MANIFEST: manifest()}
    return write_folder(tmp_path / "model", files)


def assert_each_once(used) -> None:
    assert used
    assert max(Counter(used).values()) == 1


class Interrupted(Exception):
    pass


def test_a_sealing_uses_each_pair_once(used, model, author, tmp_path):
    seal_archive(model, tmp_path / "out", author=author, padding=True, **TINY)

    assert len(used) > 30
    assert_each_once(used)


def test_interrupted_sealings_and_their_retries_use_each_pair_once(used, model, author, tmp_path):
    for stop_after in (1, 3, 9, 20):

        def progress(done: int, _: int, stop_after=stop_after) -> None:
            if done > stop_after * 4112:
                raise Interrupted

        with pytest.raises(Interrupted):
            seal_archive(model, tmp_path / "out", author=author, progress=progress, **TINY)
    seal_archive(model, tmp_path / "out", author=author, **TINY)

    assert_each_once(used)


@pytest.mark.parametrize("change", ["grows", "shrinks", "is rewritten", "vanishes"])
def test_a_file_that_changes_meanwhile_is_refused_and_pairs_stay_unique(change, used, model, author, tmp_path):
    victim = model / "b.bin"
    original = victim.read_bytes()

    def progress(done: int, _: int) -> None:
        if change == "grows":
            victim.write_bytes(original + b"more")
        elif change == "shrinks":
            victim.write_bytes(original[:100])
        elif change == "is rewritten":
            victim.write_bytes(original[::-1])
        elif victim.exists():
            victim.unlink()

    if change == "is rewritten":
        # The same size and another content: seen while the file itself is being read.
        victim = model / "a.bin"
        original = victim.read_bytes()
    with pytest.raises(SealRefused):
        seal_archive(model, tmp_path / "out", author=author, progress=progress, **TINY)
    assert not (tmp_path / "out").exists()

    victim.write_bytes(original)
    seal_archive(model, tmp_path / "out", author=author, **TINY)
    assert_each_once(used)


def test_a_manifest_that_changes_between_reading_and_sealing_is_refused(model, author, tmp_path):
    path = model / MANIFEST

    def progress(done: int, _: int) -> None:
        path.write_bytes(manifest("tinx"))

    with pytest.raises(SealRefused, match="changed while it was being sealed"):
        seal_archive(model, tmp_path / "out", author=author, progress=progress, **TINY)
