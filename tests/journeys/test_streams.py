"""Streams, failures, limits and mixed batches against the real server."""

from __future__ import annotations

import concurrent.futures
import json
import time

import pytest
import requests
from doubles.houses import MOST
from leaks.hunt import canary
from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import MessageReader, Request, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.kem import X25519, XWING
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form
from strongroom.errors import RequestRefused, StreamTruncated

pytestmark = pytest.mark.journey

PATH = "/predictions/talk"
CANARY = canary("note")
PIECES = [canary("first"), canary("second"), canary("last")]


def talk(house, *, stream: bool = False, path: str = PATH, **wish) -> requests.Response:
    return house.session.post(house.url(path), json=wish | {"note": CANARY}, stream=stream, timeout=60)


def worker_of(house) -> int:
    return house.stage.workers("talk")[0]["pid"]


def timed(answer: requests.Response) -> list[tuple[float, bytes]]:
    """(seconds, piece) of a streamed answer as its pieces come."""
    return [(time.monotonic(), piece) for piece in answer.iter_content(None)]


def test_pieces_arrive_while_the_handler_is_still_speaking_and_add_up_to_the_plain_stream(house):
    wish = {
        "pieces": ["one ", "two ", PIECES[0]],
        "pause": 0.4,
        "last": "end",
        "status": 201,
        "type": "text/event-stream",
    }
    answer = talk(house, stream=True, **wish)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "text/event-stream"
    pieces = timed(answer)
    assert b"".join(piece for _, piece in pieces) == f"one two {PIECES[0]}end".encode()
    assert pieces[0][1] == b"one "
    assert pieces[-1][0] - pieces[0][0] > 0.6
    plain = requests.post(house.plain.url + PATH, json=wish, stream=True, timeout=60)
    assert b"".join(plain.iter_content(None)) == f"one two {PIECES[0]}end".encode()
    assert (plain.status_code, plain.headers["content-type"]) == (201, "text/event-stream")


def test_pieces_of_a_moment_are_gathered_so_that_token_lengths_do_not_show(house):
    tokens = [f"token{n} " for n in range(40)]
    pieces = timed(talk(house, stream=True, pieces=tokens, last=""))
    assert b"".join(piece for _, piece in pieces) == "".join(tokens).encode()
    assert len(pieces) < 20


def test_who_asks_for_one_answer_gets_all_pieces_in_it(house):
    answer = talk(house, pieces=PIECES[:2], last=PIECES[2], status=202)
    assert (answer.status_code, answer.text) == (202, "".join(PIECES))


def test_who_asks_for_a_stream_gets_a_plain_answer_whole(house):
    answer = talk(house, stream=True, last="just this")
    assert answer.content == b"just this"


def test_a_stream_may_be_longer_than_a_single_answer(house):
    piece = "x" * (MOST * 2 // 5)
    answer = talk(house, stream=True, pieces=[piece, piece], last=piece)
    assert len(answer.content) == 3 * len(piece)


@pytest.mark.parametrize("last", ["raise", "exit"])
def test_a_stream_that_breaks_midway_is_reported_with_what_had_arrived(house, last):
    """The handler raises; the worker is killed. Neither looks like an end.

    What is still being gathered when the handler raises goes out; when the worker is killed it is lost.
    """
    before = worker_of(house)
    answer = talk(house, stream=True, pieces=["first ", "second "], pause=0.2, wait=0.2, **{last: "now"})
    with pytest.raises(StreamTruncated) as truncated:
        assert answer.content is None
    assert truncated.value.received == b"first second "
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if talk(house, last="well").content == b"well":
                break
        except (requests.RequestException, RequestRefused):
            time.sleep(0.3)
    else:
        raise AssertionError(house.stage.log_tail())
    assert (worker_of(house) == before) is (last == "raise")


def test_a_handler_that_raises_right_after_a_piece_does_not_take_it_along(house):
    answer = talk(house, stream=True, pieces=["first ", "second "], pause=0.2, **{"raise": "now"})
    with pytest.raises(StreamTruncated) as truncated:
        assert answer.content is None
    assert truncated.value.received == b"first second "


def test_what_a_handler_raises_goes_back_encrypted_and_the_worker_lives(house):
    before = worker_of(house)
    answer = talk(house, **{"raise": "secret words"})
    assert answer.status_code == 500
    assert answer.json()["message"] == "Prediction failed"
    own = talk(house, **{"raise": "out of tea", "kind": "prediction"})
    assert (own.status_code, own.json()["message"]) == (418, "out of tea")
    assert worker_of(house) == before
    assert "secret words" not in house.stage.log()
    assert "out of tea" not in house.stage.log()


# -- sizes -----------------------------------------------------------------------------


def test_the_largest_plain_answer_fits_sealed_too(house):
    assert len(talk(house, size=MOST).content) == MOST
    assert len(talk(house, stream=True, size=MOST).content) == MOST


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_over_the_limit_is_an_encrypted_413_with_both_numbers(house, stream):
    before = worker_of(house)
    answer = talk(house, stream=stream, size=MOST + 1)
    assert answer.status_code == 413
    assert f"{MOST + 1} bytes" in answer.json()["title"]
    assert str(MOST) in answer.json()["title"]
    assert talk(house, last="alive").content == b"alive"
    assert worker_of(house) == before


def test_a_request_over_the_limit_is_an_encrypted_413_with_both_numbers(house):
    url = house.url("/predictions/echo")
    fits = house.session.post(url, data=b"x" * (2 * MOST), timeout=60)
    assert fits.status_code in (200, 413)  # the echo of it is twice as long, and so refused as an answer
    answer = house.session.post(url, data=b"x" * (2 * MOST + 1), timeout=60)
    assert answer.status_code == 413
    assert f"{2 * MOST + 1} bytes" in answer.json()["title"]
    assert "max_request_size" in answer.json()["title"]


def test_a_request_far_over_the_limit_is_refused_by_the_frontend_and_the_client_says_how_large_it_was(house):
    with pytest.raises(RequestRefused, match=f"{5 * MOST} bytes") as refusal:
        house.session.post(house.url(PATH), data=b"x" * (5 * MOST), timeout=60)
    assert refusal.value.status == 413


# -- batches ---------------------------------------------------------------------------


def together(calls) -> list:
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def test_in_one_batch_streams_and_single_answers_go_their_own_ways(house):
    """One streams, one is gathered, one has nothing to stream; TorchServe hands them over together."""
    for _ in range(5):
        streamed, gathered, single = together(
            [
                lambda: (lambda answer: (answer, timed(answer)))(
                    talk(house, stream=True, pieces=["a1 ", "a2 "], pause=0.1, last="a3")
                ),
                lambda: talk(house, pieces=["b1 ", "b2 "], pause=0.1, last="b3"),
                lambda: talk(house, last="c", status=203),
            ]
        )
        assert b"".join(piece for _, piece in streamed[1]) == b"a1 a2 a3"
        assert gathered.content == b"b1 b2 b3"
        assert (single.status_code, single.content) == (203, b"c")
        if {each.headers["x-batch"] for each in (streamed[0], gathered, single)} == {"3"}:
            return
    raise AssertionError("the three never came into one batch")


def keys(house, model: str = "talk") -> KeyList:
    body = requests.post(
        house.url(f"/predictions/{model}"), data=b"{}", headers={"Content-Type": KEYS_REQUEST_TYPE}, timeout=60
    ).content
    return KeyList.parse(KeyBundle.parse(body).parts.ohttp_keys)


def inner(wish: dict[str, object], path: str = PATH) -> bytes:
    content = json.dumps(wish | {"note": CANARY}).encode()
    return Request("POST", "http", "h", path, (("content-type", "application/json"),), content).serialise()


def post(house, body: bytes, kind: str = Form.SINGLE.request_type) -> requests.Response:
    return requests.post(house.url(PATH), data=bytes(body), headers={"Content-Type": kind}, timeout=60)


def test_clients_of_every_kind_in_one_batch_are_answered_each_on_its_own(house):
    offered = keys(house)
    config = {kem: offered.choose((kem,)) for kem in (XWING, X25519)}
    used, _ = ohttp.encapsulate(*config[XWING], inner({"last": "once"}))
    assert post(house, used).status_code == 200
    for _ in range(5):
        new, first = ohttp.encapsulate(*config[XWING], inner({"last": "wing"}))
        old, second = ohttp.encapsulate(*config[X25519], inner({"last": "curve"}))
        torn, _ = ohttp.encapsulate(*config[X25519], inner({"last": "torn"}))
        torn[-1] ^= 1
        astray, third = ohttp.encapsulate(*config[XWING], inner({"last": "astray"}, "/predictions/echo"))
        answers = together([lambda body=body: post(house, body) for body in (new, old, torn, used, astray)])
        answers += together([lambda: post(house, b"[1]", "application/json")])
        assert [each.status_code for each in answers] == [200, 200, 422, 409, 200, 415]
        opened = [
            Response.parse(opener.open(answer.content))
            for opener, answer in ((first, answers[0]), (second, answers[1]), (third, answers[4]))
        ]
        assert [each.status for each in opened] == [200, 200, 421]
        assert [each.content for each in opened[:2]] == [b"wing", b"curve"]
        if dict(opened[0].headers)["x-batch"] == dict(opened[1].headers)["x-batch"] == "2":
            return
    raise AssertionError("the two good ones never came into one batch")


def test_an_item_that_makes_the_handler_raise_takes_its_batch_along_encrypted(house):
    for _ in range(5):
        bad, good = together([lambda: talk(house, wait=0.1, **{"raise": "x"}), lambda: talk(house, last="fine")])
        assert bad.status_code == 500
        if good.status_code == 500:
            assert good.json()["message"] == "Prediction failed"
            return
    raise AssertionError("the two never came into one batch")


def test_a_chunked_answer_says_so_and_asks_proxies_not_to_wait(house):
    """Bytes as a client that others wrote would read them: our opener, no adapter."""
    config, pair = keys(house).choose((X25519,))
    sealer = chunked.RequestSealer(config, pair)
    body = sealer.front + sealer.seal(inner({"pieces": ["a", "b"], "last": "c"})) + sealer.finish()
    answer = post(house, body, Form.CHUNKED.request_type)
    assert answer.headers["content-type"] == Form.CHUNKED.response_type
    assert answer.headers["incremental"] == "?1"
    opener, reader = sealer.response_opener(), MessageReader(response=True)
    plaintext = b"".join(opener.feed(answer.content)) + opener.finish()
    events = [*reader.feed(plaintext), *reader.finish()]
    assert b"".join(event for event in events if isinstance(event, bytes)) == b"abc"
