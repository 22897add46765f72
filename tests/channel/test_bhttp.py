"""Binary HTTP against the figures of RFC 9292, its rules, and properties."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom.channel.bhttp import (
    Limits,
    MessageReader,
    Request,
    RequestHead,
    RequestWriter,
    Response,
    ResponseHead,
    ResponseWriter,
    Trailers,
)
from strongroom.channel.fields import end_to_end
from strongroom.channel.varint import MAX_VARINT, read_varint, varint
from strongroom.errors import MessageInvalid


@pytest.fixture(scope="module")
def vectors(shared_vectors):
    return json.loads((shared_vectors / "rfc9292.json").read_text())["vectors"]


def is_response(octets):
    indicator = read_varint(octets, 0)
    return indicator is not None and bool(indicator[0] & 1)


def parse(octets):
    return Response.parse(octets) if is_response(octets) else Request.parse(octets)


def described(message):
    """As the vector file writes a message, but for its framing."""
    lines = {
        "headers": [list(each) for each in message.headers],
        "content": message.content.hex(),
        "trailers": [list(each) for each in message.trailers],
    }
    if isinstance(message, Request):
        return lines | {name: getattr(message, name) for name in ("method", "scheme", "authority", "path")}
    informational = [[head.status, [list(each) for each in head.headers]] for head in message.informational]
    return lines | {"status": message.status, "informational": informational}


@pytest.mark.parametrize("number", range(43))
def test_a_vector_is_read_as_it_says_or_refused(vectors, number):
    vector = vectors[number]
    octets = bytes.fromhex(vector["hex"])
    if not vector["valid"]:
        with pytest.raises(MessageInvalid):
            parse(octets)
        return
    expected = dict(vector["decoded"])
    framing = expected.pop("framing")
    message = parse(octets)
    assert described(message) == expected
    rewritten = message.serialise()
    assert parse(rewritten) == message
    if framing < 2 and vector["name"].startswith("RFC 9292 Figure"):
        assert rewritten == octets


@pytest.mark.parametrize("number", range(43))
def test_a_vector_fed_byte_by_byte_ends_alike(vectors, number):
    vector = vectors[number]
    octets = bytes.fromhex(vector["hex"])

    def read():
        reader = MessageReader(response=is_response(octets))
        events = [event for at in range(len(octets)) for event in reader.feed(octets[at : at + 1])]
        return events + reader.finish()

    if not vector["valid"]:
        with pytest.raises(MessageInvalid):
            read()
        return
    events = read()
    assert b"".join(event for event in events if isinstance(event, bytes)) == parse(octets).content
    assert events[-1] == Trailers(parse(octets).trailers)


def test_no_vector_was_forgotten(vectors):
    assert len(vectors) == 43


def test_a_streamed_response_has_the_bytes_the_protocol_page_shows():
    writer = ResponseWriter()
    stream = [
        writer.head(200, (("content-type", "text/event-stream"),)),
        writer.content(b"data: a\n\n"),
        writer.content(b""),
        writer.content(b"data: b\n\n"),
        writer.finish(),
    ]
    assert stream[0].hex() == "0340c80c636f6e74656e742d7479706511746578742f6576656e742d73747265616d00"
    assert stream[1].hex() == "09646174613a20610a0a"
    assert stream[2] == b"" and stream[4] == b"\x00\x00"
    message = Response.parse(b"".join(stream))
    assert (message.status, message.content) == (200, b"data: a\n\ndata: b\n\n")


def test_a_streamed_request_reads_back_whole():
    writer = RequestWriter()
    head = RequestHead("POST", "https", "h", "/predictions/m?x=1", (("a", "b"),))
    octets = writer.start(head) + writer.content(b"12") + writer.content(b"3") + writer.finish((("t", "v"),))
    assert Request.parse(octets) == Request(
        "POST", "https", "h", "/predictions/m?x=1", (("a", "b"),), b"123", (("t", "v"),)
    )


def test_a_reader_gives_the_head_before_any_content_came():
    reader = MessageReader(response=True)
    assert reader.feed(ResponseWriter().head(404)) == [ResponseHead(404)]
    assert reader.feed(b"\x05ab") == [b"ab"]
    assert reader.feed(b"cde") == [b"cde"]
    assert not reader.complete
    assert reader.feed(b"\x00\x00") == [Trailers()]
    assert reader.complete and reader.finish() == []


def test_more_field_bytes_or_lines_than_the_limits_are_a_431():
    limits = Limits(section=100, lines=3, content=10)
    for headers in ((("a", "x" * 99),), tuple(("a", str(n)) for n in range(4))):
        message = Request("POST", "https", "h", "/p", headers)
        writer = RequestWriter()
        head = RequestHead("POST", "https", "h", "/p", headers)
        for octets in (message.serialise(), writer.start(head) + writer.finish()):
            with pytest.raises(MessageInvalid) as raised:
                Request.parse(octets, limits)
            assert raised.value.status == 431


def test_more_content_than_the_limit_is_a_413_before_it_arrives():
    limits = Limits(content=10)
    start = Request("POST", "https", "h", "/p").serialise()[:-2]
    for bomb in (varint(11), varint(MAX_VARINT)):
        with pytest.raises(MessageInvalid) as raised:
            MessageReader(response=False, limits=limits).feed(start + bomb)
        assert raised.value.status == 413
    writer = ResponseWriter()
    with pytest.raises(MessageInvalid) as raised:
        Response.parse(writer.head(200) + writer.content(b"123456") * 2 + writer.finish(), limits)
    assert raised.value.status == 413


def test_huge_declared_lengths_are_refused_without_waiting_for_them():
    head = RequestWriter().start(RequestHead("POST", "https", "h", "/p"))[:-1]
    for octets in (
        b"\x00" + varint(1 << 40),
        head + varint(1 << 40),
        Request("POST", "https", "h", "/p").serialise()[:-3] + varint(1 << 40),
    ):
        with pytest.raises(MessageInvalid) as raised:
            MessageReader(response=False).feed(octets)
        assert raised.value.status == 431


@pytest.mark.parametrize(
    "control",
    [
        ("", "https", "h", "/"),
        ("G ET", "https", "h", "/"),
        ("GET", "", "h", "/"),
        ("GET", "https", "h h", "/"),
        ("GET", "https", "h", ""),
        ("GET", "https", "h", "predictions"),
        ("GET", "https", "h", "/a b"),
        ("GET", "https", "h", "/a\r\nx"),
        ("GET", "https", "h", "*"),
        ("CONNECT", "https", "h", "/"),
    ],
)
def test_control_data_that_http2_forbids_is_neither_written_nor_read(control):
    with pytest.raises(MessageInvalid):
        Request(*control).serialise()
    raw = b"\x00" + b"".join(varint(len(each)) + each.encode() for each in control) + b"\x00\x00\x00"
    with pytest.raises(MessageInvalid):
        Request.parse(raw)


def test_a_field_that_cannot_be_read_is_not_written():
    for name, value in (
        ("a b", "c"),
        ("a", "b\r\nc"),
        ("a", " b"),
        (":path", "/"),
        ("a", "\u20ac"),
        ("", "x"),
        ("é", "x"),
    ):
        with pytest.raises(MessageInvalid):
            Response(200, ((name, value),)).serialise()


def test_no_message_of_an_error_quotes_the_plaintext():
    raw = Request("POST", "https", "h", "/p").serialise()[:-3] + b"\x0c\x01s\x09secret\r\n1\x00\x00"
    with pytest.raises(MessageInvalid) as raised:
        Request.parse(raw)
    assert "secret" not in str(raised.value)


def test_connection_fields_are_dropped_with_those_they_name():
    headers = (("connection", "close, X-Hop"), ("x-hop", "1"), ("te", "trailers"), ("x-kept", "2"))
    assert end_to_end(headers) == (("x-kept", "2"),)


names = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789-_.!"), min_size=1, max_size=70)
values = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=80).filter(
    lambda text: text.strip(" \t") == text and not set(text) & set("\r\n")
)
fields = st.lists(st.tuples(names, values), max_size=6).map(tuple)
requests = st.builds(
    Request,
    st.sampled_from(["GET", "POST", "PUT"]),
    st.sampled_from(["https", "http"]),
    st.sampled_from(["", "m.example", "m.example:8080"]),
    st.text(st.sampled_from("abc/?=&%20"), max_size=90).map(lambda text: "/" + text),
    fields,
    st.binary(max_size=300),
    fields,
)
responses = st.builds(
    Response,
    st.integers(200, 599),
    fields,
    st.binary(max_size=300),
    fields,
    st.lists(st.builds(ResponseHead, st.integers(100, 199), fields), max_size=2).map(tuple),
)


@given(requests | responses, st.integers(0, 70))
def test_whatever_is_written_reads_back_the_same(message, padding):
    assert type(message).parse(message.serialise(padding=padding)) == message


@given(responses, st.lists(st.integers(1, 40), max_size=30))
def test_portions_do_not_matter(message, cuts):
    octets, reader, at, events = message.serialise(), MessageReader(response=True), 0, []
    for cut in cuts:
        events += reader.feed(octets[at : at + cut])
        at += cut
    events += reader.feed(octets[at:])
    events += reader.finish()
    assert b"".join(event for event in events if isinstance(event, bytes)) == message.content
    heads = [event for event in events if isinstance(event, ResponseHead)]
    assert (heads[-1].status, heads[-1].headers) == (message.status, message.headers)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(octets):
    for kind in (Request, Response):
        try:
            message = kind.parse(octets)
        except MessageInvalid:
            continue
        assert kind.parse(message.serialise()) == message


@given(requests, st.data())
def test_a_cut_message_is_refused_or_reads_as_empty_from_there(message, data):
    octets = message.serialise()
    cut = data.draw(st.integers(0, len(octets) - 1))
    try:
        short = Request.parse(octets[:cut])
    except MessageInvalid:
        return
    # RFC 9292 section 3.8 lets a message end behind any section, so a cut exactly there cannot be told.
    lawful = [replace(message, trailers=()), replace(message, trailers=(), content=b"")]
    lawful.append(replace(lawful[-1], headers=()))
    assert short == message or short in lawful


@given(st.integers(0, MAX_VARINT))
def test_integers_read_back_and_take_the_smallest_size(value):
    octets = varint(value)
    assert read_varint(octets, 0) == (value, len(octets))
    assert len(octets) == next(size for size, bits in ((1, 6), (2, 14), (4, 30), (8, 62)) if value < 1 << bits)


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_integers_outside_the_range_are_not_written(value):
    with pytest.raises(ValueError):
        varint(value)
