"""A local proxy: plain HTTP on loopback, sealed beyond.

For curl, a browser's fetch, or an SDK in any language: it gets ``http://127.0.0.1:PORT`` as its base URL and
knows nothing of encryption. Answers stream through as they come; one that is cut beyond is cut here as
well, without the end that HTTP would give it.

Between program and proxy there is plaintext, so it listens on loopback only. A web page of a stranger
must not use it: requests with an `Origin` that was not allowed, with a `Host` that is not loopback (DNS
rebinding), or of which a browser says that another site made them (an image, a script), are refused.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import requests

from strongroom.channel.bhttp import Headers, Request
from strongroom.channel.fields import end_to_end
from strongroom.client.adapter import SealedAdapter, SealedBody
from strongroom.errors import (
    ConfigurationInvalid,
    MalformedInput,
    RequestRefused,
    ServerUnavailable,
    ServerUnsealed,
    StrongroomError,
)

_log = logging.getLogger(__name__)
BODY_LIMIT = 1 << 30
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
_OWN_SITE = (None, "none", "same-origin")
"""What browsers say in Sec-Fetch-Site of what the user or the proxy's own pages asked for; programs say nothing."""


class SealedProxy:
    """Forwards ``http://127.0.0.1:PORT/…`` to `base`/…, sealed through `adapter`, until `close`.

    `origins` are the web origins that may use it. `arguments` go to each outer request (`timeout`, `verify`).
    """

    def __init__(
        self,
        base: str,
        adapter: SealedAdapter,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        origins: Sequence[str] = (),
        **arguments: Any,
    ) -> None:
        """Listens at once; raises `ConfigurationInvalid` for an address that is not loopback or not free."""
        try:
            parts = urlsplit(base)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # brackets, or a port, of another form
            known = None
        if not known or parts.query or parts.fragment:
            raise ConfigurationInvalid(f"{base!r} is not a server's address", hint="for example http://host:8080")
        if not _is_loopback(host):
            raise ConfigurationInvalid(
                f"the proxy does not listen on {host}",
                hint="programs talk plaintext to it, so it stays on 127.0.0.1 or ::1; start one on each machine",
            )
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.authority = parts.netloc.rpartition("@")[2]
        self.scheme = parts.scheme
        self.origin = f"{parts.scheme}://{self.authority}"
        self.front = parts.path.rstrip("/")
        self.adapter = adapter
        self.origins = frozenset(origins)
        self.arguments = arguments
        listener = type("Listener", (ThreadingHTTPServer,), {"address_family": _family(host)})
        try:
            self._server: ThreadingHTTPServer = listener((host, port), handler)
        except (OSError, OverflowError) as error:  # the latter for a port that there is not
            raise ConfigurationInvalid(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', 'there is no such port')}",
                hint="choose another --port, or 0 for a free one",
            ) from error
        self._server.daemon_threads = True
        self._host = host
        self._serving = False

    @property
    def url(self) -> str:
        """Where programs reach it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_address[1]}"

    def run(self) -> None:
        """Serve until `close`."""
        self._serving = True
        self._server.serve_forever(poll_interval=0.1)

    def start(self) -> SealedProxy:
        """Serve in a thread of its own."""
        self._serving = True
        threading.Thread(target=self.run, daemon=True).start()
        return self

    def close(self) -> None:
        """Stop; requests under way end with their connections."""
        if self._serving:  # `shutdown` waits for an end, which what never began does not have
            self._server.shutdown()
        self._server.server_close()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Handler(BaseHTTPRequestHandler):
    """One connection of a local program."""

    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024  # one packet for head and body, or a delayed ACK costs 40 ms
    disable_nagle_algorithm = True
    server_version = "strongroom-proxy"
    sys_version = ""
    proxy: SealedProxy

    def _serve(self) -> None:
        try:
            if not self._allowed():
                return
            request = self._request()
        except MalformedInput as error:
            self._problem(400, error)
            self.close_connection = True
            return
        proxy = self.proxy
        try:
            url = proxy.origin + request.path
            answered, wire = proxy.adapter.exchange(request, url, stream=True, **proxy.arguments)
        except StrongroomError as error:
            self._problem(_status(error), error)
        except requests.Timeout as error:
            self._problem(504, _plain(error, proxy.origin))
        except requests.RequestException as error:
            self._problem(502, _plain(error, proxy.origin))
        else:
            body = SealedBody(answered, wire, {})
            dropped = {"content-length", "date", "server"}
            dropped |= {"access-control-allow-origin"} if self.headers.get("origin") else set()  # ours is the one
            headers = tuple(line for line in end_to_end(answered.head.headers) if line[0] not in dropped)
            with body:
                self._relay(answered.head.status, headers, body.stream(), whole=answered.stream is None)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve  # noqa: N815 -- http.server names them

    def handle_expect_100(self) -> bool:
        """Ask for the body at once, of who may send one; what waits in the buffer would be waited for."""
        if not self._allowed():
            return False
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def do_OPTIONS(self) -> None:
        """A browser's preflight, where its origin is allowed; else an ordinary request."""
        if "access-control-request-method" not in self.headers:
            self._serve()
            return
        if self._allowed():
            self.send_response(204)
            self.send_header("access-control-allow-methods", "GET, POST, PUT, DELETE, PATCH")
            self.send_header("access-control-allow-headers", self.headers.get("access-control-request-headers", ""))
            self._cors()
            self.end_headers()

    def _allowed(self) -> bool:
        try:
            named = urlsplit(f"//{self.headers.get('host', '')}").hostname or ""
        except ValueError:
            named = ""
        origin, site = self.headers.get("origin"), self.headers.get("sec-fetch-site")
        if _is_loopback(named) and (origin in self.proxy.origins if origin else site in _OWN_SITE):
            return True
        what = f"the web origin {origin or '(another site)'}" if _is_loopback(named) else f"the host name {named!r}"
        self._problem(
            403,
            ConfigurationInvalid(f"{what} may not use this proxy", hint="allow a web origin of your own with --origin"),
        )
        self.close_connection = True
        return False

    def _request(self) -> Request:
        headers: Headers = tuple(
            (name.lower(), value.strip())
            for name, value in self.headers.items()
            if name.lower() not in ("host", "expect", "content-length")
        )
        content = self._content()
        if content or self.command in ("POST", "PUT", "PATCH"):
            headers = (*headers, ("content-length", str(len(content))))
        proxy = self.proxy
        return Request(self.command, proxy.scheme, proxy.authority, proxy.front + self._target(), headers, content)

    def _target(self) -> str:
        """Path and query of the request line, which may name a whole URL (RFC 9112 section 3.2.2)."""
        target = self.path
        if not (target.isascii() and target.isprintable()):
            raise MalformedInput("a request target with characters that have to be escaped")
        if target.lower().startswith(("http://", "https://")):
            _, _, rest = target.partition("://")
            at = min((rest.find(each) for each in "/?" if each in rest), default=len(rest))
            target = rest[at:] if rest[at : at + 1] == "/" else "/" + rest[at:]
        if not target.startswith("/"):
            raise MalformedInput("a request target that is no path")
        return target

    def _content(self) -> bytes:
        lengths = set(self.headers.get_all("content-length", []))
        if "transfer-encoding" in self.headers:
            if lengths or self.headers["transfer-encoding"].strip().lower() != "chunked":
                raise MalformedInput("a body whose end is not said in one way: chunked, or a Content-Length")
            return b"".join(self._chunks())
        length = lengths.pop() if lengths else "0"
        if lengths or not (length.isascii() and length.isdecimal()) or len(length) > 10 or int(length) > BODY_LIMIT:
            raise MalformedInput(f"a Content-Length that is not one number up to {BODY_LIMIT}")
        return self._exactly(int(length))

    def _exactly(self, size: int) -> bytes:
        octets = self.rfile.read(size)
        if len(octets) < size:
            raise MalformedInput("the connection ended inside the body")
        return octets

    def _line(self) -> bytes:
        line = self.rfile.readline(8192)
        if not line.endswith(b"\n"):
            raise MalformedInput("a line that is too long, or that the connection ended in")
        return line

    def _chunks(self) -> Iterator[bytes]:
        """The body in HTTP/1.1 chunks (RFC 9112 section 7.1), trailers read and dropped."""
        total = 0
        while True:
            said = _CHUNK_SIZE.fullmatch(self._line())
            if said is None:
                raise MalformedInput("a chunk's size is not a hexadecimal number")
            size = int(said[1], 16)
            total += size
            if total > BODY_LIMIT:
                raise MalformedInput(f"a body of more than {BODY_LIMIT} bytes")
            if size == 0:
                while self._line().strip():
                    pass
                return
            yield self._exactly(size)
            if self._exactly(2) != b"\r\n":
                raise MalformedInput("a chunk that is longer than its size says")

    def _cors(self) -> None:
        if origin := self.headers.get("origin"):
            self.send_header("access-control-allow-origin", origin)
            self.send_header("vary", "origin")

    def _relay(self, status: int, headers: Headers, pieces: Iterator[bytes], *, whole: bool) -> None:
        bodiless = self.command == "HEAD" or status in (204, 304)
        whole = whole or bodiless or self.request_version == "HTTP/1.0"
        try:
            content = b"".join(pieces) if whole else b""
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self._cors()
            if whole:
                if status not in (204, 304):
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(b"" if bodiless else content)
                return
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for piece in pieces:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except StrongroomError as error:
            _log.warning("a stream was cut: %s", type(error).__name__)
            self.close_connection = True  # no last chunk: the program sees that its answer is not whole
        except OSError:
            self.close_connection = True  # the program went away

    def _problem(self, status: int, error: StrongroomError) -> None:
        _log.warning("%d %s", status, type(error).__name__)  # the text may name a path, and the program has it
        document = {"type": "about:blank", "title": type(error).__name__, "status": status, "detail": str(error)}
        body = json.dumps(document | {"hint": error.hint}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/problem+json")
        self.send_header("content-length", str(len(body)))
        if self.headers.get("origin") in self.proxy.origins:
            self._cors()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: paths and queries are plaintext."""


def _status(error: StrongroomError) -> int:
    if isinstance(error, ServerUnavailable):
        return 503
    if isinstance(error, RequestRefused) and error.status in (401, 403, 404, 413):
        return error.status
    if isinstance(error, ServerUnsealed) and "not a model's endpoint" in str(error):
        return 404
    return 502


def _plain(error: requests.RequestException, base: str) -> StrongroomError:
    """An error of the outer connection, without the URL that `requests` puts into its text."""
    return ServerUnavailable(f"{base} cannot be reached: {type(error).__name__}", hint="is the server running there?")
