"""Coverage-guided fuzzing of the parsers around the channel, with atheris: the handler's rows, gRPC, the keeper's door.

    python tests/fuzz/fuzz_serving.py TARGET [-max_total_time=120] [CORPUS-FOLDER]

TARGET is one of the functions below. A parser may give a value or raise its own typed error; anything else is
a crash. `test_fuzz_serving.py` runs each for two minutes in the long tier.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import tempfile
from functools import cache
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(
    include=[
        "python_multipart",
        "strongroom.adapters.torchserve.routes",
        "strongroom.adapters.torchserve.rows",
        "strongroom.channel.problems",
        "strongroom.client.grpc_inference",
        "strongroom.encoding",
        "strongroom.keeper.service",
        "strongroom.keeper.wire",
    ]
):
    import python_multipart.multipart  # noqa: F401  (`rows` imports it when it meets the first form)
    from doubles.direct_link import request_keys
    from doubles.models import Author, sealed_toy
    from strongroom.adapters.torchserve.routes import route_of
    from strongroom.adapters.torchserve.rows import answer_bytes, row_of
    from strongroom.channel.bundle import KEYS_REQUEST_TYPE
    from strongroom.channel.ohttp import Form
    from strongroom.client.grpc_inference import _field, _outer_head, prediction
    from strongroom.errors import EncapsulationInvalid, MessageInvalid, StrongroomError
    from strongroom.keeper import wire
    from strongroom.keeper.leases import boottime
    from strongroom.keeper.models import HeldModel
    from strongroom.keeper.peers import Peers, peer_of
    from strongroom.keeper.release import Released
    from strongroom.keeper.service import Conversation
    from strongroom.launch.admission import Gate
    from strongroom.launch.config import Admission, Worker

logging.disable(logging.CRITICAL)
ROUTE = route_of("/invocations?model_name=m&z=1")


def row(octets: bytes) -> None:
    """A request's content type, up to the first line end, and its body: forms, multipart, JSON, text."""
    declared, _, content = octets.partition(b"\n")
    try:
        values, headers = row_of(content, (("content-type", declared.decode("latin-1")),), ROUTE)
    except MessageInvalid:
        return
    for name, value in values.items():
        assert name in headers
        if isinstance(value, bytearray):
            assert answer_bytes(value) == value


def grpc_answer(octets: bytes) -> None:
    """A `PredictionResponse` from a hostile server, and what a client takes its content for."""
    assert prediction(_field(1, octets)) == octets or not octets
    with contextlib.suppress(EncapsulationInvalid):
        octets = prediction(octets)
    for asked in (KEYS_REQUEST_TYPE, Form.SINGLE.request_type, Form.CHUNKED.request_type):
        head = _outer_head(octets, asked)
        assert head.status == 200 or json.loads(octets)["status"] == head.status


@cache
def held_model() -> HeldModel:
    """A model that is open, with request keys, as a keeper holds it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        author = Author.make(folder)
        sealed = sealed_toy(folder, author)
        verified = Gate(Admission((author.public,), {}, False)).verified(sealed.path)
        released = Released(sealed.digest, sealed.key, boottime())
        model = HeldModel("toy", sealed.digest, lambda: verified, request_keys(), lambda: released)
        model.start()
        model.wait(30)
        model.check_open()
        return model


def keeper_frame(octets: bytes) -> None:
    """What a worker writes on the keeper's socket: one whole frame for an even first byte, else a stream of bytes."""
    model = held_model()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        wire.limit_waiting(theirs, 10)
        body = octets[1:]
        theirs.sendall(body if octets[:1] and octets[0] & 1 else len(body).to_bytes(4, "big") + body)
        theirs.shutdown(socket.SHUT_WR)
        conversation = Conversation(ours, peer_of(ours), Peers(None), {model.archive: model}, Worker(), False)
        if octets[:1] and octets[0] & 2:
            conversation.answer({"op": "claim", "archive": bytes(model.archive)})
            assert wire.receive(theirs) == {}
        try:
            while True:
                conversation.answer(wire.receive(ours))
                with contextlib.suppress(BlockingIOError):
                    theirs.recv(1 << 20, socket.MSG_DONTWAIT)  # descriptors that come along are dropped by the kernel
        except StrongroomError:
            pass
        finally:
            conversation.abandon()


TARGETS = {function.__name__: function for function in (row, grpc_answer, keeper_frame)}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_serving.py {' | '.join(TARGETS)} [libFuzzer options]")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
