"""gRPC: whole answers by default, whatever is called how; and the two faults of TorchServe 0.12 thrown at it.

A unary call answered with a stream loses TorchServe a worker for good; a streaming call answered with a
single message kills one (spec: OHTTP on TorchServe, gRPC). A caller picks the call and a worker cannot see it.
"""

from __future__ import annotations

import json

import grpc
import pytest
import requests
from doubles.grpc_inference import Inference
from doubles.houses import MOST
from leaks.hunt import canary
from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import Request, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form
from strongroom.channel.problems import Problem
from strongroom.client.grpc_inference import SealedInference
from strongroom.errors import MalformedInput, ServerRefused, ServerUnsealed

pytestmark = pytest.mark.journey

SINGLE, CHUNKED = (form.request_type.encode() for form in Form)
CANARY, LAST = canary("note"), canary("last")
WISH = {"pieces": ["a ", "b "], "pause": 0.05, "last": LAST}
ANSWER = f"a b {LAST}".encode()


@pytest.fixture(scope="module")
def inference(house):
    with Inference(house.stage.grpc) as inference:
        yield inference


@pytest.fixture(scope="module")
def key(inference):
    octets = inference.predict("talk", body=b"{}", content_type=KEYS_REQUEST_TYPE.encode())
    return KeyList.parse(KeyBundle.parse(octets).parts.ohttp_keys).choose()


def inner(wish: dict[str, object]) -> bytes:
    headers = (("content-type", "application/json"),)
    content = json.dumps(wish | {"note": CANARY}).encode()
    return Request("POST", "http", "h", "/predictions/talk", headers, content).serialise()


def worker_of(house) -> int:
    return house.stage.workers("talk")[0]["pid"]


def single(key, wish: dict[str, object]):
    return ohttp.encapsulate(*key, inner(wish))


def in_chunks(key, wish: dict[str, object]):
    sealer = chunked.RequestSealer(*key)
    return sealer.front + sealer.seal(inner(wish)) + sealer.finish(), sealer.response_opener()


def opened(opener, octets: bytes) -> Response:
    return Response.parse(b"".join(opener.feed(octets)) + opener.finish())


def test_the_key_bundle_comes_over_grpc_with_the_nonce(inference):
    asked = b'{"nonce": "' + b"A" * 43 + b'"}'
    octets = inference.predict("talk", body=asked, content_type=KEYS_REQUEST_TYPE.encode())
    assert KeyBundle.parse(octets).parts.nonce == bytes(32)


def test_a_sealed_request_is_answered_over_predictions(inference, key):
    message, opener = single(key, {"last": "hello", "status": 203})
    response = Response.parse(opener.open(inference.predict("talk", body=bytes(message), content_type=SINGLE)))
    assert (response.status, response.content) == (203, b"hello")


def test_a_chunked_request_is_gathered_into_one_message_by_either_call(house, inference, key):
    before = worker_of(house)
    body, opener = in_chunks(key, WISH)
    assert opened(opener, inference.predict("talk", body=body, content_type=CHUNKED)).content == ANSWER
    body, opener = in_chunks(key, WISH)
    messages = list(inference.stream("talk", body=body, content_type=CHUNKED))
    assert len(messages) == 1
    assert opened(opener, messages[0]).content == ANSWER
    assert worker_of(house) == before


@pytest.mark.parametrize("kind", ["single", "chunked", "plain", "keys", "torn"])
def test_a_streaming_call_with_a_single_answer_kills_no_worker(house, inference, key, kind):
    """The first fault: in plain TorchServe a null pointer in the frontend, and the worker is restarted."""
    before = worker_of(house)
    bodies = {
        "single": lambda: (bytes(single(key, {"last": "x"})[0]), SINGLE),
        "chunked": lambda: (in_chunks(key, {"last": "x"})[0], CHUNKED),
        "plain": lambda: (b"hello", b"application/octet-stream"),
        "keys": lambda: (b"{}", KEYS_REQUEST_TYPE.encode()),
        "torn": lambda: (bytes(single(key, {"last": "x"})[0])[:-1], SINGLE),
    }
    for _ in range(3):
        body, media_type = bodies[kind]()
        assert len(list(inference.stream("talk", body=body, content_type=media_type))) == 1
    assert worker_of(house) == before
    assert b"last" not in inference.predict("talk", body=b"x", content_type=b"text/plain")


@pytest.mark.parametrize("media_type", [SINGLE, CHUNKED])
def test_a_unary_call_for_a_stream_loses_no_worker(house, inference, key, media_type):
    """The second fault: in plain TorchServe the worker never comes back, though management says READY."""
    before = worker_of(house)
    for _ in range(3):
        body, opener = in_chunks(key, WISH) if media_type == CHUNKED else single(key, WISH)
        octets = inference.predict("talk", body=bytes(body), content_type=media_type)
        response = opened(opener, octets) if media_type == CHUNKED else Response.parse(opener.open(octets))
        assert response.content == ANSWER
    assert worker_of(house) == before
    answer = house.session.post(house.url("/predictions/talk"), json={"last": "alive"}, timeout=30)
    assert answer.content == b"alive"


def test_the_plain_server_does_have_the_fault_that_this_avoids(house):
    """Otherwise the two tests above would show nothing: a streaming call with a single answer costs a worker."""

    def worker() -> int:
        return requests.get(f"{house.plain.management}/models/talk", timeout=10).json()[0]["workers"][0]["pid"]

    before = worker()
    with Inference(house.plain.ports.grpc_inference) as plain, pytest.raises(grpc.RpcError):
        list(plain.stream("talk", seconds=5, body=b"not an object"))
    house.plain.wait_until_ready("talk", workers=1)
    assert worker() != before


@pytest.mark.parametrize(
    ("inputs", "status"),
    [
        ({"body": b"hello", "content_type": b"text/plain"}, 415),
        ({"body": b"hello"}, 415),
        ({"content_type": SINGLE}, 422),
        ({"data": b"hello", "content_type": SINGLE}, 422),
        ({"body": b"\x00" * 40, "content_type": SINGLE}, 400),
    ],
)
def test_what_is_not_sealed_or_does_not_open_gets_a_problem_document(inference, inputs, status):
    assert Problem.parse(inference.predict("talk", **inputs)).status == status


def test_sizes_over_the_limits_are_encrypted_413s_with_both_numbers_and_kill_no_worker(house, inference, key):
    before = worker_of(house)
    message, opener = single(key, {"size": MOST + 1})
    too_long = Response.parse(opener.open(inference.predict("talk", body=bytes(message), content_type=SINGLE)))
    message, opener = single(key, {"last": "x" * (2 * MOST)})
    too_much = Response.parse(opener.open(inference.predict("talk", body=bytes(message), content_type=SINGLE)))
    for refusal, limit in ((too_long, MOST), (too_much, 2 * MOST)):
        assert refusal.status == 413
        assert str(limit) in json.loads(refusal.content)["title"]
    message, _ = single(key, {"last": "x" * (5 * MOST)})
    with pytest.raises(grpc.RpcError) as refused:  # the frontend does not read so much
        inference.predict("talk", body=bytes(message), content_type=SINGLE)
    assert refused.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
    message, opener = single(key, {"last": "alive"})
    alive = Response.parse(opener.open(inference.predict("talk", body=bytes(message), content_type=SINGLE)))
    assert (alive.content, worker_of(house)) == (b"alive", before)


def test_a_model_that_is_not_there_is_grpcs_own_error(inference):
    with pytest.raises(grpc.RpcError) as error:
        inference.predict("absent", body=b"")
    assert "Model not found: absent" in error.value.details()


def test_rest_and_grpc_share_a_batch(house, inference, key):
    import concurrent.futures

    for _ in range(5):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            rest = pool.submit(
                lambda: house.session.post(house.url("/predictions/talk"), json=WISH, stream=True, timeout=30)
            )
            message, opener = single(key, WISH)
            octets = pool.submit(inference.predict, "talk", body=bytes(message), content_type=SINGLE).result()
            response = Response.parse(opener.open(octets))
            assert rest.result().content == ANSWER
        assert response.content == ANSWER
        if dict(response.headers)["x-batch"] == "2":
            return
    raise AssertionError("the two never came into one batch")


@pytest.fixture(scope="module")
def sealed(house):
    name = f"127.0.0.1:{house.stage.grpc}"
    with grpc.insecure_channel(name) as channel:
        yield SealedInference(channel, house.stage.client_policy(), name=name)


JSON = {"content-type": "application/json"}


def test_our_client_asks_over_grpc_and_gets_status_headers_and_content(sealed):
    answer = sealed.predict("talk", b'{"last": "hello", "status": 203}', headers=JSON, timeout=30)
    assert (answer.status, answer.content) == (203, b"hello")
    assert dict(answer.headers)["x-batch"] == "1"
    assert sealed.predict("talk", b"x", version="1.0", timeout=30).status == 400


def test_our_client_takes_a_stream_that_was_gathered(sealed):
    answer = sealed.stream("talk", json.dumps(WISH).encode(), headers=JSON, timeout=30)
    assert (answer.status, b"".join(answer.pieces)) == (200, ANSWER)


def test_our_client_sends_nothing_over_grpc_to_a_server_that_fails_its_policy(house, tmp_path):
    policy = tmp_path / "strict.toml"
    policy.write_text('name = "strict"\n[simulated]\nprotects_nothing = true\nmeasurements = ["' + "42" * 32 + '"]\n')
    name = f"127.0.0.1:{house.stage.grpc}"
    with grpc.insecure_channel(name) as channel, pytest.raises(ServerRefused):
        SealedInference(channel, policy, name=name).predict("talk", b"secret", timeout=30)


def test_our_client_says_that_a_plain_model_is_not_sealed(house):
    name = f"127.0.0.1:{house.plain.ports.grpc_inference}"
    with grpc.insecure_channel(name) as channel, pytest.raises((ServerRefused, ServerUnsealed, MalformedInput)):
        SealedInference(channel, house.stage.client_policy(), name=name).predict("echo", b"secret", timeout=30)
