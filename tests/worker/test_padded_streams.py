"""What an observer of a padded stream sees, and what the client gets: sizes of the policy only, content intact."""

from __future__ import annotations

from itertools import pairwise

import pytest
from doubles.event_source import parse_events
from doubles.observer import chunk_sizes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strongroom.channel import chunked
from strongroom.channel.bhttp import MessageReader, Response
from strongroom.channel.kem import X25519
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.channel.padding import StreamPadding
from strongroom.errors import ConfigurationInvalid, StreamTruncated
from strongroom.worker.streams import BatchStream

KEYS = KeySet((X25519,))
EVENTS = (("content-type", "text/event-stream; charset=utf-8"),)
POLICIES = ["bucket:64", "bucket:65", "bucket:512", "bucket:9000", "bucket:16384", "power-of-two"]


class Observed:
    """One padded stream: the handler's side, what the host sees of it, and the client's side."""

    def __init__(self, policy: str, headers=(), *, gather: float = 0.0, limit: int = 200_000) -> None:
        config = KEYS.keys.configs[0]
        request = chunked.RequestSealer(config, config.pairs[0])
        head, enc, _ = RequestHead.parse(request.front)
        sealer = chunked.ResponseSealer(KEYS.decapsulate(head, enc, Form.CHUNKED), enc)
        self.policy, self.headers, self.nonce = policy, headers, len(sealer.front)
        self.opener = request.response_opener()
        self._reader, self._read, self._arrived = MessageReader(response=True), 0, b""
        self.sent: list[bytes] = []
        self.stream = BatchStream(
            {0: sealer},
            lambda sealed: self.sent.append(sealed[0]),
            gather=gather,
            limit=limit,
            padding=StreamPadding(policy),
        )

    def emit(self, piece: bytes) -> None:
        self.stream.emit(0, piece, 200, self.headers)

    def end(self, content: bytes = b"", *, fails: bool = False) -> None:
        self.stream.close()
        if fails:
            self.stream.fail([0])
        last = self.stream.last(0, Response(200, self.headers, content))
        assert isinstance(last, bytes)
        self.sent.append(last)

    def content(self) -> bytes:
        """What the client has by now; whether it was all is `opener.finish`'s."""
        unread, self._read = self.sent[self._read :], len(self.sent)
        opened = b"".join(b"".join(self.opener.feed(message)) for message in unread)
        self._arrived += b"".join(event for event in self._reader.feed(opened) if isinstance(event, bytes))
        return self._arrived

    def sizes(self) -> list[int]:
        """The sizes of all chunks but the final one, as they stand on the wire."""
        *sizes, final = chunk_sizes(b"".join(self.sent)[self.nonce :])
        assert final == 0
        return sizes


def allowed(size: int, policy: str) -> bool:
    """Whether a ciphertext has a size of the policy: the plaintext has, and 16 bytes are the tag."""
    plain = size - 16
    if plain > 16384:
        return False
    if policy == "power-of-two":
        return plain >= 256 and plain & (plain - 1) == 0
    return plain > 0 and plain % int(policy.removeprefix("bucket:")) == 0


def cut(octets: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(octets), *(each % (len(octets) + 1) for each in cuts)})
    return [octets[a:b] for a, b in pairwise(places)] or [b""]


streams_of_events = st.lists(
    st.tuples(
        st.sampled_from([b"data: ", b"data:", b"event: x", b"id: 7", b": note", b"retry: 5", b"", b"junk"]),
        st.integers(0, 300) | st.integers(0, 20_000),
        st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"]),
    ).map(lambda line: line[0] + b"t" * line[1] + line[2]),
    max_size=12,
).map(b"".join)
anything = st.lists(st.sampled_from([b"\n", b"\r", b":", b"data", b" x", b"\n\n"]) | st.binary(max_size=40)).map(
    b"".join
)
cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


@settings(deadline=None)
@given(st.sampled_from(POLICIES), streams_of_events | anything, cuts, st.booleans(), st.sampled_from([3_000, 200_000]))
@example("bucket:64", b"data: a\r\n\r\ndata: b\r\n\r\n", [10, 11, 12], False, 200_000)
@example("bucket:64", b"data: a\n\n" * 20, list(range(180)), False, 200_000)
def test_a_padded_stream_of_events_has_the_policys_sizes_only_and_each_event_at_its_end(
    policy, octets, cuts, gathered, limit
):
    seen = Observed(policy, EVENTS, gather=60.0 if gathered else 0.0, limit=limit)
    *pieces, last = cut(octets, cuts)
    seen.emit(b"")
    emitted = b""
    for piece in pieces:
        seen.emit(piece)
        emitted += piece
        assert gathered or parse_events(seen.content()) == parse_events(emitted)
    seen.end(last)
    assert [size for size in seen.sizes() if not allowed(size, policy)] == []
    assert parse_events(seen.content()) == parse_events(octets)
    assert seen.opener.finish() == b""


@given(
    st.sampled_from(POLICIES),
    st.binary(max_size=2_000) | st.integers(0, 40_000).map(bytes),
    cuts,
    st.booleans(),
    st.sampled_from([3_000, 200_000]),
    st.sampled_from(
        [(), (("content-type", "text/plain"),), (*EVENTS, ("content-encoding", "gzip")), (("x", "y" * 700),)]
    ),
)
def test_any_other_padded_stream_has_the_policys_sizes_only_and_the_same_bytes(
    policy, octets, cuts, gathered, limit, headers
):
    seen = Observed(policy, headers, gather=60.0 if gathered else 0.0, limit=limit)
    *pieces, last = cut(octets, cuts)
    seen.emit(b"")
    for piece in pieces:
        seen.emit(piece)
    seen.end(last)
    assert [size for size in seen.sizes() if not allowed(size, policy)] == []
    assert seen.content() == octets
    assert seen.opener.finish() == b""


@pytest.mark.parametrize("headers", [EVENTS, ()])
@given(policy=st.sampled_from(POLICIES), octets=streams_of_events, cuts=cuts)
def test_a_padded_stream_that_fails_has_the_policys_sizes_only_and_is_a_prefix(headers, policy, octets, cuts):
    seen = Observed(policy, headers)
    for piece in cut(octets, cuts):
        seen.emit(piece)
    if not seen.sent:
        return  # nothing left, so the failure is an answer of its own
    seen.end(b"never", fails=True)
    sizes = chunk_sizes(b"".join(seen.sent)[seen.nonce :])
    assert [size for size in sizes if not allowed(size, policy)] == []
    arrived = seen.content()
    if headers == EVENTS:
        events = parse_events(arrived)
        assert events == parse_events(octets)[: len(events)]
    else:
        assert octets.startswith(arrived)
    with pytest.raises(StreamTruncated):
        seen.opener.finish()


def test_each_event_leaves_when_it_has_ended_and_its_length_does_not_show():
    short, long = Observed("bucket:256", EVENTS), Observed("bucket:256", EVENTS)
    for word in (b"a", b"of", b"it"):
        short.emit(b"data: " + word + b"\n\n")
        long.emit(b"data: " + word * 20 + b"\n\n")
    assert [len(each) for each in short.sent] == [len(each) for each in long.sent]
    assert len(short.sent) == 3
    assert parse_events(short.content()) == [("message", "a"), ("message", "of"), ("message", "it")]


def test_half_an_event_waits_for_its_other_half():
    seen = Observed("bucket:256", EVENTS)
    seen.emit(b"data: one\n")
    assert seen.sent == []
    seen.emit(b"\nda")
    seen.emit(b"ta: two\n")
    assert len(seen.sent) == 1
    seen.emit(b"\n")
    assert parse_events(seen.content()) == [("message", "one"), ("message", "two")]


def test_what_is_not_events_waits_until_a_bucket_is_full():
    seen = Observed("bucket:256")
    for _ in range(100):
        seen.emit(b"tok ")
    assert len(seen.sent) == 1  # 500 bytes with their framing and a head of 4: the second bucket is not full
    seen.end()
    assert seen.sizes() == [272, 272]
    assert seen.content() == b"tok " * 100


@pytest.mark.parametrize("policy", ["bucket:63", "bucket:16385", "bucket:0", "much", ""])
def test_a_policy_that_no_chunk_can_obey_is_refused_with_the_next_step(policy):
    with pytest.raises(ConfigurationInvalid) as refusal:
        StreamPadding(policy)
    assert refusal.value.hint
