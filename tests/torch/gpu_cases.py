"""What `strongroom.torch` does with a real CUDA device; each function is a test of test_gpu.py."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import strongroom.torch
import torch
from torch_cases import room_of, run_cases, sealed_checkpoint, weights_path

LARGE = 192 << 20  # elements of four bytes: 768 MiB


def kib(name: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def large(folder) -> tuple[dict[str, torch.Tensor], str]:
    state = {"large": torch.arange(LARGE, dtype=torch.int32), "odd": torch.rand(100_003), "none": torch.empty(0)}
    _, sealed = sealed_checkpoint(folder, state)
    strongroom.torch.map_models()
    return state, weights_path(room_of(sealed))


def what_is_loaded_to_the_device_is_what_was_sealed(folder):
    state, path = large(folder)
    for location in ("cuda", "cuda:0", torch.device("cuda", 0), {"cpu": "cuda:0"}):
        loaded = torch.load(path, map_location=location)
        assert all(each.device.type == "cuda" for name, each in loaded.items() if name != "none")
        assert all(torch.equal(loaded[name].cpu(), state[name]) for name in state)
        del loaded


def it_can_be_used_at_once_on_the_present_stream(folder):
    _, path = large(folder)
    for _ in range(5):
        assert int(torch.load(path, map_location="cuda")["large"][-1]) == LARGE - 1
        total = torch.load(path, map_location="cuda")["large"].sum(dtype=torch.int64)
        assert int(total) == LARGE * (LARGE - 1) // 2


def no_second_copy_stays_or_stood_in_the_hosts_memory(folder):
    state, path = large(folder)
    del state
    torch.zeros(1, device="cuda")  # the context's own memory is there from here on
    torch.load(path, map_location="cuda")
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    before = kib("RssAnon")
    loaded = torch.load(path, map_location="cuda")
    grown = kib("VmHWM") - before - kib("RssFile") - kib("RssShmem")
    assert loaded["large"].is_cuda
    assert grown < 200 << 10, f"{grown} KiB more than the mapping itself"


def pinned_memory_is_bounded(folder):
    _, path = large(folder)
    stats = getattr(torch.cuda, "host_memory_stats", None)
    if stats is None:
        raise AssertionError("this torch does not count pinned memory; use 2.7 or newer")
    torch.cuda.reset_peak_host_memory_stats()
    torch.load(path, map_location="cuda")
    assert 0 < stats()["allocated_bytes.peak"] <= 2 * strongroom.torch.staging.SIZE


def two_threads_load_at_once_and_both_are_right(folder):
    state, path = large(folder)
    right = []

    def load():
        loaded = torch.load(path, map_location="cuda")
        right.append(torch.equal(loaded["large"].cpu(), state["large"]))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert right == [True, True]


def safetensors_go_the_same_way(folder):
    from safetensors.torch import save

    descriptor = os.memfd_create("strongroom", os.MFD_ALLOW_SEALING)
    tensors = {"a": torch.arange(1 << 22).reshape(2, -1), "b": torch.rand(7, dtype=torch.float16)}
    os.write(descriptor, save(tensors))
    loaded = strongroom.torch.load_state(descriptor, "x.safetensors", map_location="cuda")
    assert all(loaded[name].is_cuda and torch.equal(loaded[name].cpu(), tensors[name]) for name in tensors)


def no_file_is_written(folder):
    _, path = large(folder)
    before = set(Path("/tmp").rglob("*")) | set(Path("/dev/shm").rglob("*"))
    torch.load(path, map_location="cuda")
    assert set(Path("/tmp").rglob("*")) | set(Path("/dev/shm").rglob("*")) <= before


if __name__ == "__main__":
    run_cases(globals())
