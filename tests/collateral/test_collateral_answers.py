"""Answers that break off, drip or are nonsense: each is one error of ours, and in time."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from strongroom.attest.azure import HttpMetadata
from strongroom.collateral.answers import ask, session
from strongroom.collateral.sources import LONGEST_ANSWER, Web
from strongroom.errors import AttesterUnavailable, BrokerUnreachable, CollateralUnavailable
from strongroom.keeper.cdh import CdhClient
from strongroom.keys import ArchiveDigest

HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "cut short": HEAD + b"Content-Length: 1000\r\n\r\nabc",
    "no gzip": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "no chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "no HTTP": b"SSH-2.0-x\r\n",
    "nothing": b"",
}


def drip(before: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    def answer(client: socket.socket) -> None:
        client.sendall(before)
        for _ in range(200):
            client.sendall(piece)
            time.sleep(0.05)

    return answer


DRIPS = {
    "a body": drip(HEAD + b"Content-Length: 100000\r\n\r\n", b"x"),
    "a body without a length": drip(HEAD + b"\r\n", b"x"),
    "a header": drip(HEAD, b"X-More: x\r\n"),
    "one line of a header": drip(HEAD + b"X-More: ", b"x"),
    "the size of a chunk": drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
}


@contextlib.contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[int]]]:
    """The address of a server that treats every connection so, and how many there were."""
    listener, count = socket.create_server(("127.0.0.1", 0)), [0]

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            count[0] += 1
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                answer(client)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", count
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def web(timeout: float = 5.0) -> Web:
    return Web(timeout=timeout, sleep=lambda seconds: None)


@pytest.mark.parametrize("how", BROKEN)
def test_an_answer_that_breaks_off_is_asked_for_again_and_then_said(how):
    with served(lambda client: client.sendall(BROKEN[how])) as (url, count):
        with pytest.raises(CollateralUnavailable, match="ConnectionError"):
            web().get(f"{url}/x")
        assert count == [3]
        with pytest.raises(AttesterUnavailable, match="no answer"):
            HttpMetadata(url).ask("/x", None)
        with pytest.raises(BrokerUnreachable, match="no data hub"):
            CdhClient(url).fetch(("default", "key", "x"), ArchiveDigest(bytes(32)))


@pytest.mark.parametrize("what", DRIPS)
def test_who_sends_a_byte_now_and_then_holds_nobody_up(what):
    with served(DRIPS[what]) as (url, count):
        began = time.monotonic()
        with pytest.raises(CollateralUnavailable, match="took too long"):
            web(timeout=0.2).get(f"{url}/x")
        assert 0.5 < time.monotonic() - began < 5
        assert count == [1]


def test_a_silent_one_is_left_after_the_timeout():
    with served(lambda client: time.sleep(5)) as (url, _):
        began = time.monotonic()
        with pytest.raises(CollateralUnavailable, match="Timeout"):
            Web(timeout=0.2, tries=1).get(f"{url}/x")
        assert time.monotonic() - began < 3


def test_an_answer_of_too_many_bytes_is_refused_before_it_is_unpacked():
    body = gzip.compress(bytes(LONGEST_ANSWER + 1))
    head = HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        served(lambda client: client.sendall(head + body)) as (url, _),
        pytest.raises(CollateralUnavailable, match="more than"),
    ):
        web().get(f"{url}/x")


def test_a_connection_that_is_used_again_has_a_new_deadline():
    def twice(client: socket.socket) -> None:
        for number in range(3):
            client.sendall(HEAD + b"Content-Length: 1\r\n\r\n" + str(number).encode())
            client.recv(65536)

    with served(twice) as (url, count), session() as one:
        bodies = []
        for _ in range(3):
            bodies.append(ask(one, "GET", url, timeout=0.1, limit=10).body)
            time.sleep(0.4)  # the deadline of the question before is long past
        assert (bodies, count) == ([b"0", b"1", b"2"], [1])
