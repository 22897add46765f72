"""What `strongroom.torch` promises, each as a function; run in a process of their own by test_torch.py.

torch and the Rego engine cannot live in one process, and the suite's process may have met the latter.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest
import strongroom
import strongroom.torch
import torch
from strongroom.archive.signature import AuthorKey
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import AuthorUnknown, SealRefused, WrongKey
from strongroom.keeper.room import OpenRoom
from strongroom.keys import ModelKey
from strongroom.torch import staging

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


def a_file_with_the_checkpoints_own_name_is_refused_and_not_dropped(folder):
    (folder / "other.pt").write_bytes(b"x")
    with pytest.raises(SealRefused, match="own name"):
        strongroom.torch.save({}, folder / "c.mar", author=AUTHOR, files={"model.pt": folder / "other.pt"})


def a_file_whose_name_clashes_with_the_checkpoints_is_refused(folder):
    (folder / "other.pt").write_bytes(b"x")
    for name in ("Model.pt", "model.pt/x"):
        with pytest.raises(SealRefused, match="cannot be sealed as it is"):
            strongroom.torch.save({}, folder / "c.mar", author=AUTHOR, files={name: folder / "other.pt"})
    assert not (folder / "c.mar").exists()


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


# -- the way to a device, as far as it goes without one --------------------------------------------


def pieces_cover_everything_in_order_and_take_turns(folder):
    for nbytes in (0, 1, 99, 100, 101, 200, 250, 1000):
        plan = list(staging.pieces(nbytes, size=100, lanes=2))
        assert [each.offset for each in plan] == list(range(0, nbytes, 100))
        assert sum(each.size for each in plan) == nbytes
        assert all(1 <= each.size <= 100 for each in plan)
        assert [each.lane for each in plan] == [number % 2 for number in range(len(plan))]


class SlowLane:
    """A device that reads its buffer late, as a real one does: whoever fills the buffer too early spoils the copy."""

    def __init__(self, size, journal):
        self.buffer, self.journal, self.transfer = torch.empty(size, dtype=torch.uint8), journal, None

    def wait(self):
        if self.transfer is not None:
            self.transfer.join()
            self.transfer = None

    def send(self, size, target):
        def late():
            time.sleep(0.02)
            target.copy_(self.buffer[:size])

        assert self.transfer is None
        self.journal.append((id(self), size))
        self.transfer = threading.Thread(target=late)
        self.transfer.start()


def what_goes_through_two_buffers_arrives_whole_while_both_are_busy(folder):
    for nbytes in (1, 4096, 4097, 10 * 4096, 10 * 4096 + 17):
        source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
        target, journal = torch.zeros(nbytes, dtype=torch.uint8), []
        lanes = [SlowLane(4096, journal) for _ in range(2)]
        staging.through(lanes, source, target)
        busy = sum(each.transfer is not None for each in lanes)
        assert busy == min(2, -(-nbytes // 4096)), "the buffers did not take turns"
        for each in lanes:
            each.wait()
        assert torch.equal(source, target)
        assert sum(size for _, size in journal) == nbytes
        assert all(first != second for (first, _), (second, _) in itertools.pairwise(journal))


def the_default_holds_two_buffers_of_32_mebibytes_whatever_the_size(folder):
    plan = list(staging.pieces(80 << 30))
    assert len(plan) == 80 * 32
    assert {each.lane for each in plan} == {0, 1}
    assert max(each.size for each in plan) == 32 << 20


def without_a_device_torch_says_so_in_its_own_words_and_the_room_stays_usable(folder):
    if torch.cuda.is_available():
        return  # gpu_cases.py has the other half
    _, sealed = sealed_checkpoint(folder)
    path = weights_path(room_of(sealed))
    strongroom.torch.map_models()
    for location in ("cuda", "cuda:1", torch.device("cuda"), {"cpu": "cuda:0"}):
        with pytest.raises(RuntimeError, match=r"torch.cuda.is_available\(\) is False"):
            torch.load(path, map_location=location)
    assert torch.load(path, map_location="cpu")["bias"].tolist() == [1] * 7


def only_what_lies_in_a_room_goes_our_way_to_a_device(folder):
    asked = []
    plain, staging.to_cuda = staging.to_cuda, lambda storage, location: asked.append(location) or storage
    try:
        strongroom.torch.map_models()
        torch.save({"x": torch.ones(3)}, folder / "plain.pt")
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError):
                torch.load(folder / "plain.pt", map_location="cuda:0")
        assert asked == []
        _, sealed = sealed_checkpoint(folder)
        path = weights_path(room_of(sealed))
        for location in ("cuda:0", torch.device("cuda:0"), {"cpu": "cuda:0"}):
            asked.clear()
            torch.load(path, map_location=location)
            assert asked == ["cuda:0", "cuda:0"]
        asked.clear()
        torch.load(path)
        assert asked == []
    finally:
        staging.to_cuda = plain


def a_safetensors_member_of_an_open_archive_is_a_state_dict(folder):
    from safetensors.torch import save

    state = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    model = folder / "toy"
    (model / "MAR-INF").mkdir(parents=True)
    described = {"modelName": "toy", "modelVersion": "1.0", "handler": "toy.py", "serializedFile": "model.safetensors"}
    (model / "MAR-INF/MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": described}))
    (model / "toy.py").write_text("# code\n")
    (model / "model.safetensors").write_bytes(save(state))
    AUTHOR.save(folder / "author.key")
    AUTHOR.public.save(folder / "author.pub")
    sealed = strongroom.seal(model, folder / "toy.mar", author=folder / "author.key")
    with strongroom.open_archive(sealed.path, sealed.key, authors=[folder / "author.pub"]) as archive:
        loaded = archive.load_state_dict("model.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def a_checkpoint_with_a_handler_is_an_archive_that_a_launcher_admits(folder):
    from strongroom.launch.admission import Gate
    from strongroom.launch.config import Admission

    AUTHOR.public.save(folder / "author.pub")
    (folder / "serve.py").write_text("def handle(data, context): ...\n")
    sealed = strongroom.torch.save(
        {"x": torch.ones(3)}, folder / "last.mar", author=AUTHOR, name="last", version=3,
        files={"serve.py": folder / "serve.py"}, manifest={"handler": "serve.py"},
    )  # fmt: skip
    (folder / "fronts").mkdir()
    [admitted] = Gate(Admission((folder / "author.pub",), {}, False)).admit({"last": sealed.path}, folder / "fronts")
    assert (admitted.archive, admitted.lineage, admitted.version) == (sealed.digest, "last", 3)
    with strongroom.open_archive(sealed.path, sealed.key, authors=[AUTHOR.public]) as archive:
        assert json.load(archive["MAR-INF/MANIFEST.json"])["model"]["handler"] == "serve.py"
        assert torch.equal(archive.load_state_dict("model.pt")["x"], torch.ones(3))


def a_safetensors_file_heeds_where_it_shall_go(folder):
    from safetensors.torch import save

    descriptor = os.memfd_create("strongroom", os.MFD_ALLOW_SEALING)
    os.write(descriptor, save({"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}))
    for location in (None, "cpu", torch.device("cpu")):
        loaded = strongroom.torch.load_state(descriptor, "x.safetensors", map_location=location)
        assert loaded["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded["b"].dtype == torch.float16
    with pytest.raises((RuntimeError, AssertionError)):
        strongroom.torch.load_state(descriptor, "x.safetensors", map_location="cuda:7")


def is_case(value) -> bool:
    """A function with the one argument `folder`, of the module that runs and not of one it imports."""
    if getattr(value, "__module__", "") != "__main__" or "return" in getattr(value, "__annotations__", {}):
        return False
    code = getattr(value, "__code__", None)
    return code is not None and code.co_argcount == 1 and code.co_varnames[:1] == ("folder",)


def run_cases(names) -> None:
    """Every case among `names`, each in a folder of its own; prints what went wrong by name, as JSON."""
    results = {}
    for case in [value for value in list(names.values()) if is_case(value)]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                case(Path(folder))
                results[case.__name__] = ""
            except BaseException:
                results[case.__name__] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    run_cases(globals())
