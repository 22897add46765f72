"""Every vector opens, or is refused with its word, and releases before that what the vector says, no more."""

from __future__ import annotations

import io
import tarfile
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from strongroom.archive.passphrase import Passphrase
from strongroom.archive.recipients import KeyIdentity, RecipientKind
from strongroom.archive.signature import AuthorPublic, SignatureKind
from strongroom.archive.unseal import OpenedArchive, SealedArchive
from strongroom.errors import (
    ArchiveExpired,
    ArchiveMalformed,
    ArchiveTampered,
    ArchiveTruncated,
    ArchiveUnsupported,
    AuthorUnknown,
    NoRecipient,
    SignatureDowngraded,
    WrongKey,
)
from strongroom.keys import ModelKey

FOLDER = Path(__file__).parent.parent / "vectors" / "archive"
WORDS = {
    "malformed": ArchiveMalformed,
    "unsupported": ArchiveUnsupported,
    "tampered": ArchiveTampered,
    "truncated": ArchiveTruncated,
    "wrong key": WrongKey,
    "no recipient": NoRecipient,
    "author unknown": AuthorUnknown,
    "downgraded": SignatureDowngraded,
    "expired": ArchiveExpired,
}


@dataclass
class Vector:
    name: str
    archive: bytes
    head: dict[str, str] = field(default_factory=dict)
    authors: list[AuthorPublic] = field(default_factory=list)
    members: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Vector:
        text, _, body = path.read_bytes().partition(b"\n\n")
        vector = cls(path.stem, zlib.decompress(body))
        for line in text.decode().split("\n"):
            key, _, value = line.partition(": ")
            if key == "author":
                vector.authors.append(AuthorPublic(SignatureKind(int(value[0])), bytes.fromhex(value[2:])))
            elif key == "member":
                digest, _, name = value.partition(" ")
                vector.members[name] = digest
            else:
                vector.head[key] = value
        return vector

    def expand(self, folder: Path) -> Path:
        if self.head["form"] == "file":
            (folder / "archive.mar").write_bytes(self.archive)
            return folder / "archive.mar"
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as tar:
            tar.extractall(folder / "archive")  # our own vector; Python 3.11.2 knows no filter yet
        return folder / "archive"

    def unlock(self, archive: SealedArchive) -> OpenedArchive:
        now = datetime.fromtimestamp(int(self.head["now"]), UTC)
        verified = archive.verified(self.authors, now=now, demand=self.head["demand"])
        if "key" in self.head:
            return verified.unlock(ModelKey(bytes.fromhex(self.head["key"])))
        if "passphrase" in self.head:
            return verified.unlock_with([Passphrase(self.head["passphrase"])])
        kind = "x25519" if "x25519" in self.head else "xwing"
        return verified.unlock_with([KeyIdentity(RecipientKind.named(kind), bytes.fromhex(self.head[kind]))])


VECTORS = [Vector.load(path) for path in sorted(FOLDER.glob("*.vector"))]


def stream(opened: OpenedArchive, released: list[bytes]) -> None:
    """Read every member by random access, chunk by chunk, in index order."""
    for member in opened.members:
        with opened.open(member) as file:
            while piece := file.read(1 << 26):
                released.append(piece)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_an_archive_opens_or_is_refused_with_the_word_of_its_vector(vector, tmp_path):
    released: list[bytes] = []

    def whole_way() -> None:
        with SealedArchive.open(vector.expand(tmp_path)) as archive:
            opened = vector.unlock(archive)
            stream(opened, released)
            opened.check_members()
            opened.verified.check_payload(threads=1)
            assert {each.name: sha256(opened.read(each)).hexdigest() for each in opened.members} == vector.members

    if vector.head["expect"] == "success":
        whole_way()
    else:
        with pytest.raises(WORDS[vector.head["expect"]]) as caught:
            whole_way()
        assert caught.value.hint, f"{caught.value} has no next step"
        if vector.head["expect"] == "tampered":
            assert not isinstance(caught.value, ArchiveTruncated)

    # What came out before a refusal counts too.
    assert sha256(b"".join(released)).hexdigest() == vector.head["released"]


SPLICED = {
    "payload-blocks-swapped": "payload block 0 is not the one that was signed, but block 1",
    "payload-digests-swapped": "the list of block digests is not the one that was signed",
    "slots-stolen": "moved here from another archive",
}


@pytest.mark.parametrize("name", SPLICED)
def test_what_was_put_together_from_two_places_says_so(name, tmp_path):
    [vector] = [each for each in VECTORS if each.name == name]
    with pytest.raises(ArchiveTampered, match=SPLICED[name]), SealedArchive.open(vector.expand(tmp_path)) as archive:
        stream(vector.unlock(archive), [])


def test_there_are_vectors_good_and_bad():
    words = [vector.head["expect"] for vector in VECTORS]

    assert len(words) >= 60
    assert set(words) == {*WORDS, "success"}
