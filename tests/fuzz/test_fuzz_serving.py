"""Runs each target of `fuzz_serving` for a while, from seeds made of valid input."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cbor2
import pytest
from strongroom.channel.problems import KEY_UNKNOWN
from strongroom.client.grpc_inference import _field

SCRIPT = Path(__file__).with_name("fuzz_serving.py")
SECONDS = int(os.environ.get("STRONGROOM_FUZZ_SECONDS", "120"))
PART = b'--B\r\nContent-Disposition: form-data; name="j"; filename="j"\r\nContent-Type: application/json\r\n\r\n'
PART += b'{"k":1}\r\n'


def rows():
    yield b"multipart/form-data; boundary=B\n" + PART + PART + b"--B--\r\n"
    yield b'multipart/form-data; boundary="B"\n--B\r\nContent-Disposition: form-data; name=f\r\n\r\nplain\r\n--B--\r\n'
    yield b"application/x-www-form-urlencoded\na=1&a=2&b=%C3%A9&c=\r\nd=5"
    yield b'application/json; charset=utf-8\n{"x": [1, "\\ud800"]}'
    yield "text/plain\nhé".encode()


def answers():
    yield _field(1, KEY_UNKNOWN.serialise())
    yield _field(1, bytes(300))
    yield KEY_UNKNOWN.serialise()


def frames():
    """Questions as docs/keeper.md lists them; the first byte says that one is framed, and after a claim."""
    head = bytes.fromhex("00002000010001")
    questions = [
        {"op": "claim", "archive": bytes(32)},
        {"op": "open", "heads": [[head, bytes(32), False]], "settled": [[bytes(16), True, 1_795_824_010]]},
        {"op": "settle", "settled": [[bytes(16), False, None]]},
        {"op": "model", "wait": 0},
        {"op": "bundle", "nonce": bytes(32)},
        *({"op": op} for op in ("status", "settings", "held")),
    ]
    yield from (b"\x02" + cbor2.dumps(each) for each in questions)
    framed = [cbor2.dumps(each) for each in questions]
    yield b"\x01" + b"".join(len(each).to_bytes(4, "big") + each for each in framed)


SEEDS = {"row": rows, "grpc_answer": answers, "keeper_frame": frames}


@pytest.mark.long
@pytest.mark.parametrize("target", SEEDS)
def test_no_input_breaks_a_parser(target, tmp_path):
    pytest.importorskip("atheris", reason="SKIPPED LOUDLY: atheris is not installed")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[target]()):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-max_total_time={SECONDS}", "-max_len=3000", "-print_final_stats=1", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, str(SCRIPT), target, *options, str(corpus)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    executed = re.search(r"number_of_executed_units: (\d+)", ran.stderr)
    assert executed and int(executed[1]) > 1000
    print(f"{target}: {executed[1]} inputs in {SECONDS} s")
