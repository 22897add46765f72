"""`SealedAdapter`: `requests` as before, sealed.

    session = requests.Session()
    adapter = SealedAdapter(policy="policy.toml")
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    answer = session.post("http://host:8080/predictions/digits", data=scan)

Mounted like this, the session sends nothing in the clear: a URL that leads to no model is refused. A mount on one host
would let other spellings of it pass (docs/guides/ask.md).

Each request goes to the model's prediction path as one encapsulated POST; the answer comes back as an
ordinary `requests.Response`. With ``stream=True`` the answer is asked for in chunks and delivered as they
come. Errors of ours (`ServerRefused`, `StreamTruncated`, …) leave as they are; a lost connection is
`requests`' own error.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from http.client import responses as reasons
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import DecodeError, HTTPError
from urllib3.response import HTTPResponse, _get_decoder

from strongroom.channel.bhttp import Headers, Limits, Request
from strongroom.channel.kem import XWING
from strongroom.channel.padding import NO_PADDING, Padding
from strongroom.client.endpoint import Endpoint
from strongroom.client.exchange import OUTER, Answered, Exchanges, OuterHead, ResponseStream, Send, Step
from strongroom.client.verify import MAX_AGE, Trust, VerifiedServer
from strongroom.errors import ClientError, StreamTruncated
from strongroom.evidence.judge import Endorse, no_endorsements
from strongroom.evidence.policy import Policy

Result = TypeVar("Result")
_READ = 64 * 1024


class SealedAdapter(HTTPAdapter):
    """A transport adapter for `requests.Session.mount`. Thread-safe as `HTTPAdapter` is.

    `policy` is a policy file or a `Policy`; there is no default, since no policy means no. `models` maps
    paths such as ``/invocations`` to a model's name. `outer` are the header fields that the frontend has to
    see. `padding` is a policy of `strongroom.channel.padding`. `kems` other than X-Wing, `retry`,
    `nonce` and `max_age` are explained in docs/protocol.md sections 3, 4 and 6. `endorse` obtains vendors'
    endorsements for TEEs that need them. Further arguments go to `HTTPAdapter`.
    """

    def __init__(
        self,
        policy: Policy | Path | str,
        *,
        models: Mapping[str, str] | None = None,
        outer: Sequence[str] = OUTER,
        padding: str = "none",
        kems: Sequence[int] = (XWING,),
        max_age: float = MAX_AGE,
        retry: bool = True,
        nonce: bool = True,
        plugins: Sequence[str] = (),
        endorse: Endorse = no_endorsements,
        limits: Limits | None = None,
        **arguments: Any,
    ) -> None:
        """Raises `ConfigurationInvalid` for a policy that cannot be used."""
        super().__init__(**arguments)
        self._models = dict(models or {})
        self._exchanges = Exchanges(
            trust=Trust.load(policy, plugins=plugins, endorse=endorse, kems=kems, max_age=max_age),
            padding=Padding(padding) if padding != "none" else NO_PADDING,
            outer=tuple(name.lower() for name in outer),
            retry=retry,
            nonce=nonce,
            limits=limits or Limits(),
        )
        self._verifying: dict[Endpoint, threading.Lock] = {}

    def __getstate__(self) -> NoReturn:
        raise TypeError("a SealedAdapter is not pickled: mount one in each process, which verifies for itself")

    def verify_server(self, url: str, headers: Mapping[str, str] | None = None, **arguments: Any) -> VerifiedServer:
        """Verify the server behind a model's URL now; raises `ServerRefused` with every check.

        `arguments` are those of `HTTPAdapter.send` (`timeout`, `verify`, …).
        """
        endpoint = Endpoint.parse(url, self._models)
        wire = _Wire(self, arguments)
        return wire.drive(self._exchanges.verify(endpoint, tuple((headers or {}).items())))

    def exchange(self, request: Request, url: str, *, stream: bool, **arguments: Any) -> tuple[Answered, _Wire]:
        """Send an inner request sealed to the model behind `url`; `arguments` as for `verify_server`.

        The wire that comes back brings the rest of a streamed answer, and has to be closed.
        """
        endpoint = Endpoint.parse(url, self._models)
        wire = _Wire(self, arguments)
        try:
            server = self._exchanges.servers.get(endpoint, self._exchanges.clock())
            if server is None:
                with self._verifying.setdefault(
                    endpoint, threading.Lock()
                ):  # threads that start together ask for evidence once
                    server = wire.drive(self._exchanges.verified(endpoint, request.headers))
            answered = wire.drive(self._exchanges.exchange(server, request, stream=stream))
        except BaseException:
            wire.close()
            raise
        if answered.stream is None:
            wire.close()
        return answered, wire

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """What `requests.Session` calls."""
        arguments = {"timeout": timeout, "verify": verify, "cert": cert, "proxies": proxies}
        url = str(request.url)
        answered, wire = self.exchange(_inner(request), url, stream=stream, **arguments)
        return self._response(request, answered, wire)

    def send_outer(self, request: requests.PreparedRequest, arguments: Mapping[str, Any]) -> requests.Response:
        """Post an outer request in the clear, as `HTTPAdapter` does. It holds only what `exchange` gave."""
        return super().send(request, stream=True, **arguments)

    def _response(self, request: requests.PreparedRequest, answered: Answered, wire: _Wire) -> requests.Response:
        head = answered.head
        if head.status in (301, 302, 303, 307, 308) and any(name == "location" for name, _ in head.headers):
            wire.close()
            raise ClientError(
                f"the model answered with a redirection ({head.status}), which is not followed",
                hint="a redirection could lead out of the sealed channel; ask the new address yourself",
            )
        headers: CaseInsensitiveDict[str] = CaseInsensitiveDict()
        for name, value in head.headers:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        raw = SealedBody(answered, wire, headers)
        response = requests.Response()
        response.status_code = head.status
        response.headers = headers
        response.encoding = requests.utils.get_encoding_from_headers(headers)
        response.raw = raw
        response.reason = reasons.get(head.status, "")
        response.url = str(request.url)
        response.request = request
        response.connection = self
        return response


def _inner(request: requests.PreparedRequest) -> Request:
    """The request that the program wrote, as the model will see it."""
    parts = urlsplit(str(request.url))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers: Headers = tuple(
        (_text(name).lower(), _text(value).strip(" \t")) for name, value in request.headers.items()
    )
    authority = parts.netloc.rpartition("@")[2]
    return Request(str(request.method), parts.scheme, authority, path, headers, _body(request.body))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _body(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    if hasattr(body, "read"):
        read = body.read()
        return read.encode() if isinstance(read, str) else bytes(read)
    return b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in body)


class _Wire:
    """Carries the steps of `exchange` over an adapter's connections."""

    def __init__(self, adapter: SealedAdapter, arguments: Mapping[str, Any]) -> None:
        self._adapter = adapter
        self._arguments = dict(arguments)
        self._answer: requests.Response | None = None
        self._octets: Iterator[bytes] = iter(())
        self._ended = True

    def drive(self, steps: Generator[Step, object, Result]) -> Result:
        """Run the generator to its result."""
        reply: object = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            reply = self._post(step) if isinstance(step, Send) else self.receive()

    def _post(self, step: Send) -> OuterHead:
        self.close()
        prepared = requests.PreparedRequest()  # by hand: `prepare` would cost more than the encryption
        prepared.method, prepared.url, prepared.body = "POST", step.url, step.content  # type: ignore[assignment]
        prepared.headers = CaseInsensitiveDict({**dict(step.headers), "content-length": str(len(step.content))})
        self._answer = self._adapter.send_outer(prepared, self._arguments)
        self._octets, self._ended = self._answer.raw.stream(_READ, decode_content=False), False
        return OuterHead(self._answer.status_code, self._answer.headers.get("content-type", ""))

    def receive(self) -> bytes:
        """The next bytes as they come, b"" at the end; raises `StreamTruncated` if the connection breaks."""
        try:
            octets = next(self._octets, b"")
        except (HTTPError, OSError) as error:
            raise StreamTruncated(f"the connection broke inside the answer: {type(error).__name__}") from error
        self._ended = not octets
        return octets

    def close(self) -> None:
        """Give the connection back, or drop it if its answer was not read to the end."""
        if self._answer is not None:
            with contextlib.suppress(HTTPError, OSError):
                if not self._ended:
                    self._answer.raw.close()
                self._answer.close()
            self._answer = None

    __del__ = close


class SealedBody(io.RawIOBase):
    """What `requests.Response.raw` needs: content pieces as they come, decoded where the model compressed them."""

    def __init__(self, answered: Answered, wire: _Wire, headers: Mapping[str, str]) -> None:
        self.status = answered.head.status
        self.reason = reasons.get(answered.head.status, "")
        self.headers = headers
        self._wire = wire
        self._pieces = self._content(answered.content, answered.stream)
        self._left = b""

    def _content(self, first: bytes, stream: ResponseStream | None) -> Iterator[bytes]:
        if first:
            yield first
        while stream is not None:
            try:
                octets = self._wire.receive()
            except StreamTruncated as error:
                raise stream.truncated(str(error), error.hint) from error
            yield from stream.feed(octets) if octets else stream.finish()
            if not octets:
                self._wire.close()
                return

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        """Pieces of at most `amt` bytes, each as soon as it is there.

        Raises `StreamTruncated`, and urllib3's `DecodeError` for what its content encoding cannot be undone of.
        """
        left, self._left = self._left, b""
        pieces: Iterator[bytes] = itertools.chain([left] if left else (), self._pieces)
        decoder = _decoder(self.headers.get("content-encoding", "")) if decode_content else None
        for octets in _decoded(pieces, decoder) if decoder else pieces:
            for at in range(0, len(octets), amt or len(octets) or 1):
                yield octets[at : at + (amt or len(octets))]

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int | None = -1, decode_content: bool | None = None) -> bytes:
        """`size` bytes, less at the end; everything for None or -1. Not decompressed."""
        wanted = -1 if size is None else size
        pieces = [self._left]
        have = len(self._left)
        while wanted < 0 or have < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                break
            pieces.append(piece)
            have += len(piece)
        octets = b"".join(pieces)
        cut = len(octets) if wanted < 0 else wanted
        self._left = octets[cut:]
        return octets[:cut]

    def readinto(self, buffer: Any) -> int:
        """For `io`'s wrappers."""
        octets = self.read(len(buffer))
        buffer[: len(octets)] = octets
        return len(octets)

    def release_conn(self) -> None:
        """Called by `requests` when it is done."""
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._wire.close()
        super().close()


def _decoder(encoding: str) -> Any:
    """urllib3's decompressor for a Content-Encoding, which is what `requests` uses, or None where it has none."""
    names = [name.strip() for name in encoding.lower().split(",")]
    if any(name not in HTTPResponse.CONTENT_DECODERS for name in names):
        return None
    return _get_decoder(",".join(names))


def _decoded(pieces: Iterator[bytes], decoder: Any) -> Iterator[bytes]:
    try:
        for piece in pieces:
            yield decoder.decompress(piece)
        yield decoder.flush()
    except HTTPResponse.DECODER_ERROR_CLASSES as error:
        raise DecodeError(f"the answer is not in the content encoding that it names: {type(error).__name__}") from error
