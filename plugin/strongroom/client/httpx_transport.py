"""`httpx` as before, sealed, synchronous and asynchronous; needs the extra ``strongroom[httpx]``.

    client = httpx.Client(transport=SealedTransport("policy.toml"))
    client.post("http://host:8080/predictions/digits", content=scan)

    client = httpx.AsyncClient(transport=AsyncSealedTransport("policy.toml"))

As `mounts` they are not safe: `httpx` has mounts of its own for the names in ``NO_PROXY``, and one of those can win.
`httpx` does not tell a transport whether its caller streams, so every answer is asked for in chunks: a
streaming model's pieces arrive as they come, and an ordinary answer arrives whole.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx

from strongroom.channel.bhttp import Headers, Limits, Request
from strongroom.channel.kem import XWING
from strongroom.channel.padding import Padding
from strongroom.client.endpoint import Endpoint
from strongroom.client.exchange import OUTER, Answered, Exchanges, OuterHead, ResponseStream, Send, Step
from strongroom.client.verify import MAX_AGE, Trust, VerifiedServer
from strongroom.errors import ClientError, StreamTruncated
from strongroom.evidence.judge import Endorse, no_endorsements
from strongroom.evidence.policy import Policy

Result = TypeVar("Result")


class _Settings:
    """What both transports are made of; the arguments are those of `client.adapter.SealedAdapter`."""

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
    ) -> None:
        self.models = dict(models or {})
        self.exchanges = Exchanges(
            trust=Trust.load(policy, plugins=plugins, endorse=endorse, kems=kems, max_age=max_age),
            padding=Padding(padding),
            outer=tuple(name.lower() for name in outer),
            retry=retry,
            nonce=nonce,
            limits=limits or Limits(),
        )

    def known(self, endpoint: Endpoint) -> VerifiedServer | None:
        return self.exchanges.servers.get(endpoint, self.exchanges.clock())


class SealedTransport(httpx.BaseTransport):
    """For `httpx.Client`. `transport` carries the outer requests; its default is httpx's own.

    The other arguments are those of `client.adapter.SealedAdapter`. Thread-safe.
    """

    def __init__(
        self, policy: Policy | Path | str, *, transport: httpx.BaseTransport | None = None, **settings: Any
    ) -> None:
        self._settings = _Settings(policy, **settings)
        self._transport = transport or httpx.HTTPTransport()
        self._verifying: dict[Endpoint, threading.Lock] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """What `httpx.Client` calls."""
        settings = self._settings
        endpoint = Endpoint.parse(str(request.url), settings.models)
        inner = _inner(request, request.read())
        wire = _Wire(self._transport, request.extensions)
        try:
            server = settings.known(endpoint)
            if server is None:
                with self._verifying.setdefault(endpoint, threading.Lock()):
                    server = wire.drive(settings.exchanges.verified(endpoint, inner.headers))
            answered = wire.drive(settings.exchanges.exchange(server, inner, stream=True))
            return _response(answered, _Body(answered, wire))
        except BaseException:
            wire.close()
            raise

    def close(self) -> None:
        """Close the outer connections."""
        self._transport.close()


class AsyncSealedTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient` on asyncio; otherwise as `SealedTransport`."""

    def __init__(
        self, policy: Policy | Path | str, *, transport: httpx.AsyncBaseTransport | None = None, **settings: Any
    ) -> None:
        self._settings = _Settings(policy, **settings)
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._verifying: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Endpoint, asyncio.Lock]]
        self._verifying = WeakKeyDictionary()  # a lock belongs to the loop on which somebody waited for it

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """What `httpx.AsyncClient` calls."""
        settings = self._settings
        endpoint = Endpoint.parse(str(request.url), settings.models)
        inner = _inner(request, await request.aread())
        wire = _AsyncWire(self._transport, request.extensions)
        try:
            server = settings.known(endpoint)
            if server is None:
                locks = self._verifying.setdefault(asyncio.get_running_loop(), {})
                async with locks.setdefault(endpoint, asyncio.Lock()):
                    server = await wire.drive(settings.exchanges.verified(endpoint, inner.headers))
            answered = await wire.drive(settings.exchanges.exchange(server, inner, stream=True))
            return _response(answered, _AsyncBody(answered, wire))
        except BaseException:
            await wire.close()
            raise

    async def aclose(self) -> None:
        """Close the outer connections."""
        await self._transport.aclose()


def _inner(request: httpx.Request, content: bytes) -> Request:
    headers: Headers = tuple(
        (name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t"))
        for name, value in request.headers.raw
        if name.lower() != b"host"
    )
    url = request.url
    return Request(request.method, url.scheme, url.netloc.decode(), url.raw_path.decode(), headers, content)


def _outer(step: Send, extensions: Mapping[str, Any]) -> httpx.Request:
    kept = {name: value for name, value in extensions.items() if name == "timeout"}
    return httpx.Request("POST", step.url, headers=dict(step.headers), content=bytes(step.content), extensions=kept)


def _response(answered: Answered, body: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.Response:
    head = answered.head
    if 300 <= head.status < 400 and any(name == "location" for name, _ in head.headers):
        raise ClientError(
            f"the model answered with a redirection ({head.status}), which is not followed",
            hint="a redirection could lead out of the sealed channel; ask the new address yourself",
        )
    return httpx.Response(head.status, headers=list(head.headers), stream=body)


def _broken(error: httpx.HTTPError) -> StreamTruncated:
    return StreamTruncated(f"the connection broke inside the answer: {type(error).__name__}")


class _Wire:
    """Carries the steps of `exchange` over an httpx transport."""

    def __init__(self, transport: httpx.BaseTransport, extensions: Mapping[str, Any]) -> None:
        self._transport = transport
        self._extensions = extensions
        self._answer: httpx.Response | None = None
        self._octets: Iterator[bytes] = iter(())

    def drive(self, steps: Generator[Step, object, Result]) -> Result:
        """Run the generator to its result."""
        reply: object = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            if isinstance(step, Send):
                self.close()
                self._answer = self._transport.handle_request(_outer(step, self._extensions))
                assert isinstance(self._answer.stream, httpx.SyncByteStream)
                self._octets = iter(self._answer.stream)
                reply = OuterHead(self._answer.status_code, self._answer.headers.get("content-type", ""))
            else:
                reply = self.receive()

    def receive(self) -> bytes:
        """The next bytes, b"" at the end; raises `StreamTruncated` if the connection breaks."""
        try:
            return next((octets for octets in self._octets if octets), b"")
        except httpx.HTTPError as error:
            raise _broken(error) from error

    def close(self) -> None:
        """Give the connection back."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None


class _AsyncWire:
    """As `_Wire`, for an asynchronous transport."""

    def __init__(self, transport: httpx.AsyncBaseTransport, extensions: Mapping[str, Any]) -> None:
        self._transport = transport
        self._extensions = extensions
        self._answer: httpx.Response | None = None
        self._octets: AsyncIterator[bytes] | None = None

    async def drive(self, steps: Generator[Step, object, Result]) -> Result:
        """Run the generator to its result."""
        reply: object = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            if isinstance(step, Send):
                await self.close()
                self._answer = await self._transport.handle_async_request(_outer(step, self._extensions))
                assert isinstance(self._answer.stream, httpx.AsyncByteStream)
                self._octets = aiter(self._answer.stream)
                reply = OuterHead(self._answer.status_code, self._answer.headers.get("content-type", ""))
            else:
                reply = await self.receive()

    async def receive(self) -> bytes:
        """The next bytes, b"" at the end; raises `StreamTruncated` if the connection breaks."""
        try:
            while self._octets is not None:
                octets = await anext(self._octets, b"")
                if octets:
                    return octets
                self._octets = None
        except httpx.HTTPError as error:
            raise _broken(error) from error
        return b""

    async def close(self) -> None:
        """Give the connection back."""
        if self._answer is not None:
            await self._answer.aclose()
            self._answer = None


def _opened(stream: ResponseStream, octets: bytes) -> list[bytes]:
    return stream.feed(octets) if octets else stream.finish()


class _Body(httpx.SyncByteStream):
    """The content as it comes."""

    def __init__(self, answered: Answered, wire: _Wire) -> None:
        self._answered, self._wire = answered, wire

    def __iter__(self) -> Iterator[bytes]:
        if self._answered.content:
            yield self._answered.content
        stream, octets = self._answered.stream, b"-"
        while stream is not None and octets:
            try:
                octets = self._wire.receive()
            except StreamTruncated as error:
                raise stream.truncated(str(error), error.hint) from error
            yield from _opened(stream, octets)

    def close(self) -> None:
        self._wire.close()


class _AsyncBody(httpx.AsyncByteStream):
    """As `_Body`, for an asynchronous client."""

    def __init__(self, answered: Answered, wire: _AsyncWire) -> None:
        self._answered, self._wire = answered, wire

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._answered.content:
            yield self._answered.content
        stream, octets = self._answered.stream, b"-"
        while stream is not None and octets:
            try:
                octets = await self._wire.receive()
            except StreamTruncated as error:
                raise stream.truncated(str(error), error.hint) from error
            for piece in _opened(stream, octets):
                yield piece

    async def aclose(self) -> None:
        await self._wire.close()
