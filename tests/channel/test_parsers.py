"""Every parser of the channel room: any bytes give a value that writes itself back, or the parser's own error.

Those of whole messages, key lists, heads and bundles stand beside what they parse; tests/fuzz has a target for each.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom.channel import chunked, ohttp
from strongroom.channel.bundle import KeysRequest
from strongroom.channel.hpke import RecipientContext
from strongroom.channel.kem import X25519
from strongroom.channel.keylist import KeyConfig
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.channel.padding import Padding
from strongroom.channel.problems import Problem
from strongroom.errors import ConfigurationInvalid, EncapsulationInvalid, KeyUnknown, MalformedInput, StreamTruncated

KEYS = KeySet((X25519,))
CONFIG = KEYS.keys.configs[0]
SENT = chunked.RequestSealer(CONFIG, (1, 1))
HEAD, ENC, _ = RequestHead.parse(SENT.front)
CONTEXT = KEYS.decapsulate(HEAD, ENC, Form.CHUNKED).serialise()

ANY = st.binary(max_size=300)


def near(octets: bytes) -> st.SearchStrategy[bytes]:
    """Valid bytes with a few of them changed, cut or doubled: closer to what a parser accepts than noise is."""

    @st.composite
    def changed(draw):
        at, end = sorted((draw(st.integers(0, len(octets))), draw(st.integers(0, len(octets)))))
        return octets[:at] + draw(st.binary(max_size=8)) + octets[end if draw(st.booleans()) else at :]

    return changed()


@given(ANY | near(CONTEXT))
def test_a_context_for_a_worker(octets):
    try:
        found = RecipientContext.parse(octets)
    except MalformedInput:
        return
    assert found.serialise() == octets


@given(ANY | near(CONFIG.serialise()))
def test_a_key_configuration(octets):
    try:
        found = KeyConfig.parse(octets)
    except (KeyUnknown, MalformedInput):
        return
    assert found.serialise() == octets


@given(ANY | near(KeysRequest(bytes(32)).serialise()))
def test_a_question_for_the_keys(octets):
    try:
        found = KeysRequest.parse(octets)
    except MalformedInput:
        return
    assert KeysRequest.parse(found.serialise()) == found


@given(ANY | near(Problem(400, "about:blank", "no").serialise()))
def test_a_problem_document(octets):
    try:
        found = Problem.parse(octets)
    except MalformedInput:
        return
    assert Problem.parse(found.serialise()) == found


def portions(octets: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(octets)) for cut in cuts} | {0, len(octets)})
    return [octets[start:end] for start, end in itertools.pairwise(ends)]


@given(ANY, st.lists(st.integers(0, 300), max_size=5))
def test_chunks_that_nobody_sealed_never_open_at_the_server(octets, cuts):
    opener = chunked.RequestOpener(RecipientContext.parse(CONTEXT), limit=5000)
    with pytest.raises((EncapsulationInvalid, StreamTruncated)):
        for each in portions(octets, cuts):
            opener.feed(each)
        opener.finish()


@given(ANY, st.lists(st.integers(0, 300), max_size=5))
def test_an_answer_that_nobody_sealed_never_opens_at_the_client(octets, cuts):
    opener = SENT.response_opener()
    with pytest.raises((EncapsulationInvalid, StreamTruncated)):
        for each in portions(octets, cuts):
            opener.feed(each)
        opener.finish()
    _, single = ohttp.encapsulate(CONFIG, (1, 1), b"")
    with pytest.raises(EncapsulationInvalid):
        single.open(octets)


@given(st.text(max_size=30) | st.integers().map("bucket:{}".format))
def test_a_padding_policy(text):
    try:
        policy = Padding(text)
    except ConfigurationInvalid:
        return
    for size in (0, 1, 255, 256, 5000):
        assert policy.padding(size) >= 0
