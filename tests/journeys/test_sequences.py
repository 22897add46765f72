"""Sequence batching: TorchServe routes by the field outside, the handler keeps its state by the one inside."""

from __future__ import annotations

import concurrent.futures
import secrets

import pytest
import requests
from leaks.hunt import canary
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.client.exchange import SEQUENCE_ID, _shown

pytestmark = pytest.mark.journey

CANARY = canary("note")


def step(house, sequence: str, add: int, *, start: bool = False, end: bool = False) -> dict:
    headers = {SEQUENCE_ID: sequence}
    headers |= {"ts_request_sequence_start": "True"} if start else {}
    headers |= {"ts_request_sequence_end": "True"} if end else {}
    answer = house.session.post(
        house.url("/predictions/count"), json={"add": add, "note": CANARY}, headers=headers, timeout=30
    )
    assert answer.status_code == 200, answer.content
    assert answer.headers[SEQUENCE_ID] == sequence
    return answer.json()


def test_two_sequences_at_once_keep_their_own_sums(house):
    def whole(sequence: str) -> list[int]:
        return [step(house, sequence, n, start=n == 0, end=n == 5)["sum"] for n in range(6)]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(whole, [secrets.token_hex(8), secrets.token_hex(8)])) == [[0, 1, 3, 6, 10, 15]] * 2


def test_a_sequences_id_is_not_seen_outside_and_who_sees_its_digest_cannot_join_it(house):
    sequence, before = secrets.token_hex(8), house.stage.relay.mark()[0]
    assert step(house, sequence, 5, start=True)["sum"] == 5
    seen = bytes(house.stage.relay.requests[before:])
    assert sequence.encode() not in seen
    assert _shown(sequence).encode() in seen

    # A host that sends a sealed request of its own, routed into the sequence.
    url, outer = house.url("/predictions/count"), {SEQUENCE_ID: _shown(sequence)}
    bundle = requests.post(url, data=b"{}", headers=outer | {"Content-Type": KEYS_REQUEST_TYPE}, timeout=30).content
    config, pair = KeyList.parse(KeyBundle.parse(bundle).parts.ohttp_keys).choose()
    headers = (("content-type", "application/json"), (SEQUENCE_ID, _shown(sequence)))
    inner = Request("POST", "http", "h", "/predictions/count", headers, b'{"add": 1}').serialise()
    message, opener = ohttp.encapsulate(config, pair, inner)
    answer = requests.post(url, data=bytes(message), headers=outer | {"Content-Type": "message/ohttp-req"}, timeout=30)
    assert b'"sum": -999' in Response.parse(opener.open(answer.content)).content
    assert step(house, sequence, 1, end=True)["sum"] == 6
