"""A client on npm's HPKE, X-Wing and Binary HTTP packages talks to our server, and finds it in order."""

from __future__ import annotations

import pytest
from doubles.sealed_server import SealedServer, Stream
from interop.node import install
from strongroom.channel.bhttp import Response


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return install(tmp_path_factory.mktemp("node"))


@pytest.mark.parametrize("kem", ["xwing", "x25519"])
@pytest.mark.parametrize("form", ["single", "chunked"])
def test_a_round_trip_with_implementations_that_others_wrote(client, form, kem):
    with SealedServer(
        model=lambda request: Response(207, (("content-type", "text/x"),), request.content + b"!")
    ) as server:
        answer = client(server.url, form, kem, "Grüße, 7")
    assert (answer["status"], answer["type"], answer["body"]) == (207, "text/x", "Grüße, 7!")
    inner = server.opened[0]
    assert (inner.method, inner.path, inner.content.decode()) == ("POST", "/predictions/digits", "Grüße, 7")


@pytest.mark.parametrize("kem", ["xwing", "x25519"])
def test_a_stream_opens_piece_by_piece(client, kem):
    pieces = [b"data: 1\n\n", b"data: 22\n\n"]
    with SealedServer(
        model=lambda request: Stream(200, (("content-type", "text/event-stream"),), iter(pieces))
    ) as server:
        answer = client(server.url, "chunked", kem, "x")
    assert answer["body"] == "data: 1\n\ndata: 22\n\n"
    assert answer["pieces"][1:] == [10, 11, 2, 0]
