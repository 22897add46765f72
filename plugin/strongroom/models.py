"""Sealed models from Python: `strongroom.seal` and `strongroom.open_archive`.

    sealed = strongroom.seal("resnet.mar", "resnet.sealed.mar", author="author.key")
    with strongroom.open_archive("resnet.sealed.mar", sealed.key, authors=["author.pub"]) as archive:
        labels = json.load(archive["index_to_name.json"])
        state = archive.load_state_dict("resnet.pt")

Thin on purpose: everything is done by the rooms below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from strongroom.archive.header import SignedCore
from strongroom.archive.member import MemberFile
from strongroom.archive.modelkey import load_model_key
from strongroom.archive.seal import Sealed, seal_archive
from strongroom.archive.signature import AuthorKey, AuthorPublic
from strongroom.archive.unseal import OpenedArchive, SealedArchive
from strongroom.keeper.room import OpenRoom
from strongroom.keys import ModelKey


def seal(source: Path | str, output: Path | str, *, author: AuthorKey | Path | str, **options: Any) -> Sealed:
    """Encrypt and sign the model at `source` into `output`; the key is in the result and nowhere else.

    `author` is a private key or its file. `options` are those of `strongroom.archive.seal.seal_archive`
    (`lineage`, `version`, `recipients`, `form`, `progress`, …). Raises `SealRefused`.
    """
    key = author if isinstance(author, AuthorKey) else AuthorKey.load(author)
    return seal_archive(Path(source), Path(output), author=key, **options)


class SealedModel:
    """An archive that is open: a mapping from names to readable, seekable files. Close it when done."""

    def __init__(self, archive: SealedArchive, opened: OpenedArchive) -> None:
        self._archive, self._opened = archive, opened

    @property
    def core(self) -> SignedCore:
        """What the author signed: lineage, version, author, expiry, …"""
        return self._opened.core

    def __iter__(self) -> Iterator[str]:
        return (member.name for member in self._opened.members)

    def __len__(self) -> int:
        return len(self._opened.members)

    def __contains__(self, name: object) -> bool:
        return name in self._opened

    def __getitem__(self, name: str) -> MemberFile:
        """A seekable binary file over one member; each chunk is verified before it is given out."""
        return self._opened.open(name)

    def load_state_dict(self, name: str, **arguments: Any) -> Any:
        """What `torch.load`, or safetensors by the name's ending, makes of a member, mapped from memory.

        `arguments` go to `torch.load` (`map_location`, `weights_only`, …). Imports torch.
        """
        from strongroom.torch import load_state

        room = OpenRoom.open(self._opened, only=(self._opened[name],))
        try:
            return load_state(room.files[0].descriptor, name, **arguments)
        finally:
            room.close()

    def close(self) -> None:
        """Close the file underneath."""
        self._archive.close()

    def __enter__(self) -> SealedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_archive(
    path: Path | str,
    key: ModelKey | Path | str,
    *,
    authors: Iterable[AuthorPublic | Path | str] | AuthorPublic | Path | str,
) -> SealedModel:
    """Verify and unlock a sealed archive. `key` is a model key or its file, `authors` whom you trust, or the one whom.

    Raises `AuthorUnknown`, `WrongKey`, `ArchiveTampered` and their kin.
    """
    if isinstance(authors, AuthorPublic | Path | str):
        authors = [authors]
    trusted = [each if isinstance(each, AuthorPublic) else AuthorPublic.load(each) for each in authors]
    archive = SealedArchive.open(path)
    try:
        verified = archive.verified(trusted, now=datetime.now(UTC))
        model_key = key if isinstance(key, ModelKey) else load_model_key(key, of=verified.digest)
        return SealedModel(archive, verified.unlock(model_key))
    except BaseException:
        archive.close()
        raise
