"""One HTTP answer with an end: a number of bytes, and a moment by which the last of them has to be here.

The timeouts of libraries are for each piece: who sends a byte now and then, in the header or in the body, holds its
reader for as long as it likes. So every connection of a `session` tells who waits for it, and at the deadline it is
shut down under the reader. What libraries raise on the way is an `OSError` here, whichever of them raised it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

WHOLE = 3.0
"""The whole answer may take this many times what a piece of it may."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came: the body is read where the status is 200, one byte past the limit at most."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(session: requests.Session, method: str, url: str, *, timeout: float, limit: int, **options: Any) -> Answer:
    """One question of a session made by `session`; no redirects. Raises `OSError`."""
    watch = _Watch()
    try:
        with watch.until(WHOLE * timeout):
            return _asked(session, method, url, timeout, limit, options)
    except (OSError, urllib3.exceptions.HTTPError) as error:  # `raw` raises what requests does not know
        if watch.expired:
            raise watch.overdue() from error
        if isinstance(error, OSError):
            raise
        raise requests.ConnectionError(str(error)) from error


def _asked(
    session: requests.Session, method: str, url: str, timeout: float, limit: int, options: dict[str, Any]
) -> Answer:
    with session.request(method, url, timeout=timeout, allow_redirects=False, stream=True, **options) as answer:
        body = bytes(answer.raw.read(limit + 1, decode_content=True)) if answer.status_code == 200 else b""
        return Answer(answer.status_code, answer.headers, body)


def session() -> requests.Session:
    """A session whose connections end at the deadline of `ask`; may be used from many threads."""
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter())
    return made


class _Watch:
    """Shuts the connection down that this thread waits for, at the deadline."""

    def __init__(self) -> None:
        self.expired = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def until(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        _WAITING.watch = self
        try:
            yield
            if self.expired:  # a body without a length looks whole when its connection ends
                raise self.overdue()
        finally:
            _WAITING.watch = None
            timer.cancel()
            with self._lock:
                self._socket = None  # the connection may serve another question from now on

    def overdue(self) -> TimeoutError:
        return TimeoutError("the answer took too long")

    def waits_for(self, connected: socket.socket | None) -> None:
        with self._lock:
            self._socket = connected
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # under TLS too: there is no time to say so


class _Waiting(threading.local):
    watch: _Watch | None = None


_WAITING = _Waiting()


def _told(connected: socket.socket | None) -> None:
    if _WAITING.watch is not None:
        _WAITING.watch.waits_for(connected)


class _Plain(HTTPConnection):
    def getresponse(self) -> Any:
        _told(self.sock)
        return super().getresponse()


class _Secure(HTTPSConnection):
    def getresponse(self) -> Any:
        _told(self.sock)
        return super().getresponse()


class _Adapter(HTTPAdapter):
    def get_connection_with_tls_context(self, *arguments: Any, **named: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*arguments, **named)
        pool.ConnectionCls = _Secure if pool.scheme == "https" else _Plain
        return pool
