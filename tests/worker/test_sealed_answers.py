"""The sealed service's own decisions: limits, padding, forms, and what the host gets to see."""

from __future__ import annotations

import email.utils
import json
from datetime import UTC, datetime

import pytest
from doubles.direct_link import DirectLink, request_keys
from hypothesis import given
from hypothesis import strategies as st
from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import Limits, Request, RequestHead, RequestWriter, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeysRequest
from strongroom.channel.kem import X25519
from strongroom.channel.padding import Padding, StreamPadding
from strongroom.errors import KeeperUnavailable, MalformedInput, ModelUnavailable
from strongroom.keeper.keyring import Allowance
from strongroom.keeper.service import _settings
from strongroom.launch.config import Worker
from strongroom.worker.link import Settings
from strongroom.worker.service import Answer, Outer, SealedService, _date

LIMIT = 50_000


class Model:
    """A service whose handler answers with `content`, and counts what reached it."""

    def __init__(self, content: bytes = b"", settings: Settings | None = None, request_limit: int = LIMIT) -> None:
        self.keys = request_keys((("x25519"),))
        self.content, self.reached = content, 0
        limits = Limits(content=request_limit)
        self.service = SealedService(DirectLink(self.keys), limit=LIMIT, limits=limits, settings=settings)

    def handler(self, requests, indices, stream):
        self.reached += len(requests)
        return [Response(200, (("content-type", "a/b"),), self.content) for _ in requests]

    def ask(self, *, body: bytes = b"", stream: bool = False) -> tuple[Answer, Response]:
        config, pair = self.keys.source.present().keys.choose((X25519,))
        inner = Request("POST", "http", "h", "/predictions/m", (), body).serialise()
        if not stream:
            message, opener = ohttp.encapsulate(config, pair, inner)
            answer = self.service.answer([Outer("message/ohttp-req", message)], lambda: self.handler)[0]
            return answer, Response.parse(opener.open(answer.body))
        sealer = chunked.RequestSealer(config, pair)
        message = sealer.front + sealer.seal(inner) + sealer.finish()
        answer = self.service.answer([Outer("message/ohttp-chunked-req", message)], lambda: self.handler)[0]
        chunks = sealer.response_opener()
        return answer, Response.parse(b"".join(chunks.feed(answer.body)) + chunks.finish())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_exactly_the_limit_is_sent_and_one_byte_more_is_a_413_with_both_numbers(stream):
    assert Model(bytes(LIMIT)).ask(stream=stream)[1].content == bytes(LIMIT)
    outer, inner = Model(bytes(LIMIT + 1)).ask(stream=stream)
    assert (outer.status, inner.status) == (200, 413)
    title = json.loads(inner.content)["title"]
    assert str(LIMIT) in title
    assert str(LIMIT + 1) in title


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_over_the_limit_never_reaches_the_handler_and_is_a_413_with_both_numbers(stream):
    model = Model()
    assert model.ask(body=bytes(LIMIT), stream=stream)[1].status == 200
    outer, inner = model.ask(body=bytes(LIMIT + 1), stream=stream)
    assert (outer.status, inner.status, model.reached) == (200, 413, 1)
    title = json.loads(inner.content)["title"]
    assert str(LIMIT) in title
    assert str(LIMIT + 1) in title


@pytest.mark.parametrize("stream", [False, True])
def test_padded_answers_show_one_size_up_to_the_limit(stream):
    settings = Settings(padding=Padding("power-of-two"))
    sizes = {len(Model(bytes(size), settings).ask(stream=stream)[0].body) for size in (5000, 6000, 8000)}
    assert len(sizes) == 1
    outer, inner = Model(bytes(LIMIT - 100), settings).ask(stream=stream)  # the next power of two lies beyond
    assert len(inner.content) == LIMIT - 100
    assert LIMIT < len(outer.body) < LIMIT + LIMIT // 256 + 512


def test_whatever_is_inside_the_host_sees_200_and_no_store():
    model = Model()
    model.handler = lambda requests, indices, stream: [Response(418, (("x-secret", "1"),), b"tea") for _ in requests]
    outer, inner = model.ask()
    assert inner.status == 418
    assert (outer.status, outer.headers) == (200, (("cache-control", "no-store"),))
    outer, _ = model.ask(stream=True)
    assert dict(outer.headers) == {"cache-control": "no-store", "incremental": "?1"}


def test_a_header_that_cannot_be_sent_is_an_encrypted_500():
    model = Model()
    model.handler = lambda requests, indices, stream: [Response(200, (("x", "a\nb"),), b"") for _ in requests]
    assert model.ask()[1].status == 500


@pytest.mark.parametrize("error", [ModelUnavailable("not yet"), KeeperUnavailable("gone")])
def test_while_the_model_is_not_open_every_sealed_item_gets_a_503_and_keys_are_answered_all_the_same(error):
    model = Model()

    def not_open():
        raise error

    batch = [
        Outer("message/ohttp-req", b"x"),
        Outer("application/vnd.strongroom.keys-request+json", b"{}"),
        Outer("text/plain", b"x"),
    ]
    assert [each.status for each in model.service.answer(batch, not_open)] == [503, 200, 415]


def test_too_many_nonces_are_a_429_and_cached_evidence_is_given_all_the_same():
    model = Model()
    model.keys.allowance = Allowance(0, 2)
    nonce = KeysRequest(bytes(32)).serialise()
    batch = [Outer(KEYS_REQUEST_TYPE, nonce)] * 4 + [Outer(KEYS_REQUEST_TYPE, b"{}")]
    answers = model.service.answer(batch, lambda: model.handler)
    assert [each.status for each in answers] == [200, 200, 429, 429, 200]
    assert json.loads(answers[2].body)["type"] == "about:blank"


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_a_date_is_read_as_the_library_reads_it(moment):
    written = email.utils.format_datetime(moment, usegmt=True)
    request = Request("POST", "http", "h", "/", (("date", written),))
    assert _date(request) == int(moment.replace(microsecond=0).timestamp())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun, 06 Nov 1994 08:49:37 +0000", 784111777),
        ("Sun, 06 Abc 1994 08:49:37 GMT", None),
        ("", None),
        ("tomorrow", None),
    ],
)
def test_dates_in_other_forms_are_read_or_count_as_none(written, read):
    assert _date(Request("POST", "http", "h", "/", (("date", written),))) == read


TOLD = _settings(Worker(stream_padding=StreamPadding("bucket:512")), "m")


def test_what_the_keeper_tells_of_the_configuration_is_what_a_worker_reads():
    assert Settings.parse(TOLD) == Settings(stream_padding=StreamPadding("bucket:512"))


@pytest.mark.parametrize("wrong", [{"gather": -1}, {"rerun": 1}, {"stream_padding": 512}, {"room": None}])
def test_settings_that_are_not_settings_are_refused(wrong):
    with pytest.raises(MalformedInput):
        Settings.parse(TOLD | wrong)
    for name in TOLD:
        with pytest.raises(MalformedInput):
            Settings.parse({each: value for each, value in TOLD.items() if each != name})


def test_fields_that_belong_to_one_connection_are_not_shown_to_the_handler():
    model, seen = Model(), []
    model.handler = lambda requests, indices, stream: [seen.append(each) or Response(200) for each in requests]
    config, pair = model.keys.source.present().keys.choose((X25519,))
    headers = (("transfer-encoding", "chunked"), ("connection", "x-hop"), ("x-hop", "1"), ("x-mine", "2"))
    message, _ = ohttp.encapsulate(config, pair, Request("POST", "http", "h", "/predictions/m", headers).serialise())
    model.service.answer([Outer("message/ohttp-req", message)], lambda: model.handler)
    assert seen[0].headers == (("x-mine", "2"),)


def test_a_content_in_more_pieces_than_the_limit_is_a_413():
    model = Model()
    config, pair = model.keys.source.present().keys.choose((X25519,))
    front = RequestWriter().start(RequestHead("POST", "http", "h", "/predictions/m"))
    for pieces, status in ((Limits().pieces, 200), (Limits().pieces + 1, 413)):
        inner = front + b"\x01a" * pieces + RequestWriter().finish()
        message, opener = ohttp.encapsulate(config, pair, inner)
        model.service._limits = Limits()
        answer = model.service.answer([Outer("message/ohttp-req", message)], lambda: model.handler)[0]
        assert Response.parse(opener.open(answer.body)).status == status
