"""Clients that hold a connection open and say nothing useful, in every way there is."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

HEAD = b"POST /predictions/digits HTTP/1.1\r\nHost: h\r\n"
BEGINNINGS = {
    "nothing": b"",
    "half a line": b"POST /predic",
    "half a head": HEAD,
    "half a body": HEAD + b"Content-Type: message/ohttp-req\r\nContent-Length: 1000\r\n\r\nabc",
    "chunks without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "waiting for 100": HEAD + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "an answer never read": HEAD + b"Content-Length: 2\r\n\r\n{}",
}


@contextlib.contextmanager
def half_open_clients(port: int, of_each: int) -> Iterator[None]:
    """So many clients of each kind are connected to a local port while the block runs."""
    with contextlib.ExitStack() as crowd:
        for octets in BEGINNINGS.values():
            for _ in range(of_each):
                client = crowd.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                with contextlib.suppress(OSError):  # who is refused at once has had its turn
                    client.sendall(octets)
        yield
