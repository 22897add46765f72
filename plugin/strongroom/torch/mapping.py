"""Map the files of a room instead of copying them, for whatever loads weights in this process.

`map_models` makes `torch.load` and safetensors *map*: a path that leads to a sealed memory file is loaded with
``mmap=True``, and the storage is a private mapping that begins at a 2 MiB boundary, so that huge pages carry it.
Workers share the pages until one writes. What goes on to a GPU from there is copied in pieces (`staging`). Every
other call goes on as before.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import weakref
import zipfile
from typing import Any

import torch

from strongroom.errors import ArchiveError
from strongroom.keeper.mapping import AlignedMapping
from strongroom.torch import staging

_mappings: weakref.WeakSet[AlignedMapping] = weakref.WeakSet()


def map_models() -> None:
    """Install the hook, once a process, before the user's handler is imported."""
    if getattr(torch.load, "strongroom", False):
        return
    plain_load, plain_from_file = torch.load, torch.UntypedStorage.from_file

    def load(f: Any, *arguments: Any, **keywords: Any) -> Any:
        if keywords.get("mmap") is None and _is_room_file(f) and zipfile.is_zipfile(f):
            keywords["mmap"] = True
        try:
            return plain_load(f, *arguments, **keywords)
        finally:
            staging.finish()

    def from_file(filename: Any, shared: bool = False, nbytes: int = 0) -> torch.UntypedStorage:
        if shared or nbytes <= 0 or not _is_room_file(filename):
            return plain_from_file(filename, shared, nbytes)
        return _mapped_storage(os.fspath(filename), nbytes)

    load.strongroom = True  # type: ignore[attr-defined]
    load.__doc__ = plain_load.__doc__
    torch.load = load
    torch.UntypedStorage.from_file = staticmethod(from_file)
    torch.serialization.register_package(staging.BEFORE_TORCH, lambda storage: None, _restored)


def _restored(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """A storage of a room on its way to a CUDA device; None for every other, which is torch's own business."""
    at = storage.data_ptr() if storage.device.type == "cpu" else 0
    if any(each.address <= at < each.address + len(each.view) for each in _mappings):
        return staging.to_cuda(storage, location)
    return None


def _is_room_file(f: Any) -> bool:
    """Whether a path leads to a file in memory that nobody can write: a sealed one, or one on a read-only mount."""
    if not isinstance(f, str | os.PathLike):
        return False
    try:
        descriptor = os.open(f, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
            return True
        return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
    except OSError:  # a file that is not in memory has no seals
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
        _mappings.add(mapping)
    finally:
        os.close(descriptor)
    buffer = _buffer_type(nbytes).from_address(mapping.address)
    buffer.mapping = mapping  # type: ignore[attr-defined]  # lives as long as the storage
    storage: torch.UntypedStorage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    return storage


def _buffer_type(size: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
    return type("MappedBuffer", (ctypes.c_ubyte * size,), {})
