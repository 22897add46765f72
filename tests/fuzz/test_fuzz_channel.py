"""Runs each target of `fuzz_channel` for a while, from seeds made of valid messages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from strongroom.broker.epochs import EpochSeed
from strongroom.channel.bhttp import Request, RequestHead, RequestWriter, Response, ResponseWriter
from strongroom.channel.bundle import (
    AdmittedArchive,
    BundleEvidence,
    BundleParts,
    KeyBundle,
    KeysRequest,
    ServedModel,
)
from strongroom.channel.keyset import KeySet
from strongroom.channel.problems import KEY_UNKNOWN
from strongroom.keys import ArchiveDigest, AuthorId

SCRIPT = Path(__file__).with_name("fuzz_channel.py")
TARGETS = ["request", "response", "portions", "key_list", "head", "context", "chunks", "sealed_message", "bundle"]
TARGETS += ["small_json", "noise", "answer", "endpoint", "seed"]
SECONDS = int(os.environ.get("STRONGROOM_FUZZ_SECONDS", "120"))
DIGEST = ArchiveDigest(bytes(range(32)))
PARTS = BundleParts(
    ohttp_keys=KeySet().ohttp_keys,
    not_before=1_800_000_000,
    not_after=1_800_003_600,
    model=ServedModel("digits", "1.0", DIGEST),
    admitted=(AdmittedArchive(DIGEST, AuthorId(bytes(32)), "digits", 1),),
    configuration=bytes(32),
    plugins=bytes(32),
    mode="fleet",
    nonce=bytes(32),
)


def seeds():
    headers = (("content-type", "text/plain"), ("x-a", "b"))
    request, writer = Request("POST", "https", "h", "/p?x=1", headers, b"content", headers), RequestWriter()
    yield request.serialise()
    yield (
        writer.start(RequestHead("POST", "https", "h", "/p", headers)) + writer.content(b"one") + writer.finish(headers)
    )
    yield Response(200, headers, b"content").serialise()
    yield ResponseWriter().head(200, headers) + ResponseWriter().content(b"one") + ResponseWriter().finish()
    yield KeySet().ohttp_keys
    yield KeysRequest(bytes(32)).serialise()
    yield KEY_UNKNOWN.serialise()
    yield bytes.fromhex("000020000100011c") + bytes(60)
    yield b"http://user@host:8080/front/predictions/digits/1.0?a=b"
    yield b"https://[::1]/invocations?model_name=m%2f&x=1"
    yield EpochSeed.make(
        Ed25519PrivateKey.from_private_bytes(bytes(32)), DIGEST, 20_785, bytes(32), 1_795_824_010
    ).serialise()
    yield KeyBundle(PARTS, BundleEvidence("simulated", {"a": [1, "b"]})).serialise()


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_a_parser(target, tmp_path):
    pytest.importorskip("atheris", reason="SKIPPED LOUDLY: atheris is not installed")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-max_total_time={SECONDS}", "-max_len=3000", "-print_final_stats=1", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, str(SCRIPT), target, *options, str(corpus)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    executed = re.search(r"number_of_executed_units: (\d+)", ran.stderr)
    assert executed and int(executed[1]) > 1000
    print(f"{target}: {executed[1]} inputs in {SECONDS} s")
