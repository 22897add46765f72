"""Small sealed archives for tests: real ones, made by the real sealer from made-up models."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from strongroom.archive.seal import Sealed, seal_archive
from strongroom.archive.signature import AuthorKey


@dataclass(frozen=True)
class Author:
    """An author with key files in a folder."""

    key: AuthorKey
    private: Path
    public: Path

    @classmethod
    def make(cls, folder: Path, name: str = "author", kind: str = "ed25519") -> Author:
        key = AuthorKey.generate(kind)
        key.save(folder / f"{name}.key")
        key.public.save(folder / f"{name}.pub")
        return cls(key, folder / f"{name}.key", folder / f"{name}.pub")


def plain_archive(
    path: Path,
    files: dict[str, bytes],
    *,
    name: str = "toy",
    handler: str = "toy.py",
    compression: int = zipfile.ZIP_DEFLATED,
    **model,
) -> Path:
    """An ordinary .mar, as torch-model-archiver makes one."""
    manifest = {
        "createdOn": "01/01/2026 00:00:00",
        "runtime": "python",
        "model": {"modelName": name, "modelVersion": "1.0", "handler": handler, **model},
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(path, "w", compression) as mar:
        for member, octets in files.items():
            mar.writestr(member, octets)
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    return path


def sealed_toy(
    folder: Path, author: Author, *, name: str = "toy", version: int = 1, weights: bytes = b"", **terms
) -> Sealed:
    """A sealed archive of a model that is a handler and a few weights."""
    files = {"toy.py": b"def handle(data, context):\n    return data and [b'toy'] * len(data)\n", "toy.pt": weights}
    plain = plain_archive(folder / f"{name}.plain.mar", files, name=name)
    return seal_archive(plain, folder / f"{name}.mar", author=author.key, lineage=name, version=version, **terms)
