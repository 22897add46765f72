"""Sealed checkpoints, for training inside a TEE.

A checkpoint is written into memory and sealed from there, and the last one is a served archive without ever having
been plaintext on a disk.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from strongroom.archive.seal import BeforePublish, Sealed, Terms, Wrap, seal_source
from strongroom.archive.signature import AuthorPublic, Signer
from strongroom.archive.source import FilesSource, normal
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import SealRefused
from strongroom.keeper.room import OpenRoom
from strongroom.keys import ModelKey
from strongroom.torch.mapping import map_models
from strongroom.torch.staging import finish, tensor_to

CHECKPOINT = "model.pt"


def save(
    state: Any,
    output: Path | str,
    *,
    author: Signer,
    name: str = "checkpoint",
    version: int = 1,
    files: Mapping[str, Path] | None = None,
    manifest: Mapping[str, Any] | None = None,
    recipients: Iterable[Wrap] = (),
    before_publish: BeforePublish | None = None,
    overwrite: bool = False,
) -> Sealed:
    """`torch.save` into memory, sealed from there to `output`; nothing readable touches a disk.

    `files` are added under their names (a handler, a label map), `manifest` replaces members of the manifest's
    ``model`` (``handler``, ``modelVersion``, …), so that a checkpoint with a handler is an archive that can be
    served. The key is in the result, and wrapped for `recipients`. Raises `SealRefused`.
    """
    import json

    if any(normal(each) == CHECKPOINT for each in files or {}):
        raise SealRefused(
            f"files has {CHECKPOINT!r}, which is the checkpoint's own name", hint="give that file another name"
        )
    model = {"modelName": name, "modelVersion": str(version), "serializedFile": CHECKPOINT, "handler": "base_handler"}
    described = {"runtime": "python", "archiverVersion": "0.12.0", "model": {**model, **(manifest or {})}}
    descriptor = os.memfd_create("strongroom-checkpoint", os.MFD_CLOEXEC)
    with open(descriptor, "w+b") as memory:
        torch.save(state, memory)
        memory.flush()
        paths = {**(files or {}), CHECKPOINT: Path(f"/proc/self/fd/{descriptor}")}
        with _MemorySource(descriptor, paths, {"MAR-INF/MANIFEST.json": json.dumps(described).encode()}) as source:
            return seal_source(
                source,
                Path(output),
                author=author,
                terms=Terms(lineage=name, version=version),
                recipients=recipients,
                before_publish=before_publish,
                overwrite=overwrite,
            )


class _MemorySource(FilesSource):
    """Files where they lie, and the checkpoint in its memory file."""

    def __init__(self, descriptor: int, paths: Mapping[str, Path], made: Mapping[str, bytes]) -> None:
        checkpoint = os.fstat(descriptor).st_size
        super().__init__({name: path for name, path in paths.items() if name != CHECKPOINT}, made)
        self._descriptor = descriptor
        self.sizes[CHECKPOINT] = checkpoint
        self._check()  # once more: another file's name may clash with the checkpoint's

    def read(self, names: list[str], take: Callable[[str, Any], None]) -> None:
        """In the order asked for."""
        for each in names:
            if each != CHECKPOINT:
                super().read([each], take)
                continue
            with open(os.dup(self._descriptor), "rb", buffering=0) as stream:
                stream.seek(0)
                take(each, stream)


def load(
    path: Path | str, key: ModelKey, *, authors: Iterable[AuthorPublic], member: str = CHECKPOINT, **arguments: Any
) -> Any:
    """`torch.load` of a member of a sealed archive, mapped from memory; `arguments` go to `torch.load`.

    Raises what opening an archive raises (`AuthorUnknown`, `WrongKey`, `ArchiveTampered`, …).
    """
    with SealedArchive.open(path) as sealed:
        opened = sealed.verified(authors, now=datetime.now(UTC)).unlock(key)
        room = OpenRoom.open(opened, only=(opened[member],))
    try:
        return load_state(room.files[0].descriptor, room.files[0].name, **arguments)
    finally:
        room.close()


def load_state(descriptor: int, name: str, **arguments: Any) -> Any:
    """What a sealed memory file holds: a safetensors file by its name's ending, else what `torch.load` reads.

    Of `arguments`, which are `torch.load`'s, a safetensors file heeds `map_location` where it names a device.
    """
    map_models()
    path = f"/proc/self/fd/{descriptor}"
    if name.endswith(".safetensors"):
        return _safetensors(path, arguments.get("map_location"))
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return torch.load(io.BytesIO(file.read()), **arguments)
    return torch.load(path, **arguments)


def _safetensors(path: str, location: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(path)
    if not isinstance(location, str | torch.device):
        return tensors
    try:
        return {name: tensor_to(tensor, str(location)) for name, tensor in tensors.items()}
    finally:
        finish()
