"""The last checkpoint of a training becomes a served archive without ever having been plaintext on a disk."""

from __future__ import annotations

import subprocess
import sys

import pytest
import requests
from doubles.hunted import HuntedStage
from strongroom.client.adapter import SealedAdapter

pytestmark = pytest.mark.journey

TRAIN = """
import sys
from pathlib import Path

import strongroom.torch
import torch
from strongroom.archive.signature import AuthorKey
from strongroom.cli.sealing import holder

owner, output, broker = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
(owner / "serve.py").write_text(
    "import os, torch\\n"
    "weight = None\\n"
    "def handle(data, context):\\n"
    "    global weight\\n"
    "    if data is None:\\n"
    "        weight = torch.load(os.path.join(context.system_properties['model_dir'], 'model.pt'))['weight']\\n"
    "        return None\\n"
    "    return [str(int(weight[int(each.get('body') or each.get('data'))])) for each in data]\\n"
)
model = torch.nn.Module()
model.weight = torch.nn.Parameter(torch.arange(500_000, dtype=torch.float32) * 7)
strongroom.torch.save(
    model.state_dict(), output, author=AuthorKey.load(owner / "author.key"), name="last", version=3,
    files={"serve.py": owner / "serve.py"}, manifest={"handler": "serve.py"},
    before_publish=holder(broker, owner / "broker" / "admin.key", None, output=output, version=3),
)
sys.stdout.buffer.write(model.weight.detach().numpy().tobytes()[4000:4064])
"""


@pytest.fixture(scope="module")
def trained():
    """A stage that serves a checkpoint, and a piece of its weights."""
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.start_broker()
        (stage.host / "model_store").mkdir()
        output = stage.host / "model_store" / "last.mar"
        command = [sys.executable, "-c", TRAIN, str(stage.owner), str(output), stage.broker_url]
        piece = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
        stage.hunt.add("weights of the checkpoint", piece)
        stage.models.append("last")
        stage.start_server(models=("last=last.mar",))
        stage.wait_until_ready(2, model="last")
        yield stage, piece
    finally:
        stage.close()


def test_the_last_checkpoint_is_served(trained):
    stage, _ = trained
    session = requests.Session()
    session.mount(stage.url, SealedAdapter(policy=stage.client_policy()))
    answer = session.post(f"{stage.url}/predictions/last", data=b"1234", timeout=60)

    assert (answer.status_code, answer.text) == (200, "8638"), stage.log_tail()


def test_nothing_of_it_lies_readable_on_either_side(trained):
    stage, piece = trained
    places = [path for place in (stage.owner, *stage.host_places()) for path in place.rglob("*") if path.is_file()]

    assert len(piece) == 64
    assert all(piece not in path.read_bytes() for path in places)
