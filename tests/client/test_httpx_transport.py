"""`httpx` as before, sealed: both kinds of client against a real server."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from doubles.sealed_server import POLICY, SealedServer, Stream
from strongroom.channel.bhttp import Response
from strongroom.channel.keyset import KeySet
from strongroom.client.endpoint import Endpoint
from strongroom.client.httpx_transport import AsyncSealedTransport, SealedTransport
from strongroom.errors import ClientError, ServerRefused, ServerUnsealed, StreamTruncated


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


def client_for(server, policy, **settings):
    return httpx.Client(transport=SealedTransport(policy, **settings))


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_variables_about_proxies_let_nothing_pass_in_the_clear(policy, monkeypatch, name):
    with SealedServer() as server:
        value = "localhost,127.0.0.1" if name.lower() == "no_proxy" else "http://127.0.0.1:9"
        monkeypatch.setenv(name, value)
        with client_for(server, policy) as client:
            assert client.post(server.url, content=b"a secret").status_code == 200
        assert all(b"a secret" not in body for _, _, _, body in server.seen)
        assert server.opened[0].content == b"a secret"


def test_another_endpoint_of_the_server_is_refused_and_not_asked(policy):
    with SealedServer() as server, client_for(server, policy) as client:
        with pytest.raises(ServerUnsealed):
            client.get(server.origin + "/models")
        assert server.seen == []


def test_a_post_comes_back_as_an_ordinary_response(policy):
    with SealedServer() as server, client_for(server, policy) as client:
        answer = client.post(server.url + "?a=1", json={"x": 1}, headers={"X-Mine": "1"})
        assert (answer.status_code, answer.json()) == (200, {"x": 1})
        assert answer.headers["x-path"] == "/predictions/digits?a=1"
        assert server.opened[0].header("x-mine") == "1"
        assert set(server.seen[-1][2]) <= {"host", "content-type", "content-length", "incremental"}


def test_a_stream_arrives_while_the_model_still_works(policy):
    go = threading.Event()

    def pieces():
        yield b"one"
        assert go.wait(10)
        yield b"two"

    with (
        SealedServer(model=lambda request: Stream(200, (), pieces())) as server,
        client_for(server, policy) as client,
        client.stream("POST", server.url) as answer,
    ):
        arrived = answer.iter_raw()
        assert next(arrived) == b"one"
        go.set()
        assert list(arrived) == [b"two"]


def cut(kind, body, answer):
    if answer.pieces is not None:
        answer.pieces = iter(list(answer.pieces)[:-1])
    return answer


def test_a_truncated_stream_is_an_error_with_what_arrived(policy):
    model = lambda request: Stream(200, (), iter([b"one", b"two"]))  # noqa: E731
    with SealedServer(model=model, host=cut) as server, client_for(server, policy) as client:
        with pytest.raises(StreamTruncated) as raised:
            client.post(server.url)
        assert raised.value.received == b"onetwo"


def test_a_server_that_fails_the_policy_is_sent_nothing(policy):
    with SealedServer(measurement=bytes(32)) as server, client_for(server, policy) as client:
        with pytest.raises(ServerRefused):
            client.post(server.url, content=b"x")
        assert server.sealed == []


def test_a_redirection_inside_is_not_followed(policy):
    away = Response(307, (("location", "http://127.0.0.1:9/"),))
    with (
        SealedServer(model=lambda request: away) as server,
        client_for(server, policy) as client,
        pytest.raises(ClientError, match="redirection"),
    ):
        client.post(server.url, content=b"x")


def test_many_asynchronous_requests_verify_once_and_survive_a_rotation(policy):
    async def ask(server):
        async with httpx.AsyncClient(transport=AsyncSealedTransport(policy)) as client:
            first = await asyncio.gather(*(client.post(server.url, content=b"%d" % n) for n in range(8)))
            server.keys = KeySet()
            again = await client.post(server.url, content=b"again")
            return [answer.content for answer in first], again.content

    with SealedServer() as server:
        first, again = asyncio.run(ask(server))
        assert first == [b"%d" % n for n in range(8)] and again == b"again"
        questions = [headers for *_, headers, _ in server.seen if "keys-request" in headers["content-type"]]
        assert len(questions) == 2


def test_an_asynchronous_stream_arrives_in_pieces_and_notices_a_cut(policy):
    async def ask(server):
        async with httpx.AsyncClient(transport=AsyncSealedTransport(policy)) as client:
            async with client.stream("POST", server.url) as answer:
                pieces = [piece async for piece in answer.aiter_raw()]
            server.host = cut
            with pytest.raises(StreamTruncated):
                await client.post(server.url)
            return pieces

    with SealedServer(model=lambda request: Stream(200, (), iter([b"one", b"two"]))) as server:
        assert asyncio.run(ask(server)) == [b"one", b"two"]


def test_an_asynchronous_transport_serves_one_event_loop_after_another(policy):
    async def ask(server, transport):
        client = httpx.AsyncClient(transport=transport)
        return [answer.status_code for answer in await asyncio.gather(*(client.post(server.url) for _ in range(4)))]

    with SealedServer() as server:
        transport = AsyncSealedTransport(policy)
        for _ in range(2):
            transport._transport = httpx.AsyncHTTPTransport()  # httpx's own belongs to one loop
            assert asyncio.run(ask(server, transport)) == [200] * 4
            known = transport._settings.known(Endpoint.parse(server.url, {}))
            transport._settings.exchanges.servers.drop(known)  # so that the next loop has to verify as well
