"""`requests` as before, sealed: against a real HTTP server that speaks the real channel."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import requests
from doubles.sealed_server import AUTHOR, MEASUREMENT, POLICY, Outer, SealedServer, Stream
from strongroom.channel.bhttp import Response
from strongroom.channel.kem import X25519
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import RequestHead
from strongroom.channel.problems import KEY_UNKNOWN, NOT_OPENED, PROBLEM_TYPE
from strongroom.client.adapter import SealedAdapter
from strongroom.client.endpoint import Endpoint
from strongroom.errors import (
    ClientError,
    ConfigurationInvalid,
    EncapsulationInvalid,
    RequestRefused,
    ServerRefused,
    ServerUnavailable,
    ServerUnsealed,
    StreamTruncated,
)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def server():
    with SealedServer() as running:
        yield running


def session_for(server, policy, **arguments):
    session = requests.Session()
    session.mount(server.origin, SealedAdapter(policy, **arguments))
    return session


# -- the happy way ---------------------------------------------------------------------


def test_a_post_comes_back_as_an_ordinary_response(server, policy):
    answer = session_for(server, policy).post(server.url + "?top=3", json={"x": [1, 2]}, headers={"X-Mine": "1"})
    assert isinstance(answer, requests.Response)
    assert (answer.status_code, answer.reason, answer.ok) == (200, "OK", True)
    assert answer.json() == {"x": [1, 2]}
    assert answer.headers["X-Path"] == "/predictions/digits?top=3"
    assert answer.headers["content-type"] == "application/json"
    assert answer.url == server.url + "?top=3"
    inner = server.opened[0]
    assert (inner.method, inner.scheme) == ("POST", "http")
    assert inner.header("x-mine") == "1" and inner.header("content-length") == "13" and inner.header("date")
    assert inner.header("connection") is None


def test_the_host_sees_neither_path_query_headers_nor_body(server, policy):
    session_for(server, policy).post(
        server.origin + "/explanations/digits?patient=smith", data=b"a scan of smith", headers={"X-Patient": "smith"}
    )
    method, path, headers, body = server.seen[-1]
    assert (method, path) == ("POST", "/predictions/digits")
    assert headers["content-type"] == "message/ohttp-req"
    assert set(headers) <= {"host", "content-type", "content-length", "accept-encoding", "user-agent"}
    assert b"smith" not in body and "smith" not in json.dumps(headers)
    assert server.opened[0].path == "/explanations/digits?patient=smith"


@pytest.mark.parametrize(
    ("path", "outer", "inside"),
    [
        ("/predictions/digits", "/predictions/digits", ""),
        ("/predictions/digits/1.0", "/predictions/digits/1.0", ""),
        ("/explanations/digits", "/predictions/digits", ""),
        ("/v1/models/digits:predict", "/predictions/digits", ""),
        ("/v2/models/digits/infer", "/predictions/digits", ""),
        ("/invocations?model_name=digits", "/predictions/digits", ""),
        ("/mapped?top=3", "/predictions/digits", "/predictions/digits?top=3"),
        ("/predictions/alias", "/predictions/digits", "/predictions/digits"),
        ("/invocations", "/predictions/digits", "/invocations?model_name=digits"),
        ("/invocations?top=3", "/predictions/digits", "/invocations?top=3&model_name=digits"),
    ],
)
def test_every_way_to_a_model_leads_to_its_prediction_path(server, policy, path, outer, inside):
    names = dict.fromkeys(("/mapped", "/predictions/alias", "/invocations"), "digits")
    if "model_name" in path:
        del names["/invocations"]
    answer = session_for(server, policy, models=names).post(server.origin + path, data=b"x")
    assert answer.status_code == 200
    assert answer.headers["x-path"] == (inside or path)
    assert server.seen[-1][1] == outer


def test_methods_and_empty_bodies_travel_inside(server, policy):
    session = session_for(server, policy)
    assert session.get(server.url).headers["x-method"] == "GET"
    assert session.put(server.url, data=b"x").headers["x-method"] == "PUT"
    assert {seen[0] for seen in server.seen} == {"POST"}


@pytest.mark.parametrize(
    "body",
    [b"bytes", "text", io.BytesIO(b"a file"), (b"pie", b"ces"), {"form": "field"}, None],
    ids=["bytes", "text", "file", "pieces", "form", "none"],
)
def test_every_kind_of_body_that_requests_takes_arrives(server, policy, body):
    expected = {"text": b"text", "form": b"form=field"}
    answer = session_for(server, policy).post(server.url, data=iter(body) if isinstance(body, tuple) else body)
    plain = {
        bytes: lambda: body,
        str: lambda: body.encode(),
        tuple: lambda: b"".join(body),
        dict: lambda: expected["form"],
    }
    assert answer.content == plain.get(type(body), lambda: b"" if body is None else b"a file")()


def test_multipart_files_arrive_as_requests_wrote_them(server, policy):
    answer = session_for(server, policy).post(server.url, files={"one": b"first", "two": b"second"})
    assert answer.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b"first" in answer.content and b"second" in answer.content


def test_five_megabytes_go_both_ways(server, policy):
    body = bytes(range(256)) * 20_000
    assert session_for(server, policy).post(server.url, data=body).content == body


def test_an_inner_error_is_an_ordinary_response(policy):
    with SealedServer(model=lambda request: Response(422, (("content-type", "text/plain"),), b"no digit")) as server:
        answer = session_for(server, policy).post(server.url, data=b"x")
    assert (answer.status_code, answer.text, answer.ok) == (422, "no digit", False)
    with pytest.raises(requests.HTTPError):
        answer.raise_for_status()


def test_a_compressed_answer_is_decompressed_as_requests_does(policy):
    packed = gzip.compress(b"long answer" * 50)
    with SealedServer(model=lambda request: Response(200, (("content-encoding", "gzip"),), packed)) as server:
        assert session_for(server, policy).post(server.url, data=b"x").content == b"long answer" * 50


def answering(headers, content):
    return SealedServer(model=lambda request: Response(200, headers, content))


def test_all_members_of_a_compressed_answer_are_decompressed(policy):
    with answering((("content-encoding", "gzip"),), gzip.compress(b"one") + gzip.compress(b"two")) as server:
        assert session_for(server, policy).post(server.url, data=b"x").content == b"onetwo"


def test_an_answer_that_is_not_in_the_encoding_it_names_is_requests_own_error(policy):
    with (
        answering((("content-encoding", "gzip"),), b"not packed") as server,
        pytest.raises(requests.exceptions.ContentDecodingError),
    ):
        session_for(server, policy).post(server.url, data=b"x")


def test_what_was_read_from_the_raw_answer_leaves_the_rest_to_be_read(policy):
    with answering((), b"hello world") as server:
        answer = session_for(server, policy).post(server.url, data=b"x", stream=True)
        assert answer.raw.read(5) == b"hello"
        assert answer.content == b" world"


def test_a_header_value_with_white_space_around_it_is_sent_without(server, policy):
    session_for(server, policy).post(server.url, data=b"x", headers={"X-A": "b \t"})
    assert server.opened[0].header("x-a") == "b"


@pytest.mark.parametrize("target", ["/predictions/digits?a=1", "/invocations?model_name=digits"])
def test_a_path_that_a_gateway_put_in_front_is_not_shown_to_the_model(server, policy, target):
    outside = []
    seen = server.answer
    server.answer = lambda path, *rest: outside.append(path) or seen(path.removeprefix("/gw"), *rest)
    answer = session_for(server, policy).post(f"{server.origin}/gw{target}", data=b"x")
    assert (answer.status_code, answer.headers["x-path"]) == (200, target)
    assert set(outside) == {"/gw/predictions/digits"}


def test_a_token_goes_outside_and_inside(server, policy):
    server.token = "secret"
    answer = session_for(server, policy).post(server.url, data=b"x", headers={"Authorization": "Bearer secret"})
    assert answer.status_code == 200
    assert server.seen[0][2]["authorization"] == server.seen[1][2]["authorization"] == "Bearer secret"
    assert server.opened[0].header("authorization") == "Bearer secret"


def test_padding_makes_requests_of_different_sizes_look_alike(server, policy):
    session = session_for(server, policy, padding="bucket:4096")
    for size in (1, 100, 2000):
        session.post(server.url, data=bytes(size))
    assert len({len(body) for body in server.sealed}) == 1
    assert [len(request.content) for request in server.opened] == [1, 100, 2000]


def test_the_server_is_verified_once_and_again_when_it_expires(server, policy):
    session = session_for(server, policy, max_age=0.3)
    for _ in range(3):
        session.post(server.url, data=b"x")
    assert len(server.seen) == 4
    time.sleep(0.35)
    session.post(server.url, data=b"x")
    assert len(server.seen) == 6


def test_one_connection_serves_many_requests_streamed_or_not(server, policy):
    accepted = []
    accept = server._server.get_request
    server._server.get_request = lambda: accepted.append(1) or accept()
    session = session_for(server, policy)
    for stream in (False, True, False, True):
        assert session.post(server.url, data=b"x", stream=stream).content == b"x"
    assert len(accepted) == 1


def test_threads_that_start_together_ask_for_evidence_once(server, policy):
    session = session_for(server, policy)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: session.post(server.url, data=b"%d" % n).content, range(16)))
    assert answers == [b"%d" % n for n in range(16)]
    assert len(server.seen) == 17


# -- streams ---------------------------------------------------------------------------


def streaming(pieces, headers=(("content-type", "text/event-stream"),)):
    return lambda request: Stream(200, headers, iter(pieces))


def test_a_stream_arrives_piece_by_piece_while_the_model_still_works(policy):
    go = threading.Event()

    def pieces():
        yield b"data: a\n\n"
        assert go.wait(10)
        yield b"data: b\n\n"

    with SealedServer(model=lambda request: Stream(200, (), pieces())) as server:
        answer = session_for(server, policy).post(server.url, data=b"x", stream=True)
        arrived = answer.iter_content(chunk_size=None)
        assert next(arrived) == b"data: a\n\n"  # the model waits for us: nothing was gathered on the way
        go.set()
        assert list(arrived) == [b"data: b\n\n"]
    assert server.seen[-1][2]["content-type"] == "message/ohttp-chunked-req"
    assert server.seen[-1][2]["incremental"] == "?1"


def test_a_stream_can_be_read_by_lines_in_slices_or_whole(policy):
    with SealedServer(model=lambda request: Stream(200, (), iter([b"one\ntw", b"o\n", b"three"]))) as server:
        session = session_for(server, policy)
        assert list(session.post(server.url, stream=True).iter_lines()) == [b"one", b"two", b"three"]
        assert list(session.post(server.url, stream=True).iter_content(4)) == [b"one\n", b"tw", b"o\n", b"thre", b"e"]
        assert session.post(server.url, stream=True).content == b"one\ntwo\nthree"
        raw = session.post(server.url, stream=True).raw
        assert (raw.read(5), raw.read(), raw.read()) == (b"one\nt", b"wo\nthree", b"")


def test_an_ordinary_answer_to_a_chunked_request_arrives_too(server, policy):
    assert session_for(server, policy).post(server.url, data=b"x" * 40_000, stream=True).content == b"x" * 40_000


def failing():
    yield b"first"
    yield b"second"
    raise RuntimeError("the model failed midway")


def test_a_model_that_fails_midway_is_a_truncated_stream_with_what_arrived(policy):
    with SealedServer(model=lambda request: Stream(200, (), failing())) as server:
        answer = session_for(server, policy).post(server.url, stream=True)
        with pytest.raises(StreamTruncated) as raised:
            list(answer.iter_content(None))
    assert raised.value.received == b"firstsecond"


def test_a_stream_that_ends_cleanly_without_its_final_chunk_is_truncated(policy):
    def cut(kind, body, answer):
        if answer.pieces is not None:
            answer.pieces = iter(list(answer.pieces)[:-1])
        return answer

    with SealedServer(model=streaming([b"one", b"two"]), host=cut) as server, pytest.raises(StreamTruncated) as raised:
        _ = session_for(server, policy).post(server.url, stream=True).content
    assert raised.value.received == b"onetwo"


@pytest.mark.parametrize(
    "order", [(0, 2, 1, 3, 4, 5), (0, 1, 1, 2, 3, 4, 5), (0, 2, 3, 4, 5)], ids=["swap", "double", "drop"]
)
def test_a_host_that_reorders_doubles_or_drops_chunks_is_noticed(policy, order):
    def shuffled(kind, body, answer):
        if answer.pieces is not None:
            pieces = list(answer.pieces)
            answer.pieces = iter([pieces[place] for place in order])
        return answer

    model = streaming([b"one", b"two", b"three"])
    with SealedServer(model=model, host=shuffled) as server, pytest.raises(EncapsulationInvalid):
        _ = session_for(server, policy).post(server.url, stream=True).content


def test_a_caller_that_stops_reading_does_not_wait_for_the_rest(policy):
    go = threading.Event()

    def pieces():
        yield b"one"
        go.wait(5)
        yield b"two"

    with SealedServer(model=lambda request: Stream(200, (), pieces())) as server:
        started = time.monotonic()
        with session_for(server, policy).post(server.url, stream=True) as answer:
            assert next(answer.iter_content(None)) == b"one"
        assert time.monotonic() - started < 3
        go.set()


# -- servers that are not to be believed --------------------------------------------------


def refused_checks(server, policy, **arguments):
    with pytest.raises(ServerRefused) as raised:
        session_for(server, policy, **arguments).post(server.url, data=b"x")
    assert server.sealed == [] and server.opened == []
    assert raised.value.hint
    return {check.name for check in raised.value.checks if not check.ok}


def test_a_server_with_another_measurement_is_sent_nothing(policy):
    with SealedServer(measurement=bytes(32)) as server:
        assert refused_checks(server, policy) == {"simulated.measurement"}


def test_an_author_that_the_policy_does_not_name_is_refused(server, policy):
    policy.write_text(POLICY.replace(str(AUTHOR), "00" * 32))
    assert refused_checks(server, policy) == {"admitted.authors"}


def test_keys_of_a_fleet_are_refused_unless_the_policy_takes_them(server, policy):
    """Whoever runs the broker could read what is sealed to them: a client has to have said that this is fine."""
    server.mode = "fleet"
    assert refused_checks(server, policy) == {"bundle.mode"}
    policy.write_text(POLICY + '[channel]\nmodes = ["host"]\n')
    assert refused_checks(server, policy) == {"bundle.mode"}
    policy.write_text(POLICY + '[channel]\nmodes = ["host", "fleet"]\n')
    assert session_for(server, policy).post(server.url, data=b"x").content == b"x"


def test_a_policy_may_refuse_keys_of_one_host(server, policy):
    policy.write_text(POLICY + '[channel]\nmodes = ["fleet"]\n')
    assert refused_checks(server, policy) == {"bundle.mode"}


def test_a_tee_that_the_policy_does_not_name_is_refused(server, policy):
    policy.write_text('name = "hardware"\n[snp]\n')
    assert "tee" in refused_checks(server, policy)


def test_an_empty_policy_refuses_everybody(server, policy):
    policy.write_text('name = "empty"\n')
    assert "policy" in refused_checks(server, policy)


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: replace(parts, ohttp_keys=KeySet().ohttp_keys),
        lambda parts: replace(parts, not_after=parts.not_after + 86400),
        lambda parts: replace(parts, configuration=bytes([1]) * 32),
        lambda parts: replace(parts, model=replace(parts.model, version="2.0")),
        lambda parts: replace(parts, mode="host"),
    ],
    ids=["keys", "not_after", "configuration", "version", "mode"],
)
def test_a_host_that_changes_any_member_breaks_the_binding(server, policy, change):
    server.mode = "fleet"
    server.change_parts = change
    assert "simulated.binding" in refused_checks(server, policy)


def test_a_bundle_made_for_another_nonce_is_refused(server, policy):
    old = server.bundle(bytes(32))
    server.host = lambda kind, body, answer: replace(answer, body=old) if kind == "keys" else answer
    assert refused_checks(server, policy) == {"bundle.nonce"}


def test_a_bundle_without_the_nonce_is_refused(server, policy):
    old = server.bundle(None)
    server.host = lambda kind, body, answer: replace(answer, body=old) if kind == "keys" else answer
    assert refused_checks(server, policy) == {"bundle.nonce"}


def test_old_evidence_is_refused_where_no_nonce_is_used(policy):
    with SealedServer(clock=lambda: time.time() - 400) as server:
        assert refused_checks(server, policy, nonce=False) == {"bundle.age"}


def test_cached_evidence_is_taken_without_a_nonce_while_it_is_young(server, policy):
    assert session_for(server, policy, nonce=False).post(server.url, data=b"x").content == b"x"
    assert server.seen[0][3] == b"{}"


@pytest.mark.parametrize("off", [-4000, 400], ids=["expired", "not yet"])
def test_a_bundle_outside_its_time_is_refused(policy, off):
    with SealedServer(clock=lambda: time.time() + off) as server:
        assert refused_checks(server, policy) == {"bundle.validity"}


def test_another_models_keys_are_refused(server, policy):
    server.change_parts = lambda parts: replace(parts, model=replace(parts.model, name="other"))
    assert "bundle.model" in refused_checks(server, policy)


def test_another_version_than_the_url_names_is_refused(server, policy):
    server.change_parts = lambda parts: replace(parts, model=replace(parts.model, version="9.9"))
    with pytest.raises(ServerRefused, match=r"bundle\.model"):
        session_for(server, policy).post(server.url + "/1.0", data=b"x")


def test_a_server_without_xwing_is_refused_unless_the_client_accepts_another_kem(policy):
    with SealedServer(keys=KeySet((X25519,))) as server:
        assert refused_checks(server, policy) == {"bundle.keys"}
        assert session_for(server, policy, kems=(X25519,)).post(server.url, data=b"x").content == b"x"


def test_a_malformed_answer_is_no_bundle(server, policy):
    server.host = lambda kind, body, answer: replace(answer, body=b"{}")
    with pytest.raises(ServerUnsealed, match="not a key bundle"):
        session_for(server, policy).post(server.url, data=b"x")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, ServerUnsealed),
        (302, ServerUnsealed),
        (415, ServerUnsealed),
        (429, ServerUnavailable),
        (503, ServerUnavailable),
    ],
)
def test_a_server_that_gives_no_keys_is_sent_nothing(server, policy, status, error):
    server.host = lambda kind, body, answer: Outer(status, "text/plain", b"whatever")
    with pytest.raises(error) as raised:
        session_for(server, policy).post(server.url, data=b"x")
    assert str(status) in str(raised.value) and "whatever" not in str(raised.value)
    assert server.sealed == []


@pytest.mark.parametrize("path", ["/", "/ping", "/models", "/predictions", "/v1/models/digits", "/invocations"])
def test_what_leads_to_no_model_is_not_sent_in_the_clear(server, policy, path):
    with pytest.raises(ServerUnsealed):
        session_for(server, policy).post(server.origin + path, data=b"secret")
    assert server.seen == []


def test_a_policy_file_that_is_missing_or_broken_stops_before_anything_is_sent(tmp_path):
    with pytest.raises(ConfigurationInvalid):
        SealedAdapter(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = [")
    with pytest.raises(ConfigurationInvalid):
        SealedAdapter(tmp_path / "broken.toml")


def test_verify_server_lists_every_check(server, policy):
    verified = SealedAdapter(policy).verify_server(server.url)
    names = [check.name for check in verified.checks]
    assert {"bundle.nonce", "bundle.validity", "bundle.model", "admitted.authors", "simulated.binding"} <= set(names)
    assert verified.suite == "X-Wing" and verified.parts.model.name == "digits"
    assert json.dumps(verified.serialise())
    assert server.sealed == []


# -- after sending ----------------------------------------------------------------------


def test_rotated_keys_are_verified_anew_and_the_request_is_sent_once_more(server, policy):
    session = session_for(server, policy)
    session.post(server.url, data=b"one")
    nonces = [body for _, _, headers, body in server.seen if "keys-request" in headers["content-type"]]
    server.keys = KeySet()
    assert session.post(server.url, data=b"two").content == b"two"
    again = [body for _, _, headers, body in server.seen if "keys-request" in headers["content-type"]]
    assert len(again) == 2 and again[0] == nonces[0] != again[1]
    first, second = server.sealed[-2:]
    assert RequestHead.parse(first)[1] != RequestHead.parse(second)[1]
    assert session.post(server.url, data=b"three").content == b"three"
    assert len(server.sealed) == 4


def test_rotated_keys_are_verified_over_a_fresh_nonce_even_where_none_is_used_otherwise(server, policy):
    session = session_for(server, policy, nonce=False)
    session.post(server.url, data=b"one")
    server.keys = KeySet()
    assert session.post(server.url, data=b"two").content == b"two"
    questions = [body for _, _, headers, body in server.seen if "keys-request" in headers["content-type"]]
    assert questions[0] == b"{}" and b"nonce" in questions[1]


def test_rotated_keys_of_a_server_that_fails_the_policy_now_get_nothing(server, policy):
    session = session_for(server, policy)
    session.post(server.url, data=b"one")
    server.keys, server.measurement = KeySet(), bytes(32)
    with pytest.raises(ServerRefused):
        session.post(server.url, data=b"two")
    assert len(server.sealed) == 2 and len(server.opened) == 1


def test_a_server_that_was_verified_again_before_its_keys_changed_is_asked_for_the_new_ones(server, policy):
    """Another thread may have verified it meanwhile: what counts is whether the keys are others, not the verdict."""
    adapter = SealedAdapter(policy)
    session = requests.Session()
    session.mount("http://", adapter)
    session.post(server.url, data=b"one")
    servers = adapter._exchanges.servers
    known = servers.get(Endpoint.parse(server.url), time.time())

    def verified_meanwhile(kind, body, answer):
        if kind == "request" and not answered:
            answered.append(answer)
            servers.put(replace(known, expires=known.expires + 1))
        return answer

    answered = []
    server.keys, server.host = KeySet(), verified_meanwhile
    assert session.post(server.url, data=b"two").content == b"two"
    assert len(answered) == 1


def test_another_spelling_of_the_servers_address_is_sealed_too_or_refused(server, policy):
    session = requests.Session()
    session.mount("http://", SealedAdapter(policy))
    session.mount("https://", SealedAdapter(policy))
    other = server.url.replace("http://", "http://me:password@")
    assert session.post(other, data=b"a secret").content == b"a secret"
    for url in (server.origin, server.url.replace("/predictions", "/models")):
        with pytest.raises(ServerUnsealed):
            session.post(url, data=b"a secret")
    assert all(b"a secret" not in body for _, _, _, body in server.seen)


def test_the_same_key_offered_again_ends_the_attempt(server, policy):
    def forge(kind, body, answer):
        return Outer(400, PROBLEM_TYPE, KEY_UNKNOWN.serialise()) if kind == "request" else answer

    server.host = forge
    with pytest.raises(RequestRefused, match="still offers"):
        session_for(server, policy).post(server.url, data=b"one")
    assert len(server.sealed) == 1


def test_a_second_refusal_is_not_followed_by_a_third_attempt(server, policy):
    def forge(kind, body, answer):
        server.keys = KeySet()
        return Outer(422, PROBLEM_TYPE, NOT_OPENED.serialise()) if kind == "request" else answer

    session = session_for(server, policy)
    server.host = forge
    with pytest.raises(RequestRefused):
        session.post(server.url, data=b"one")
    assert len(server.sealed) == 2


def test_the_retry_can_be_turned_off(server, policy):
    session = session_for(server, policy, retry=False)
    session.post(server.url, data=b"one")
    server.keys = KeySet()
    with pytest.raises(RequestRefused):
        session.post(server.url, data=b"two")
    assert len(server.sealed) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Outer(500, "text/plain", b"secret?"),
        Outer(409, PROBLEM_TYPE, b"{}"),
        Outer(400, PROBLEM_TYPE, b"not json"),
        Outer(400, "application/json", KEY_UNKNOWN.serialise()),
        Outer(500, PROBLEM_TYPE, KEY_UNKNOWN.serialise()),
        Outer(302, "text/plain", b""),
        Outer(200, "application/json", b'{"forged": true}'),
        Outer(413, "application/json", b"{}"),
    ],
    ids=lambda answer: f"{answer.status} {answer.media_type}",
)
def test_an_answer_without_encapsulation_is_an_error_and_never_a_retry(server, policy, answer):
    server.host = lambda kind, body, true: answer if kind == "request" else true
    with pytest.raises(RequestRefused) as raised:
        session_for(server, policy).post(server.url, data=b"one")
    assert raised.value.status == answer.status and "secret" not in str(raised.value)
    assert len(server.sealed) == 1


def test_a_lost_connection_is_not_retried(server, policy):
    session = session_for(server, policy)
    session.post(server.url, data=b"one")

    def vanish(kind, body, answer):
        raise ConnectionAbortedError

    server.host = vanish
    with pytest.raises((requests.ConnectionError, StreamTruncated)):
        session.post(server.url, data=b"two")
    assert len(server.sealed) == 2


def test_a_changed_or_swapped_answer_does_not_open(server, policy):
    answers = []

    def swap(kind, body, answer):
        if kind == "request":
            answers.append(answer.body)
            return replace(answer, body=answers[0])
        return answer

    session = session_for(server, policy)
    server.host = swap
    assert session.post(server.url, data=b"mine").content == b"mine"
    with pytest.raises(EncapsulationInvalid):
        session.post(server.url, data=b"yours")


def test_a_single_answer_to_a_chunked_request_is_refused(server, policy):
    session = session_for(server, policy)
    session.post(server.url)
    server.host = lambda kind, body, answer: Outer(200, "message/ohttp-res", b"x" * 100)
    with pytest.raises(EncapsulationInvalid):
        session.post(server.url, stream=True)


def test_a_replayed_request_is_refused_by_the_server(server, policy):
    session_for(server, policy).post(server.url, data=b"one")
    again = requests.post(server.url, data=server.sealed[0], headers={"Content-Type": "message/ohttp-req"})
    assert again.status_code == 409
    assert len(server.opened) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_with_a_wrong_clock_corrects_itself_once(server, policy, stream):
    session = session_for(server, policy)
    late = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    assert session.post(server.url, data=b"one", headers=late, stream=stream).content == b"one"
    assert len(server.sealed) == 2
    assert [request.header("date") != late["Date"] for request in server.opened] == [True]


def test_a_redirection_inside_is_not_followed(policy):
    away = Response(307, (("location", "http://127.0.0.1:9/elsewhere"),))
    with SealedServer(model=lambda request: away) as server, pytest.raises(ClientError, match="redirection"):
        session_for(server, policy).post(server.url, data=b"secret")


def test_importing_the_client_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, strongroom.client.adapter; sys.exit('torch' in sys.modules or 'starlette' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_measurement_in_the_policy_is_the_servers(server):
    assert server.measurement == MEASUREMENT


def test_a_session_with_a_sealed_adapter_is_not_pickled(policy):
    session = requests.Session()
    session.mount("http://h:8080", SealedAdapter(policy))
    with pytest.raises(TypeError, match="mount one in each process"):
        pickle.dumps(session)
