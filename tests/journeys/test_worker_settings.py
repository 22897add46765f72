"""What the operator may choose in the configuration's worker table, each choice against the default."""

from __future__ import annotations

import concurrent.futures
import json
import time

import grpc
import pytest
import requests
from doubles.envelopes import enveloped
from doubles.event_source import parse_events
from doubles.grpc_inference import Inference
from doubles.houses import archives, sealed_stage, session_for
from doubles.observer import chunk_sizes
from leaks.hunt import canary
from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import MessageReader, Request, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form
from strongroom.client.grpc_inference import SealedInference
from strongroom.errors import StreamTruncated

pytestmark = pytest.mark.journey

SETTINGS = '[worker]\ngather_ms = 0\npadding = "bucket:4096"\nrerun = true\ngrpc_streaming = true\n'
SETTINGS += '[worker.envelopes]\nbodied = "body"\nlisted = "json"\n'
MODELS = {"talk": "talking_handler.py", "bodied": "instances_handler.py", "listed": "instances_handler.py"}
ONE_WORKER = b"minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\n"
PATH = "/predictions/talk"
PADDED = '[worker]\ngather_ms = 1\nstream_padding = "bucket:512"\n'
WORDS = (["a", "of", "I", "no"], ["internationalisation", "counterrevolutionary", "misunderstandings" * 5, "a"])
LAST = canary("last")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    store = archives(tmp_path_factory.mktemp("store") / "plain", MODELS, ONE_WORKER)
    with sealed_stage(store, MODELS, SETTINGS) as stage:
        yield stage


@pytest.fixture(scope="module")
def session(stage):
    return session_for(stage)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    models = {"talk": MODELS["talk"]}
    store = archives(tmp_path_factory.mktemp("padded-store") / "plain", models, ONE_WORKER)
    with sealed_stage(store, models, PADDED) as stage:
        yield stage


def key(inference: Inference):
    octets = inference.predict("talk", body=b"{}", content_type=KEYS_REQUEST_TYPE.encode())
    return KeyList.parse(KeyBundle.parse(octets).parts.ohttp_keys).choose()


def inner(**wish: object) -> bytes:
    content = json.dumps(wish).encode()
    return Request("POST", "http", "h", PATH, (("content-type", "application/json"),), content).serialise()


@pytest.mark.parametrize(
    ("model", "envelope", "body"),
    [("bodied", "body", {"a": [1, canary("body")]}), ("listed", "json", {"instances": [[1], canary("instance")]})],
)
def test_torchserves_other_envelopes_are_applied_inside(stage, session, model, envelope, body):
    answer = session.post(f"{stage.url}/predictions/{model}", json=body, timeout=30)
    assert answer.status_code == 200, answer.content
    expected = enveloped(envelope, body)  # the json envelope makes the text itself
    assert answer.json() == (json.loads(expected) if isinstance(expected, str) else expected)


def test_without_gathering_each_piece_leaves_on_its_own(stage, session):
    tokens = [f"t{n} " for n in range(20)]
    answer = session.post(stage.url + PATH, json={"pieces": tokens, "last": "end"}, stream=True, timeout=30)
    assert list(answer.iter_content(None)) == [*(token.encode() for token in tokens), b"end"]


def overheard(stage, **wish) -> tuple[list[int], bytes]:
    """A chunked answer: the sizes of its chunks, as the host reads them, and the content that the client opened."""
    answer = requests.post(stage.url + PATH, data=b"{}", headers={"Content-Type": KEYS_REQUEST_TYPE}, timeout=60)
    sealer = chunked.RequestSealer(*KeyList.parse(KeyBundle.parse(answer.content).parts.ohttp_keys).choose())
    body = sealer.front + sealer.seal(inner(**wish)) + sealer.finish()
    headers = {"Content-Type": Form.CHUNKED.request_type}
    received = requests.post(stage.url + PATH, data=bytes(body), headers=headers, timeout=60).content
    opener, reader = sealer.response_opener(), MessageReader(response=True)
    events = [*reader.feed(b"".join(opener.feed(received)) + opener.finish()), *reader.finish()]
    *sizes, _ = chunk_sizes(received[32:])  # behind the response nonce
    return sizes, b"".join(each for each in events if isinstance(each, bytes))


def test_with_stream_padding_the_chunks_of_a_slow_models_events_do_not_tell_its_tokens_apart(stage, padded):
    """Each token comes long after the one before, so gathering alone does not hide it: the other stage shows that."""
    lengths = []
    for words in WORDS:
        wish = {"pieces": [f"data: {word}\n\n" for word in words], "last": "data: [DONE]\n\n", "pause": 0.15}
        sizes, content = overheard(padded, type="text/event-stream", **wish)
        assert parse_events(content) == [("message", word) for word in [*words, "[DONE]"]]
        assert set(sizes) == {512 + 16}
        bare, same = overheard(stage, type="text/event-stream", **wish)
        assert parse_events(same) == parse_events(content)
        lengths.append(bare)
    assert lengths[0] != lengths[1]


def test_with_stream_padding_other_content_leaves_in_whole_buckets_unchanged(padded):
    for words in WORDS:
        sizes, content = overheard(padded, type="text/plain", pieces=words * 20, last="end")
        assert content == "".join(words * 20).encode() + b"end"
        assert all(size % 512 == 16 for size in sizes)


def test_with_padding_answers_of_different_lengths_look_alike_outside(stage, session):
    with Inference(stage.grpc) as inference:
        offered, sizes = key(inference), set()
        for size in (1, 700, 3000):
            message, opener = ohttp.encapsulate(*offered, inner(size=size))
            sealed = inference.predict("talk", body=bytes(message), content_type=b"message/ohttp-req")
            assert len(Response.parse(opener.open(sealed)).content) == size
            sizes.add(len(sealed))
    assert len(sizes) == 1


def test_with_rerun_an_item_that_makes_the_handler_raise_fails_alone(stage, session):
    url = stage.url + PATH
    for _ in range(5):
        before = int(session.post(url, json={}, timeout=30).headers["x-calls"])
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            bad = pool.submit(session.post, url, json={"wait": 0.1, "raise": LAST}, timeout=30)
            good = [pool.submit(session.post, url, json={"last": f"{LAST} {n}"}, timeout=30) for n in range(2)]
        assert bad.result().status_code == 500
        assert [each.result().content for each in good] == [f"{LAST} {n}".encode() for n in range(2)]
        after = max(int(each.result().headers["x-calls"]) for each in good)
        if after == before + 4:  # the batch, and then each of the three
            return
    raise AssertionError("no batch was ever run again")


def test_real_grpc_streaming_brings_pieces_as_they_come(stage):
    with Inference(stage.grpc) as inference:
        sealer = chunked.RequestSealer(*key(inference))
        body = sealer.front + sealer.seal(inner(pieces=["a ", "b ", "c "], pause=0.3, last=LAST)) + sealer.finish()
        opener, reader = sealer.response_opener(), MessageReader(response=True)
        came: list[tuple[float, bytes]] = []
        for message in inference.stream("talk", body=body, content_type=b"message/ohttp-chunked-req"):
            for opened in opener.feed(message):
                came += [(time.monotonic(), each) for each in reader.feed(opened) if isinstance(each, bytes)]
        opener.finish()
        assert [piece for _, piece in came] == [b"a ", b"b ", b"c ", LAST.encode()]
        assert came[2][0] - came[0][0] > 0.4
        message, single = ohttp.encapsulate(*key(inference), inner(last="whole"))
        answers = list(inference.stream("talk", body=bytes(message), content_type=b"message/ohttp-req"))
        assert Response.parse(single.open(b"".join(answers))).content == b"whole"


def test_our_client_streams_over_grpc(stage):
    name = f"127.0.0.1:{stage.grpc}"
    with grpc.insecure_channel(name) as channel:
        sealed = SealedInference(channel, stage.client_policy(), name=name)
        headers = {"content-type": "application/json"}
        wish = {"pieces": ["a ", "b "], "pause": 0.3, "last": "c", "status": 201}
        answer = sealed.stream("talk", json.dumps(wish).encode(), headers=headers, timeout=30)
        came = [(time.monotonic(), piece) for piece in answer.pieces]
        assert (answer.status, [piece for _, piece in came]) == (201, [b"a ", b"b ", b"c"])
        assert came[1][0] - came[0][0] > 0.2
        broken = sealed.stream("talk", json.dumps(wish | {"raise": "x"}).encode(), headers=headers, timeout=30)
        with pytest.raises(StreamTruncated) as truncated:
            list(broken.pieces)
        assert truncated.value.received == b"a b "
