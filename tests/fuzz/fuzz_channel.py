"""Coverage-guided fuzzing of every parser of the channel, with atheris: the room's own, and its clients'.

    python tests/fuzz/fuzz_channel.py TARGET [-max_total_time=120] [CORPUS-FOLDER]

TARGET is one of the functions below. A parser may give a value or raise its own typed error; a value has to
write itself back. Anything else is a crash. `test_fuzz_channel.py` runs each for two minutes
in the long tier.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["strongroom.channel", "strongroom.client", "strongroom.encoding"]):
    from strongroom.broker.epochs import EpochSeed
    from strongroom.channel import chunked, ohttp
    from strongroom.channel.bhttp import Limits, MessageReader, Request, Response
    from strongroom.channel.bundle import KeyBundle, KeysRequest
    from strongroom.channel.hpke import RecipientContext
    from strongroom.channel.kem import X25519
    from strongroom.channel.keylist import KeyList
    from strongroom.channel.keyset import KeySet
    from strongroom.channel.ohttp import Form, RequestHead
    from strongroom.channel.problems import Problem
    from strongroom.client.endpoint import Endpoint
    from strongroom.client.exchange import ResponseStream
    from strongroom.errors import (
        EncapsulationInvalid,
        KeyUnknown,
        MalformedInput,
        MessageInvalid,
        ServerUnsealed,
        StreamTruncated,
    )

LIMITS = Limits(section=2000, lines=20, content=5000, control=1000)
KEYS = KeySet((X25519,), first_key_id=0)
CONFIG = KEYS.keys.configs[0]
SENT = chunked.RequestSealer(CONFIG, (1, 1))
RECEIVED, ENC, _ = RequestHead.parse(SENT.front)
CONTEXT = KEYS.decapsulate(RECEIVED, ENC, Form.CHUNKED)


def request(octets: bytes) -> None:
    """A whole binary request: reads back what it writes."""
    try:
        message = Request.parse(octets, LIMITS)
    except MessageInvalid:
        return
    assert Request.parse(message.serialise(padding=3)) == message


def response(octets: bytes) -> None:
    """A whole binary response."""
    try:
        message = Response.parse(octets, LIMITS)
    except MessageInvalid:
        return
    assert Response.parse(message.serialise()) == message


def portions(octets: bytes) -> None:
    """A message read in portions gives what it gives when read at once."""

    def outcome(pieces):
        reader = MessageReader(response=bool(octets and octets[-1] & 1), limits=LIMITS)
        content, heads = b"", []
        try:
            for piece in pieces:
                for event in reader.feed(piece):
                    if isinstance(event, bytes):
                        content += event
                    else:
                        heads.append(event)
            heads += reader.finish()
        except MessageInvalid:
            return None
        return content, heads

    step = 1 + (octets[0] & 7 if octets else 0)
    assert outcome([octets]) == outcome([octets[at : at + step] for at in range(0, len(octets), step)])


def key_list(octets: bytes) -> None:
    """A list of key configurations."""
    try:
        keys = KeyList.parse(octets)
    except MalformedInput:
        return
    assert KeyList.parse(keys.serialise()) == keys


def head(octets: bytes) -> None:
    """What stands in front of an encapsulated request."""
    try:
        found, enc, rest = RequestHead.parse(octets)
    except (EncapsulationInvalid, KeyUnknown):
        return
    assert found.serialise() + enc + bytes(rest) == octets


def context(octets: bytes) -> None:
    """A recipient context on its way to a worker."""
    try:
        found = RecipientContext.parse(octets)
    except MalformedInput:
        return
    assert found.serialise() == octets


def opens_nothing(opener: chunked.RequestOpener | chunked.ResponseOpener, octets: bytes) -> None:
    """`octets` in two portions, and the end: refused, or cut short."""
    try:
        opener.feed(octets[: len(octets) // 2])
        opener.feed(octets[len(octets) // 2 :])
        opener.finish()
    except (EncapsulationInvalid, StreamTruncated):
        return
    raise AssertionError("bytes that nobody sealed opened")


def chunks(octets: bytes) -> None:
    """Bytes behind a valid enc: never open, since nobody here can seal."""
    sent = ohttp.begin(CONFIG, (1, 1), Form.CHUNKED)
    opens_nothing(chunked.RequestOpener(KEYS.decapsulate(sent.head, sent.enc, Form.CHUNKED), limit=5000), octets)


def sealed_message(octets: bytes) -> None:
    """What a client with the key can send: opens, and parses or is refused."""
    message, _ = ohttp.encapsulate(CONFIG, (1, 1), octets)
    found, enc, rest = RequestHead.parse(message)
    plain = ohttp.open_request(KEYS.decapsulate(found, enc, Form.SINGLE), rest)
    assert plain == octets
    request(plain)


def bundle(octets: bytes) -> None:
    """A key bundle as a client receives it."""
    try:
        found = KeyBundle.parse(octets)
    except MalformedInput:
        return
    assert KeyBundle.parse(found.serialise()) == found


def small_json(octets: bytes) -> None:
    """A keys request, and somebody's problem document."""
    for kind in (KeysRequest, Problem):
        try:
            found = kind.parse(octets)
        except MalformedInput:
            continue
        assert kind.parse(found.serialise()) == found


def noise(octets: bytes) -> None:
    """Answers that nobody sealed, in both forms: a client opens neither."""
    try:
        ohttp.ResponseOpener(SENT.response_opener()._context, ENC).open(octets)
    except EncapsulationInvalid:
        pass
    else:
        raise AssertionError("bytes that nobody sealed opened")
    opens_nothing(SENT.response_opener(), octets)


def answer(octets: bytes) -> None:
    """What a hostile server can send: it seals whatever it likes, in chunks as it likes."""
    sealer = chunked.ResponseSealer(CONTEXT, ENC)
    cut = octets[0] % 40 if octets else 0
    body = sealer.front + sealer.seal(octets[1:cut]) + sealer.seal(octets[max(cut, 1) :]) + sealer.finish()
    stream, content = ResponseStream(SENT.response_opener(), LIMITS), b""
    step = 1 + (octets[-1] & 63 if octets else 0)
    try:
        for at in range(0, len(body), step):
            content += b"".join(stream.feed(body[at : at + step]))
        content += b"".join(stream.finish())
    except (EncapsulationInvalid, MessageInvalid, StreamTruncated):
        return
    assert len(content) <= len(octets)


def endpoint(octets: bytes) -> None:
    """A URL that a program asks for: leads to a model by the same way again, or to none."""
    try:
        found = Endpoint.parse(octets.decode("utf-8", "replace"))
    except ServerUnsealed:
        return
    assert Endpoint.parse(found.url) == found


def seed(octets: bytes) -> None:
    """An epoch seed, as it comes out of a broker's answer."""
    try:
        found = EpochSeed.parse(octets)
    except MalformedInput:
        return
    assert EpochSeed.parse(found.serialise()) == found


TARGETS = {
    function.__name__: function
    for function in (
        request, response, portions, key_list, head, context, chunks, sealed_message, bundle, small_json,
        noise, answer, endpoint, seed,
    )
}  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_channel.py {' | '.join(TARGETS)} [libFuzzer options]")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
