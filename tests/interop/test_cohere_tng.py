"""cohere-tng's Oblivious HTTP (Rust, chunked, X25519) talks to our server through a shim around its wrapper."""

from __future__ import annotations

import httpx
import pytest
from doubles.sealed_server import SealedServer, Stream
from interop.tng_shim import TngShim
from strongroom.channel.bhttp import Response
from strongroom.channel.kem import X25519
from strongroom.channel.ohttp import RequestHead

cohere_tng = pytest.importorskip("cohere_tng", reason="SKIPPED LOUDLY: cohere-tng is not installed")


@pytest.fixture
def client():
    with httpx.Client(transport=cohere_tng.Transport(verify=None), timeout=20) as running:
        yield running


def test_a_round_trip_with_a_client_that_others_wrote(client):
    model = lambda request: Response(207, (("content-type", "text/x"), ("x-two", "2")), request.content + b"!")  # noqa: E731
    with SealedServer(model=model) as server, TngShim(server.url) as shim:
        answer = client.post(shim.origin + "/predictions/digits?x=1", content=b"seven", headers={"X-Mine": "1"})
        assert (answer.status_code, answer.content, answer.headers["x-two"]) == (207, b"seven!", "2")
        inner = server.opened[0]
        assert (inner.method, inner.path, inner.header("x-mine")) == ("POST", "/predictions/digits?x=1", "1")
        assert RequestHead.parse(server.sealed[0])[0].kem_id == X25519
        assert server.keys.keys.configs[1].public_key in shim.hints[0]


def test_many_chunks_both_ways(client):
    body = bytes(range(256)) * 400
    with (
        SealedServer(model=lambda request: Response(200, (), request.content[::-1])) as server,
        TngShim(server.url) as shim,
    ):
        answer = client.post(
            shim.origin + "/predictions/digits", content=(body[at : at + 5000] for at in range(0, len(body), 5000))
        )
        assert answer.content == body[::-1]


def test_a_stream_of_ours_is_read_piece_by_piece(client):
    pieces = [b"data: 1\n\n", b"data: 22\n\n", b"data: 333\n\n"]
    with (
        SealedServer(model=lambda request: Stream(200, (), iter(pieces))) as server,
        TngShim(server.url) as shim,
        client.stream("POST", shim.origin + "/predictions/digits", content=b"x") as answer,
    ):
        assert b"".join(answer.iter_raw()) == b"".join(pieces)
