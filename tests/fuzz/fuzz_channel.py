"""Coverage-guided fuzzing of every parser in the channel room, with atheris.

    python tests/fuzz/fuzz_channel.py TARGET [-max_total_time=120] [CORPUS-FOLDER]

TARGET is one of the functions below. A parser may give a value or raise its own typed error; a value has to
write itself back. Anything else is a crash. `test_fuzz_channel.py` runs each for two minutes
in the long tier.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["strongroom.channel", "strongroom.encoding"]):
    from strongroom.channel import chunked, ohttp
    from strongroom.channel.bhttp import Limits, MessageReader, Request, Response
    from strongroom.channel.bundle import KeyBundle, KeysRequest
    from strongroom.channel.hpke import RecipientContext
    from strongroom.channel.kem import X25519
    from strongroom.channel.keyset import KeyList, KeySet
    from strongroom.channel.ohttp import Form, RequestHead
    from strongroom.channel.problems import Problem
    from strongroom.errors import (
        EncapsulationInvalid,
        KeyUnknown,
        MalformedInput,
        MessageInvalid,
        StreamTruncated,
    )

LIMITS = Limits(section=2000, lines=20, content=5000, control=1000)
KEYS = KeySet((X25519,), first_key_id=0)
CONFIG = KEYS.keys.configs[0]


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


def chunks(octets: bytes) -> None:
    """Bytes behind a valid enc: never open, since nobody here can seal."""
    sent = ohttp.begin(CONFIG, (1, 1), Form.CHUNKED)
    opener = chunked.RequestOpener(KEYS.decapsulate(sent.head, sent.enc, Form.CHUNKED), limit=5000)
    try:
        opener.feed(octets[: len(octets) // 2])
        opener.feed(octets[len(octets) // 2 :])
        opener.finish()
    except (EncapsulationInvalid, StreamTruncated):
        return
    raise AssertionError("bytes that nobody sealed opened")


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


TARGETS = {
    function.__name__: function
    for function in (
        request, response, portions, key_list, head, context, chunks, sealed_message, bundle, small_json,
    )
}  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_channel.py {' | '.join(TARGETS)} [libFuzzer options]")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
