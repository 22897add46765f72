"""Archives that earlier releases made, kept for good: today's code opens all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from archive.makings import NOW, model_files
from strongroom.archive.modelkey import load_model_key
from strongroom.archive.passphrase import Passphrase
from strongroom.archive.recipients import KeyIdentity
from strongroom.archive.signature import AuthorPublic
from strongroom.archive.unseal import OpenedArchive, SealedArchive

V1 = Path(__file__).parent / "v1"


def private(name: str, folder: Path) -> Path:
    """A private key file with the mode that it must have; a checkout does not keep it."""
    path = folder / name
    shutil.copyfile(V1 / name, path)
    path.chmod(0o600)
    return path


def by_key(archive: SealedArchive, folder: Path) -> OpenedArchive:
    verified = archive.verified([AuthorPublic.load(V1 / "ed25519.pub")], now=NOW)
    return verified.unlock(load_model_key(private("plain.modelkey", folder), of=verified.digest))


def by_identity(archive: SealedArchive, folder: Path) -> OpenedArchive:
    verified = archive.verified([AuthorPublic.load(V1 / "hybrid.pub")], now=NOW, demand="hybrid")
    return verified.unlock_with([KeyIdentity.load(private("xwing.identity", folder))])


def by_passphrase(archive: SealedArchive, folder: Path) -> OpenedArchive:
    verified = archive.verified([AuthorPublic.load(V1 / "hybrid.pub")], now=NOW, demand="hybrid")
    return verified.unlock_with([Passphrase("correct horse battery staple")])


@pytest.mark.parametrize(
    ("name", "unlock"), [("plain.mar", by_key), ("folder", by_identity), ("passphrase.mar", by_passphrase)]
)
def test_an_archive_of_version_1_opens(name, unlock, tmp_path):
    with SealedArchive.open(V1 / name) as archive:
        opened = unlock(archive, tmp_path)
        opened.check_members()
        opened.verified.check_payload(threads=1)

        assert {member.name: opened.read(member) for member in opened.members} == model_files()
