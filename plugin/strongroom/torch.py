"""The one module that imports torch: the mapping hook, and sealed checkpoints.

`map_models` makes `torch.load` and safetensors *map* the files of a room instead of copying them: a path
that leads to a sealed memory file is loaded with ``mmap=True``, and the storage is a private mapping that
begins at a 2 MiB boundary, so that huge pages carry it. Workers share the pages until one writes. Every
other call goes on as before.

`save` and `load` are for training inside a TEE: a checkpoint is written into memory, sealed from there, and
the last one is a served archive without ever having been plaintext on a disk.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from strongroom.archive.seal import Sealed, Terms, Wrap, seal_source
from strongroom.archive.signature import AuthorPublic, Signer
from strongroom.archive.source import FilesSource
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import ArchiveError
from strongroom.keeper.mapping import AlignedMapping
from strongroom.keeper.room import OpenRoom
from strongroom.keys import ModelKey

CHECKPOINT = "model.pt"


# -- mapping instead of copying ------------------------------------------------------


def map_models() -> None:
    """Install the hook, once a process, before the user's handler is imported."""
    if getattr(torch.load, "strongroom", False):
        return
    plain_load, plain_from_file = torch.load, torch.UntypedStorage.from_file

    def load(f: Any, *arguments: Any, **keywords: Any) -> Any:
        if keywords.get("mmap") is None and _is_room_file(f) and zipfile.is_zipfile(f):
            keywords["mmap"] = True
        return plain_load(f, *arguments, **keywords)

    def from_file(filename: Any, shared: bool = False, nbytes: int = 0) -> torch.UntypedStorage:
        if shared or nbytes <= 0 or not _is_room_file(filename):
            return plain_from_file(filename, shared, nbytes)
        return _mapped_storage(os.fspath(filename), nbytes)

    load.strongroom = True  # type: ignore[attr-defined]
    load.__doc__ = plain_load.__doc__
    torch.load = load
    torch.UntypedStorage.from_file = staticmethod(from_file)


def _is_room_file(f: Any) -> bool:
    """Whether a path leads to a memory file that nobody can write any more."""
    if not isinstance(f, str | os.PathLike):
        return False
    try:
        descriptor = os.open(f, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _mapped_storage(path: str, nbytes: int) -> torch.UntypedStorage:
    """A storage over a private mapping of the file's first `nbytes`; writes stay in this process."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < nbytes:
            raise ArchiveError(f"{path} is shorter than {nbytes} bytes")
        mapping = AlignedMapping(descriptor, nbytes, shared=False)
    finally:
        os.close(descriptor)
    buffer = _buffer_type(nbytes).from_address(mapping.address)
    buffer.mapping = mapping  # type: ignore[attr-defined]  # lives as long as the storage
    storage: torch.UntypedStorage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    return storage


def _buffer_type(size: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
    return type("MappedBuffer", (ctypes.c_ubyte * size,), {})


# -- sealed checkpoints ----------------------------------------------------------------


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
    before_publish: Callable[[Sealed], None] | None = None,
    overwrite: bool = False,
) -> Sealed:
    """`torch.save` into memory, sealed from there to `output`; nothing readable touches a disk.

    `files` are added under their names (a handler, a label map), `manifest` replaces members of the manifest's
    ``model`` (``handler``, ``modelVersion``, …), so that a checkpoint with a handler is an archive that can be
    served. The key is in the result, and wrapped for `recipients`. Raises `SealRefused`.
    """
    import json

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
    """What a sealed memory file holds: a safetensors file by its name's ending, else what `torch.load` reads."""
    map_models()
    path = f"/proc/self/fd/{descriptor}"
    if name.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return torch.load(io.BytesIO(file.read()), **arguments)
    return torch.load(path, **arguments)
