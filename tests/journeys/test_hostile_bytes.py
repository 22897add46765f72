"""Hostile bytes at a real server: each is refused by docs/protocol.md section 6, no worker dies, nothing is logged.

tests/attacks has every offset and every length against the same service without a server; here is a choice of
each kind, sent to stock TorchServe.
"""

from __future__ import annotations

import json
import random

import pytest
import requests
from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import Request, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.kem import X25519, XWING
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form
from strongroom.channel.problems import OHTTP_KEY
from strongroom.channel.varint import MAX_VARINT, varint
from strongroom.errors import EncapsulationInvalid

pytestmark = pytest.mark.journey

PATH = "/predictions/echo"
CANARY = b"canary-7c2e smith"
SINGLE, CHUNKED = (form.request_type for form in Form)
DICE = random.Random(4)


@pytest.fixture(scope="module")
def offered(house):
    octets = post(house, b"{}", KEYS_REQUEST_TYPE).content
    return KeyList.parse(KeyBundle.parse(octets).parts.ohttp_keys)


@pytest.fixture(autouse=True)
def nothing_happened(house):
    """Around each test: the worker that was there is there, it answers, and the log says nothing of what was sent."""
    before = worker_of(house)
    yield
    assert house.session.post(house.url(PATH), data=b"alive", timeout=60).status_code == 200
    assert worker_of(house) == before
    log = house.stage.log()
    assert CANARY.decode() not in log
    assert CANARY.hex() not in log
    assert "Traceback" not in log


def worker_of(house) -> int:
    return house.stage.workers("echo")[0]["pid"]


def post(house, body: bytes, kind: str) -> requests.Response:
    return requests.post(house.url(PATH), data=bytes(body), headers={"Content-Type": kind}, timeout=60)


def inner(path: str = PATH) -> bytes:
    return Request("POST", "http", "h", path, (("x-canary", CANARY.decode()),), CANARY).serialise()


def single(offered, kem: int = X25519, plain: bytes | None = None):
    message, opener = ohttp.encapsulate(*offered.choose((kem,)), inner() if plain is None else plain)
    return bytes(message), opener


def in_chunks(offered, kem: int = X25519) -> tuple[bytes, list[bytes]]:
    sealer = chunked.RequestSealer(*offered.choose((kem,)))
    plain = inner()
    third = len(plain) // 3
    pieces = (plain[:third], plain[third : 2 * third], plain[2 * third :])
    return sealer.front, [*map(sealer.seal, pieces), sealer.finish()]


def assert_refused(answer: requests.Response) -> None:
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.content)["type"] == OHTTP_KEY


@pytest.mark.parametrize("kem", [XWING, X25519])
def test_flipped_bits_and_cuts_are_refused(house, offered, kem):
    message, _ = single(offered, kem)
    places = {0, 2, 4, 6, 7, len(message) // 2, len(message) - 17, len(message) - 16, len(message) - 1}
    for at in places | {DICE.randrange(len(message)) for _ in range(8)}:
        broken = bytearray(message)
        broken[at] ^= 1 << DICE.randrange(8)
        assert_refused(post(house, broken, SINGLE))
        assert post(house, message[:at], SINGLE).status_code == 422
    front, framed = in_chunks(offered, kem)
    message = front + b"".join(framed)
    for at in (7, len(front), len(front) + 1, len(message) - 17, len(message) - 1):
        broken = bytearray(message)
        broken[at] ^= 1
        assert_refused(post(house, broken, CHUNKED))
        assert post(house, message[:at], CHUNKED).status_code == 422


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 0, 1, 2, 3), (0, 2, 3), (0, 1, 2), (3, 0, 1, 2)], ids=str)
def test_reordered_doubled_and_dropped_chunks_are_refused(house, offered, order):
    front, framed = in_chunks(offered)
    assert post(house, front + b"".join(framed[place] for place in order), CHUNKED).status_code == 422


@pytest.mark.parametrize("length", [16384 + 17, 1 << 30, MAX_VARINT])
def test_chunk_lengths_that_lie_are_refused(house, offered, length):
    front, framed = in_chunks(offered)
    assert post(house, front + framed[0] + varint(length) + bytes(200), CHUNKED).status_code == 422


CONTROL = b"".join(varint(len(each)) + each for each in (b"POST", b"http", b"h", PATH.encode()))
BOMBS = [
    (b"", 400),
    (b"\x04", 400),
    (b"\x00" + varint(MAX_VARINT), 431),
    (b"\x00" + CONTROL + varint(MAX_VARINT), 431),
    (b"\x00" + CONTROL + b"\x00" + varint(MAX_VARINT), 413),
    (b"\x00" + CONTROL + b"\x00\x00\x00\x01", 400),
    (b"\x02" + CONTROL + b"\x01a\x01b" * 300 + b"\x00\x00\x00", 431),
    (b"\x00" + CONTROL + b"\x06\x01a\x03\r\nb\x00\x00", 400),
]


@pytest.mark.parametrize(("plain", "status"), BOMBS, ids=range(len(BOMBS)))
def test_bombs_and_lies_inside_are_encapsulated_refusals(house, offered, plain, status):
    message, opener = single(offered, plain=plain)
    answer = post(house, message, SINGLE)
    assert answer.status_code == 200
    assert Response.parse(opener.open(answer.content)).status == status


def test_swapped_answers_open_for_neither_client(house, offered):
    (one, first), (two, second) = single(offered, XWING), single(offered, XWING)
    answers = [post(house, message, SINGLE).content for message in (one, two)]
    for opener, answer in ((first, answers[1]), (second, answers[0])):
        with pytest.raises(EncapsulationInvalid):
            opener.open(answer)


def test_a_form_under_the_other_forms_name_is_refused(house, offered):
    message, _ = single(offered)
    front, framed = in_chunks(offered)
    assert_refused(post(house, message, CHUNKED))
    assert_refused(post(house, front + b"".join(framed), SINGLE))


@pytest.mark.parametrize("kind", ["message/bhttp", "message/ohttp-res", "text/plain", "message/ohttp-keys"])
def test_a_sealed_request_under_another_media_type_is_a_415(house, offered, kind):
    assert post(house, single(offered)[0], kind).status_code == 415


@pytest.mark.parametrize("body", [b"", b"[]", b'{"nonce": "AAAA"}', b'{"nonce": 1}', b"{" * 5000, b"\xff" * 100])
def test_questions_for_the_keys_that_are_none_are_a_400(house, body):
    assert post(house, body, KEYS_REQUEST_TYPE).status_code == 400
