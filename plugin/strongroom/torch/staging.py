"""The way of mapped weights to a GPU: through two small pinned buffers, in turn, and never as a whole.

A device copies from pinned memory while the processor does something else; from ordinary memory the driver stages
behind our back and waits. To pin a model would keep the mapped pages of every worker in memory and to copy it
into pinned memory would be a second host copy of it. So one buffer is filled from the mapping while the device
takes the other: `LANES` times `SIZE` bytes of pinned memory, however large the model is. No file is written.

torch asks here through its registry of deserialisers, for storages that lie in a room's mapping and go to a CUDA
device. Where there is no such device, or no pinned memory, torch goes its own way, with its own words.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

SIZE = 32 << 20
"""Bytes of one buffer. Below some megabytes a transfer's fixed cost shows; above, only the pinned memory grows."""

LANES = 2
BEFORE_TORCH = 15
"""Priority in torch's registry: its own for the processor is 10, its own for CUDA 20; lower numbers are asked first."""


class Piece(NamedTuple):
    """`size` bytes at `offset`, which go through buffer number `lane`."""

    offset: int
    size: int
    lane: int


def pieces(nbytes: int, *, size: int = SIZE, lanes: int = LANES) -> Iterator[Piece]:
    """A whole of `nbytes`, in order and without gaps, through `lanes` buffers of `size` bytes in turn."""
    for number, offset in enumerate(range(0, nbytes, size)):
        yield Piece(offset, min(size, nbytes - offset), number % lanes)


class Lane(Protocol):
    """One buffer and what still reads from it."""

    buffer: torch.Tensor
    """Host memory, one byte an element."""

    def wait(self) -> None:
        """Until nobody reads from the buffer any more."""

    def send(self, size: int, target: torch.Tensor) -> None:
        """Begin to copy the buffer's first `size` bytes to `target`."""


def through(lanes: Sequence[Lane], source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy `source` (host, uint8) to `target` (device, uint8, as long) piece by piece; the last is under way."""
    for offset, size, number in pieces(source.numel(), size=lanes[0].buffer.numel(), lanes=len(lanes)):
        lane = lanes[number]
        lane.wait()
        lane.buffer[:size].copy_(source[offset : offset + size])
        lane.send(size, target[offset : offset + size])


class CudaLane:
    """A pinned buffer and a CUDA stream of its own; raises `RuntimeError` where nothing can be pinned."""

    def __init__(self, device: torch.device, size: int = SIZE) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.stream = torch.cuda.Stream(device)
        self._sent = torch.cuda.Event()

    def wait(self) -> None:
        """Until the device has taken what was sent last; at once where nothing was."""
        self._sent.synchronize()

    def send(self, size: int, target: torch.Tensor) -> None:
        """Begin to copy, on the stream."""
        with torch.cuda.stream(self.stream):
            target.copy_(self.buffer[:size], non_blocking=True)
            self._sent.record(self.stream)


class Staging:
    """The lanes to one CUDA device, for one thread. Raises `RuntimeError` where nothing can be pinned."""

    def __init__(self, device: torch.device) -> None:
        self._lanes = [CudaLane(device) for _ in range(LANES)]
        self._device = device

    def copy(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """The same bytes on the device, to be used on its present stream at once."""
        target = torch.empty(storage.nbytes(), dtype=torch.uint8, device=self._device)
        present = torch.cuda.current_stream(self._device)
        for lane in self._lanes:
            lane.stream.wait_stream(present)  # whoever had that memory before is done with it
            target.record_stream(lane.stream)
        through(self._lanes, torch.empty(0, dtype=torch.uint8).set_(storage), target)
        for lane in self._lanes:
            present.wait_stream(lane.stream)
        return target.untyped_storage()

    def wait(self) -> None:
        """Until the device has taken everything."""
        for lane in self._lanes:
            lane.wait()


_used = threading.local()


def _stagings() -> dict[torch.device, Staging]:
    """Those of this thread: two loads at once must not fill the same buffers."""
    if not hasattr(_used, "by_device"):
        _used.by_device = {}
    found: dict[torch.device, Staging] = _used.by_device
    return found


def to_cuda(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """A copy on the CUDA device that `location` names (``cuda``, ``cuda:1``); None where torch shall make it."""
    if not location.startswith("cuda") or not torch.cuda.is_available() or storage.nbytes() == 0:
        return None
    stagings = _stagings()
    try:
        device = torch.device(location)
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in stagings:
            stagings[device] = Staging(device)
        return stagings[device].copy(storage)
    except (RuntimeError, AssertionError):
        return None  # no such device, no pinned memory: torch's own way either works or says why not


def tensor_to(tensor: torch.Tensor, location: str) -> torch.Tensor:
    """A tensor on the device that `location` names, by `to_cuda` where that is one of CUDA's."""
    moved = to_cuda(tensor.untyped_storage(), location) if tensor.device.type == "cpu" else None
    if moved is None:
        return tensor.to(location)
    found = torch.empty(0, dtype=tensor.dtype, device=moved.device)
    return found.set_(moved, tensor.storage_offset(), tensor.size(), tensor.stride())


def finish() -> None:
    """After a load: wait for the devices, and let go of the buffers that this thread used."""
    stagings = _stagings()
    while stagings:
        stagings.popitem()[1].wait()
