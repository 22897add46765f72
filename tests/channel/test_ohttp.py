"""Oblivious HTTP, single-shot and chunked, against every vector and against its own two sides."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import Request, Response
from strongroom.channel.hpke import RecipientContext
from strongroom.channel.kem import KEMS, P256, X25519, XWING
from strongroom.channel.keylist import KeyConfig
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import EncapsulationInvalid, KeyUnknown, StreamTruncated


def unhexed(value):
    if isinstance(value, dict):
        return {
            name: each if name in ("name", "source", "encoding", "warning", "use") else unhexed(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [unhexed(each) for each in value]
    return bytes.fromhex(value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def rfc9458(shared_vectors):
    return unhexed(json.loads((shared_vectors / "rfc9458.json").read_text()))


@pytest.fixture(scope="module")
def draft(shared_vectors):
    return unhexed(json.loads((shared_vectors / "chunked-ohttp.json").read_text()))


@pytest.fixture(scope="module")
def suites(shared_vectors):
    return unhexed(json.loads((shared_vectors / "ohttp-suites.json").read_text()))["vectors"]


def received(vector, message, form):
    """(context, enc, ciphertext) as a server with the vector's key gets them."""
    head, enc, ciphertext = RequestHead.parse(message)
    assert (head.key_id, head.kem_id) == (vector["key_id"], vector["kem_id"])
    assert (head.kdf_id, head.aead_id) == (vector["kdf_id"], vector["aead_id"])
    key = KEMS[head.kem_id].private_key(vector["skR"])
    return RecipientContext.setup(head.suite, key, enc, head.info(form)), enc, ciphertext


def test_the_rfc_example_is_reproduced_in_both_directions(rfc9458):
    config = KeyConfig.parse(rfc9458["key_config"])
    assert config.serialise() == rfc9458["key_config"]
    assert KEMS[X25519].private_key(rfc9458["skR"]).public_octets == rfc9458["pkR"]
    message, opener = ohttp.encapsulate(config, (1, 1), rfc9458["request"], ephemeral=rfc9458["skE"])
    assert message == rfc9458["encapsulated_request"]
    context, enc, ciphertext = received(rfc9458, message, Form.SINGLE)
    assert enc == rfc9458["enc"]
    assert ohttp.open_request(context, ciphertext) == rfc9458["request"]
    assert context.export(Form.SINGLE.response_label, 16) == rfc9458["secret"]
    answer = ohttp.seal_response(context, enc, rfc9458["response"], nonce=rfc9458["response_nonce"])
    assert answer == rfc9458["encapsulated_response"]
    assert opener.open(answer) == rfc9458["response"]
    derived = ohttp.ResponseKey.derive(context, Form.SINGLE, enc, rfc9458["response_nonce"])
    assert (derived.key, derived.nonce) == (rfc9458["aead_key"], rfc9458["aead_nonce"])


def test_the_draft_example_is_reproduced_in_both_directions(draft):
    sealer = chunked.RequestSealer(KeyConfig.parse(draft["key_config"]), (1, 1), ephemeral=draft["skE"])
    message = sealer.front
    for chunk in draft["request_chunks"]:
        framed = sealer.finish(chunk["plaintext"]) if chunk["final"] else sealer.seal(chunk["plaintext"])
        assert framed == chunk["framed"]
        message += framed
    assert message == draft["encapsulated_request"]
    context, enc, ciphertext = received(draft, message, Form.CHUNKED)
    assert chunked.open_request(context, ciphertext) == draft["request"]
    answer = chunked.ResponseSealer(context, enc, nonce=draft["response_nonce"])
    assert answer.front == draft["response_nonce"]
    opener = sealer.response_opener()
    assert opener.feed(answer.front) == []
    for chunk in draft["response_chunks"]:
        framed = answer.finish(chunk["plaintext"]) if chunk["final"] else answer.seal(chunk["plaintext"])
        assert framed == chunk["framed"]
        assert b"".join(opener.feed(framed)) == chunk["plaintext"]
    assert opener.finish() == b""


@pytest.mark.parametrize("number", range(8))
def test_every_suite_on_offer_reproduces_its_vector(suites, number):
    vector = suites[number]
    key = KEMS[vector["kem_id"]].private_key(vector["skR"])
    config = KeyConfig.parse(vector["key_config"])
    assert config.serialise() == vector["key_config"] and config.public_key == key.public_octets

    single = vector["single"]
    context, enc, ciphertext = received(vector, single["encapsulated_request"], Form.SINGLE)
    assert ohttp.open_request(context, ciphertext) == vector["request"]
    sealed = ohttp.seal_response(context, enc, vector["response"], nonce=single["response_nonce"])
    assert sealed == single["encapsulated_response"]

    stream = vector["chunked"]
    context, enc, ciphertext = received(vector, stream["encapsulated_request"], Form.CHUNKED)
    assert chunked.open_request(context, ciphertext) == vector["request"]
    answer = chunked.ResponseSealer(context, enc, nonce=stream["response_nonce"])
    *pieces, last = stream["response_plaintext_chunks"]
    sealed = answer.front + b"".join(map(answer.seal, pieces)) + answer.finish(last)
    assert sealed == stream["encapsulated_response"]


@pytest.mark.parametrize("number", range(5))
def test_a_client_reproduces_the_suites_whose_ephemeral_key_is_known(suites, number):
    vector = suites[number]
    config, pair = KeyConfig.parse(vector["key_config"]), (vector["kdf_id"], vector["aead_id"])
    message, opener = ohttp.encapsulate(config, pair, vector["request"], ephemeral=vector["skE"])
    assert message == vector["single"]["encapsulated_request"]
    assert opener.open(vector["single"]["encapsulated_response"]) == vector["response"]

    sealer = chunked.RequestSealer(config, pair, ephemeral=vector["skE"])
    request = vector["request"]
    pieces = [request[at : at + 40] for at in range(0, len(request), 40)]
    message = sealer.front + b"".join(map(sealer.seal, pieces[:-1])) + sealer.finish(pieces[-1])
    if message != vector["chunked"]["encapsulated_request"]:  # the vector may end in an empty final chunk
        sealer = chunked.RequestSealer(config, pair, ephemeral=vector["skE"])
        message = sealer.front + b"".join(map(sealer.seal, pieces)) + sealer.finish()
    assert message == vector["chunked"]["encapsulated_request"]
    opener = sealer.response_opener()
    stream = vector["chunked"]
    opened = [*opener.feed(stream["encapsulated_response"]), opener.finish()]
    assert b"".join(opened) == b"".join(stream["response_plaintext_chunks"])


KEYS = KeySet((XWING, X25519, P256))


def exchange(config, pair, plaintext):
    """A request through both sides: (what the server opened, its context, enc, the client's opener)."""
    message, opener = ohttp.encapsulate(config, pair, plaintext)
    head, enc, ciphertext = RequestHead.parse(message)
    context = RecipientContext.parse(KEYS.decapsulate(head, enc, Form.SINGLE).serialise())
    return ohttp.open_request(context, ciphertext), context, enc, opener


@pytest.mark.parametrize("config", KEYS.keys.configs, ids=lambda config: KEMS[config.kem_id].name)
def test_every_pair_on_offer_makes_a_round_trip(config):
    for pair in config.pairs:
        request = Request("POST", "https", "h", "/predictions/m", (), b"a scan")
        opened, context, enc, opener = exchange(config, pair, request.serialise())
        assert Request.parse(opened) == request
        response = Response(200, (), b"5")
        assert Response.parse(opener.open(ohttp.seal_response(context, enc, response.serialise()))) == response


def test_a_response_does_not_open_the_request_of_somebody_else():
    config = KEYS.keys.configs[0]
    _, context, enc, _ = exchange(config, config.pairs[0], b"one")
    *_, other = exchange(config, config.pairs[0], b"two")
    with pytest.raises(EncapsulationInvalid):
        other.open(ohttp.seal_response(context, enc, b"answer"))


def test_two_responses_to_one_request_differ_and_both_open():
    config = KEYS.keys.configs[0]
    _, context, enc, opener = exchange(config, config.pairs[0], b"one")
    first, second = (ohttp.seal_response(context, enc, b"answer") for _ in range(2))
    assert first != second
    assert opener.open(first) == opener.open(second) == b"answer"


def test_a_plain_request_does_not_open_as_a_chunked_one_nor_the_reverse():
    config = KEYS.keys.configs[1]
    message, _ = ohttp.encapsulate(config, config.pairs[0], b"one")
    head, enc, ciphertext = RequestHead.parse(message)
    with pytest.raises((EncapsulationInvalid, StreamTruncated)):
        chunked.open_request(KEYS.decapsulate(head, enc, Form.CHUNKED), b"\x00" + bytes(ciphertext))
    sealer = chunked.RequestSealer(config, config.pairs[0])
    head, enc, _ = RequestHead.parse(sealer.front)
    with pytest.raises(EncapsulationInvalid):
        ohttp.open_request(KEYS.decapsulate(head, enc, Form.SINGLE), sealer.finish(b"one")[1:])


def test_a_pair_that_is_not_on_offer_is_refused_on_both_sides():
    config = KEYS.keys.configs[0]
    with pytest.raises(KeyUnknown):
        ohttp.encapsulate(config, (2, 2), b"one")
    message, _ = ohttp.encapsulate(config, config.pairs[0], b"one")
    message[3:5] = b"\x00\x02"  # HKDF-SHA384: computable, not offered
    head, enc, _ = RequestHead.parse(message)
    with pytest.raises(KeyUnknown):
        KEYS.decapsulate(head, enc, Form.SINGLE)


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("message/ohttp-req", Form.SINGLE),
        ("Message/OHTTP-Req; charset=utf-8", Form.SINGLE),
        ("message/ohttp-chunked-req", Form.CHUNKED),
        ("message/ohttp-res", None),
        ("application/json", None),
        ("", None),
    ],
)
def test_media_types_are_compared_without_parameters_and_case(said, form):
    assert Form.of_request(said) is form


def stream():
    """(client's opener, server's sealer) of one chunked exchange."""
    config = KEYS.keys.configs[0]
    sealer = chunked.RequestSealer(config, config.pairs[0])
    message = sealer.front + sealer.seal(b"request") + sealer.finish()
    head, enc, ciphertext = RequestHead.parse(message)
    context = KEYS.decapsulate(head, enc, Form.CHUNKED)
    assert chunked.open_request(context, ciphertext) == b"request"
    return sealer.response_opener(), chunked.ResponseSealer(context, enc)


def test_64_bytes_with_their_binary_http_length_become_84():
    _, server = stream()
    assert len(server.seal(b"\x40\x40" + bytes(64))) == 84


def test_a_long_piece_is_cut_into_chunks_of_16_kib():
    client, server = stream()
    sealed = server.seal(bytes(40_000))
    client.feed(server.front)
    assert [len(piece) for piece in client.feed(sealed)] == [16384, 16384, 7232]


def test_a_final_chunk_with_data_is_accepted():
    client, server = stream()
    assert client.feed(server.front + server.seal(b"one") + server.finish(b"two")) == [b"one"]
    assert client.finish() == b"two"


def test_an_empty_chunk_that_is_not_final_is_refused():
    client, server = stream()
    empty = chunked.varint(16) + server._keys.seal(b"", b"")
    with pytest.raises(EncapsulationInvalid, match="empty"):
        client.feed(server.front + empty)


def test_an_oversize_chunk_is_refused_before_it_arrives():
    client, server = stream()
    client.feed(server.front)
    with pytest.raises(EncapsulationInvalid, match="limit"):
        client.feed(chunked.varint(16384 + 17))


def test_an_oversize_final_chunk_is_refused():
    client, server = stream()
    client.feed(server.front + b"\x00")
    with pytest.raises(EncapsulationInvalid, match="final"):
        client.feed(bytes(16384 + 17))


def test_a_request_longer_than_the_limit_is_refused():
    config = KEYS.keys.configs[1]
    sealer = chunked.RequestSealer(config, config.pairs[0])
    message = sealer.front + sealer.seal(bytes(1001)) + sealer.finish()
    head, enc, ciphertext = RequestHead.parse(message)
    with pytest.raises(EncapsulationInvalid, match="1000"):
        chunked.open_request(KEYS.decapsulate(head, enc, Form.CHUNKED), ciphertext, limit=1000)


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=400), max_size=6), st.lists(st.integers(1, 60), max_size=40))
def test_portions_of_the_transport_do_not_matter(pieces, cuts):
    client, server = stream()
    octets = server.front + b"".join(map(server.seal, pieces)) + server.finish()
    at, opened = 0, []
    for cut in cuts:
        opened += client.feed(octets[at : at + cut])
        at += cut
    opened += client.feed(octets[at:])
    assert opened == pieces
    assert client.finish() == b""


@given(st.binary(max_size=80))
def test_any_bytes_parse_as_a_head_or_are_refused(octets):
    try:
        head, enc, rest = RequestHead.parse(octets)
    except (EncapsulationInvalid, KeyUnknown):
        return
    assert head.serialise() + enc + bytes(rest) == octets
