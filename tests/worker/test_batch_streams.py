"""Pieces on their way out: what leaves when, and what an end looks like, opened with a client's own opener."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom.channel import chunked
from strongroom.channel.bhttp import MessageReader, Response, ResponseHead
from strongroom.channel.kem import X25519
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import StreamTruncated
from strongroom.worker.streams import BatchStream

KEYS = KeySet((X25519,))
LIMIT = 10_000


class Wire:
    """A server's sealer and the client's end of the same exchange, with what was sent between."""

    def __init__(self, *, gather: float = 0.0, limit: int = LIMIT, streams: bool = True) -> None:
        config = KEYS.keys.configs[0]
        request = chunked.RequestSealer(config, config.pairs[0])
        head, enc, _ = RequestHead.parse(request.front)
        self.sealer = chunked.ResponseSealer(KEYS.decapsulate(head, enc, Form.CHUNKED), enc)
        self.opener = request.response_opener()
        self.sent: list[bytes] = []
        self.stream = BatchStream(
            {0: self.sealer if streams else None},
            lambda sealed: self.sent.append(sealed[0]),
            gather=gather,
            limit=limit,
        )

    def emit(self, piece: bytes, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.stream.emit(0, piece, status, headers)

    def end(self, content: bytes = b"", status: int = 200) -> bytes | Response:
        self.stream.close()
        return self.stream.last(0, Response(status, (), content))

    def received(self, last: bytes) -> tuple[ResponseHead, bytes]:
        reader = MessageReader(response=True)
        plaintext = b"".join(b"".join(self.opener.feed(each)) for each in [*self.sent, last]) + self.opener.finish()
        events = [*reader.feed(plaintext), *reader.finish()]
        head = events[0]
        assert isinstance(head, ResponseHead)
        return head, b"".join(event for event in events if isinstance(event, bytes))


def test_status_and_headers_of_the_first_piece_count():
    wire = Wire()
    wire.emit(b"one", 201, (("x", "1"),))
    wire.emit(b"two", 500, (("x", "2"),))
    head, content = wire.received(wire.end(b"three"))
    assert (head.status, head.headers, content) == (201, (("x", "1"),), b"onetwothree")
    assert len(wire.sent) == 2


def test_a_process_that_the_handler_forked_seals_nothing():
    """It has a copy of the key and its counter: two chunks under one nonce would give both away."""
    wire = Wire()
    child = os.fork()
    if not child:
        refused = 0
        for attempt in (lambda: wire.emit(b"child"), wire.end):
            try:
                attempt()
            except RuntimeError:
                refused += 1
        os._exit(0 if (refused, wire.sent) == (2, []) else 1)
    assert os.waitpid(child, 0)[1] == 0
    wire.emit(b"parent")
    assert wire.received(wire.end())[1] == b"parent"


def test_pieces_wait_for_each_other_as_long_as_they_are_gathered():
    wire = Wire(gather=0.05)
    for piece in (b"a", b"b", b"c"):
        wire.emit(piece)
    assert wire.sent == []
    deadline = time.monotonic() + 5
    while not wire.sent and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(wire.sent) == 1
    assert wire.received(wire.end())[1] == b"abc"


def test_nothing_leaves_by_the_timer_after_the_end():
    wire = Wire(gather=0.02)
    wire.emit(b"a")
    last = wire.end(b"b")
    time.sleep(0.06)
    assert wire.sent == []
    assert wire.received(last)[1] == b"ab"
    wire.emit(b"late")
    assert wire.sent == []


@given(st.lists(st.integers(0, 3 * LIMIT), max_size=4), st.integers(0, 3 * LIMIT), st.booleans())
def test_whatever_the_handler_sends_no_message_exceeds_the_limit(sizes, rest, gathered):
    wire = Wire(gather=60.0 if gathered else 0.0)
    for size in sizes:
        wire.emit(b"x" * size)
    last = wire.end(b"y" * rest)
    if isinstance(last, Response):
        assert not sizes
        return
    assert all(len(each) <= LIMIT for each in [*wire.sent, last])
    assert wire.received(last)[1] == b"x" * sum(sizes) + b"y" * rest


def test_a_stream_that_failed_gives_what_waits_and_no_end():
    wire = Wire(gather=60.0)
    wire.emit(b"first " * 1000)  # over half of the limit: leaves at once
    wire.emit(b"second")
    wire.stream.fail([0])
    last = wire.end(b"never")
    assert isinstance(last, bytes)
    arrived = b"".join(b"".join(wire.opener.feed(each)) for each in [*wire.sent, last])
    assert arrived.endswith(b"second")
    assert b"never" not in arrived
    with pytest.raises(StreamTruncated):
        wire.opener.finish()


def test_a_stream_that_failed_before_anything_left_is_the_error_itself():
    wire = Wire(gather=60.0)
    wire.emit(b"never seen")
    wire.stream.fail([0])
    last = wire.end(b"sorry", 500)
    assert isinstance(last, Response)
    assert (last.status, last.content) == (500, b"sorry")


def test_who_cannot_be_streamed_to_gets_all_pieces_in_one_response():
    wire = Wire(streams=False)
    wire.emit(b"a", 203, (("x", "1"),))
    wire.emit(b"b")
    assert wire.end(b"c") == Response(203, (("x", "1"),), b"abc")
    assert wire.sent == []


@pytest.mark.parametrize("headers", [(("bad name", "1"),), (("x", "line\nbreak"),), (("x", "\u4e00"),)])
def test_headers_that_cannot_be_sent_make_an_error_and_no_half_stream(headers):
    wire = Wire()
    wire.emit(b"a", 200, headers)
    wire.emit(b"b")
    last = wire.end(b"c")
    assert isinstance(last, Response)
    assert last.status == 500
    assert wire.sent == []


def test_an_item_that_never_spoke_is_answered_whole():
    wire = Wire()
    assert not wire.stream.used([0])
    assert wire.end(b"whole", 404) == Response(404, (), b"whole")
