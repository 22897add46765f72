"""Which URLs lead to a model; and that whatever a server seals, a client's stream gives a prefix or a typed error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom.channel import chunked
from strongroom.channel.bhttp import Limits, ResponseWriter
from strongroom.channel.kem import X25519
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.client.endpoint import Endpoint
from strongroom.client.exchange import ResponseStream
from strongroom.errors import EncapsulationInvalid, MessageInvalid, ServerUnsealed, StreamTruncated

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))


@given(st.text(max_size=60) | st.text(max_size=30).map("http://h/predictions/{}".format))
def test_any_text_is_an_endpoint_or_is_refused(text):
    try:
        found = Endpoint.parse(text)
    except ServerUnsealed:
        return
    assert Endpoint.parse(found.url) == found


@pytest.mark.parametrize(
    ("path", "front", "model"),
    [
        ("/v2/models/predictions/infer", "", "predictions"),
        ("/v2/models/explanations/explain", "", "explanations"),
        ("/gateway/v2/models/m/infer", "/gateway", "m"),
        ("/gateway/predictions/m", "/gateway", "m"),
        ("/v2/models/x/predictions/m", "/v2/models/x", "m"),
    ],
)
def test_a_path_is_read_as_the_server_reads_it_and_only_else_as_one_behind_a_gateway(path, front, model):
    found = Endpoint.parse("http://h" + path)
    assert (found.front, found.model) == (front, model)


@pytest.mark.parametrize(
    "url", ["http://[", "http://[::1", "http://a\u2100b/predictions/m", "", "predictions/m", "//h"]
)
def test_what_is_no_url_is_refused_with_an_example(url):
    with pytest.raises(ServerUnsealed) as refusal:
        Endpoint.parse(url)
    assert "http://" in refusal.value.hint


KEYS = KeySet((X25519,))
SENT = chunked.RequestSealer(KEYS.keys.configs[0], (1, 1))
HEAD, ENC, _ = RequestHead.parse(SENT.front)
CONTEXT = KEYS.decapsulate(HEAD, ENC, Form.CHUNKED)
LIMITS = Limits(section=500, lines=10, content=1000, control=500)


def sealed(pieces: list[bytes]) -> bytes:
    """A chunked answer of a server that seals whatever it likes."""
    sealer = chunked.ResponseSealer(CONTEXT, ENC)
    return sealer.front + b"".join(map(sealer.seal, pieces)) + sealer.finish()


PLAIN = ResponseWriter().head(200, (("content-type", "text/plain"),))


@given(
    st.lists(st.binary(min_size=1, max_size=200), max_size=4).map(lambda pieces: [PLAIN, *pieces])
    | st.lists(st.binary(min_size=1, max_size=200), max_size=4),
    st.integers(1, 70),
)
def test_whatever_a_server_seals_a_client_reads_it_or_refuses_it(pieces, step):
    stream, content = ResponseStream(SENT.response_opener(), LIMITS), b""
    body = sealed(pieces)
    with contextlib.suppress(EncapsulationInvalid, MessageInvalid, StreamTruncated):
        for at in range(0, len(body), step):
            content += b"".join(stream.feed(body[at : at + step]))
        content += b"".join(stream.finish())
    assert len(content) <= sum(map(len, pieces))
