"""What `strongroom.torch` promises, each as a function; run in a process of their own by test_torch.py.

torch and the Rego engine cannot live in one process, and the suite's process may have met the latter.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

import strongroom.torch
import torch
from strongroom.archive.signature import AuthorKey
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import AuthorUnknown, WrongKey
from strongroom.keeper.room import OpenRoom
from strongroom.keys import ModelKey

AUTHOR = AuthorKey.generate()


def sealed_checkpoint(folder: Path, state=None):
    state = {"weight": torch.arange(3_000_000, dtype=torch.float32), "bias": torch.ones(7)} if state is None else state
    return state, strongroom.torch.save(state, folder / "checkpoint.mar", author=AUTHOR)


def room_of(sealed) -> OpenRoom:
    with SealedArchive.open(sealed.path) as archive:
        return OpenRoom.open(archive.verified([AUTHOR.public], now=datetime.now(UTC)).unlock(sealed.key))


def weights_path(room: OpenRoom) -> str:
    return next(f"/proc/self/fd/{file.descriptor}" for file in room.files if file.name == "model.pt")


def a_checkpoint_saved_sealed_loads_equal(folder):
    state, sealed = sealed_checkpoint(folder)
    loaded = strongroom.torch.load(sealed.path, sealed.key, authors=[AUTHOR.public])
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def no_plaintext_of_a_checkpoint_is_on_the_disk(folder):
    state, _ = sealed_checkpoint(folder)
    needle = state["weight"].numpy().tobytes()[4000:4064]
    assert all(needle not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def another_key_and_another_author_are_refused(folder):
    _, sealed = sealed_checkpoint(folder)
    for key, author, error in (
        (ModelKey.generate(), AUTHOR.public, WrongKey),
        (sealed.key, AuthorKey.generate().public, AuthorUnknown),
    ):
        try:
            strongroom.torch.load(sealed.path, key, authors=[author])
        except error:
            continue
        raise AssertionError(f"{error.__name__} was expected")


def torch_load_of_a_room_file_maps_instead_of_copying(folder):
    _, sealed = sealed_checkpoint(folder)
    room = room_of(sealed)
    strongroom.torch.map_models()
    loaded = torch.load(weights_path(room))
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:strongroom" in maps, "the weights were copied"
    start = loaded["weight"].untyped_storage().data_ptr()
    assert any(
        int(line.split("-")[0], 16) <= start < int(line.split("-")[1].split()[0], 16)
        for line in maps.splitlines()
        if "memfd:strongroom" in line
    )


def a_mapping_begins_at_two_mebibytes(folder):
    _, sealed = sealed_checkpoint(folder)
    room = room_of(sealed)
    strongroom.torch.map_models()
    path = weights_path(room)
    storage = torch.UntypedStorage.from_file(path, False, os.stat(path).st_size)
    assert storage.data_ptr() % (2 << 20) == 0


def writing_to_a_mapped_tensor_changes_nobody_elses(folder):
    _, sealed = sealed_checkpoint(folder)
    room = room_of(sealed)
    strongroom.torch.map_models()
    first, second = (torch.load(weights_path(room))["weight"] for _ in range(2))
    first.zero_()
    assert float(second[5]) == 5.0


def a_mapped_tensor_outlives_its_room(folder):
    _, sealed = sealed_checkpoint(folder)
    weight = strongroom.torch.load(sealed.path, sealed.key, authors=[AUTHOR.public])["weight"]
    assert float(weight.sum()) > 0


def other_loads_go_on_as_before(folder):
    strongroom.torch.map_models()
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(3)}, buffer)
    buffer.seek(0)
    assert torch.load(buffer)["x"].tolist() == [1, 1, 1]
    torch.save({"x": torch.ones(3)}, folder / "plain.pt")
    assert torch.load(folder / "plain.pt")["x"].tolist() == [1, 1, 1]
    torch.save({"x": torch.ones(3)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.load(folder / "old.pt")["x"].tolist() == [1, 1, 1]


def a_scripted_model_loads_from_a_room(folder):
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    descriptor = os.memfd_create("strongroom", os.MFD_ALLOW_SEALING)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Twice()), buffer)
    os.write(descriptor, buffer.getvalue())
    strongroom.torch.map_models()
    assert torch.jit.load(f"/proc/self/fd/{descriptor}")(torch.ones(1)).tolist() == [2]


def is_case(value) -> bool:
    code = getattr(value, "__code__", None)
    return code is not None and code.co_argcount == 1 and code.co_varnames[:1] == ("folder",)


CASES = [value for value in list(globals().values()) if is_case(value)]


def main() -> None:
    results = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                case(Path(folder))
                results[case.__name__] = ""
            except BaseException:
                results[case.__name__] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
