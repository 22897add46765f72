"""One request's way through the channel, without a socket: which bytes to send, what came back.

The functions here are generators, driven alike by `requests`, by `httpx` and by its asynchronous
form. They yield `Send` (the driver posts it and answers with an `OuterHead`, body unread) and
`Receive` (the driver answers with the next bytes of that body, b"" at its end), and return the result.

What is tried again, and what never: docs/protocol.md section 6.
"""

from __future__ import annotations

import email.utils
import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import Headers, Limits, MessageReader, Request, Response, ResponseHead, Trailers
from strongroom.channel.bundle import BUNDLE_LIMIT, KEYS_REQUEST_TYPE, NONCE_SIZE, KeysRequest
from strongroom.channel.fields import end_to_end
from strongroom.channel.ohttp import Form
from strongroom.channel.padding import NO_PADDING, Padding
from strongroom.channel.problems import DATE, OHTTP_KEY, PROBLEM_TYPE, Problem
from strongroom.client.endpoint import Endpoint
from strongroom.client.verify import Trust, VerifiedServer, verify_bundle
from strongroom.encoding import labelled
from strongroom.errors import (
    EncapsulationInvalid,
    MalformedInput,
    RequestRefused,
    ServerUnavailable,
    ServerUnsealed,
    StreamTruncated,
)

PROBLEM_LIMIT = 64 * 1024
RESPONSE_LIMIT = (1 << 30) + (1 << 20)
SEQUENCE_ID = "ts_request_sequence_id"
OUTER = ("authorization", SEQUENCE_ID, "ts_request_sequence_start", "ts_request_sequence_end")
"""Fields that a frontend acts on: they go outside as well as inside. A sequence's id goes outside as a digest:
whoever knows the id itself could send a request into the sequence and learn of its state."""
_KEPT = 1 << 20  # bytes of a stream that a truncation can still show


@dataclass(frozen=True, slots=True)
class Send:
    """A POST that the driver makes."""

    url: str
    headers: Headers
    content: bytes | bytearray = field(repr=False)


@dataclass(frozen=True, slots=True)
class Receive:
    """The driver gives the next bytes of the last answer's body."""


@dataclass(frozen=True, slots=True)
class OuterHead:
    """What is known of an answer before its body: nobody vouches for it."""

    status: int
    media_type: str


Step = Send | Receive


class ResponseStream:
    """Opens a chunked answer as it comes. `feed` and `finish` give content; the head came before.

    `finish` raises `StreamTruncated`, with the last MiB of what had arrived in `received`, unless the
    authenticated end was there.
    """

    def __init__(self, opener: chunked.ResponseOpener, limits: Limits) -> None:
        self._opener = opener
        self._reader = MessageReader(response=True, limits=limits)
        self._kept: deque[bytes] = deque()
        self._kept_size = 0
        self.head: ResponseHead | None = None
        self.trailers: Headers = ()

    def feed(self, octets: bytes) -> list[bytes]:
        """Content pieces that are complete now; raises `EncapsulationInvalid` or `MessageInvalid`."""
        return [piece for opened in self._opener.feed(octets) for piece in self._take(opened)]

    def finish(self) -> list[bytes]:
        """The transport ended."""
        try:
            pieces = self._take(self._opener.finish())
        except StreamTruncated as error:
            raise self.truncated(str(error), error.hint) from error
        for event in self._reader.finish():
            self._note(event)
        return pieces

    def truncated(self, why: str, hint: str = "") -> StreamTruncated:
        """The error that says so, with what had arrived."""
        return StreamTruncated(why, received=b"".join(self._kept), hint=hint)

    def _take(self, opened: bytes) -> list[bytes]:
        pieces = []
        for event in self._reader.feed(opened):
            if isinstance(event, bytes):
                pieces.append(event)
                self._kept.append(event)
                self._kept_size += len(event)
                while self._kept_size - len(self._kept[0]) >= _KEPT:
                    self._kept_size -= len(self._kept.popleft())
            else:
                self._note(event)
        return pieces

    def _note(self, event: object) -> None:
        if isinstance(event, ResponseHead) and event.status >= 200:
            self.head = event
        elif isinstance(event, Trailers):
            self.trailers = event.headers


@dataclass(frozen=True, slots=True)
class Answered:
    """An authenticated answer: its head, content that is there, and the stream that brings the rest, if any."""

    head: ResponseHead
    content: bytes = field(repr=False)
    stream: ResponseStream | None = None


@dataclass(frozen=True, slots=True)
class _Refused:
    """An answer that was not encapsulated."""

    status: int
    problem: Problem | None


class Servers:
    """The verified servers of one client, by endpoint, until they expire. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Endpoint, VerifiedServer] = {}

    def get(self, endpoint: Endpoint, now: float) -> VerifiedServer | None:
        """The verified server, if it has not expired."""
        with self._lock:
            server = self._known.get(endpoint)
            if server is not None and server.expires <= now:
                del self._known[endpoint]
                return None
            return server

    def put(self, server: VerifiedServer) -> None:
        """Remember a server; only `verify_bundle` makes one."""
        with self._lock:
            self._known[server.endpoint] = server

    def drop(self, server: VerifiedServer) -> None:
        """Forget this very server, if it is still the one."""
        with self._lock:
            if self._known.get(server.endpoint) is server:
                del self._known[server.endpoint]


@dataclass(frozen=True, slots=True)
class Exchanges:
    """How one client talks: its trust, and what is sent.

    `outer` names the header fields that go outside as well as inside (lower case): what the frontend
    itself demands. `retry` allows the one retry of docs/protocol.md section 6. `nonce` asks for fresh
    evidence. `clock` gives seconds since the epoch.
    """

    trust: Trust
    padding: Padding = NO_PADDING
    outer: tuple[str, ...] = OUTER
    retry: bool = True
    nonce: bool = True
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time
    servers: Servers = field(default_factory=Servers)

    def verified(self, endpoint: Endpoint, headers: Headers = ()) -> Generator[Step, object, VerifiedServer]:
        """The server behind `endpoint`: from the cache, or verified now."""
        server = self.servers.get(endpoint, self.clock())
        if server is None:
            server = yield from self.verify(endpoint, headers)
        return server

    def verify(
        self, endpoint: Endpoint, headers: Headers = (), *, fresh: bool = False
    ) -> Generator[Step, object, VerifiedServer]:
        """Ask for the bundle, with a fresh nonce unless `nonce` is off and `fresh` does not insist, and judge it.

        Raises `ServerRefused`, `ServerUnsealed` or `ServerUnavailable`. `headers` are the request's; only the
        `outer` ones are sent.
        """
        nonce = secrets.token_bytes(NONCE_SIZE) if self.nonce or fresh else None
        fields = (("content-type", KEYS_REQUEST_TYPE), *self._outer(headers))
        head = yield Send(endpoint.url, fields, KeysRequest(nonce).serialise())
        assert isinstance(head, OuterHead)
        if head.status in (429, 503):
            raise ServerUnavailable(
                f"{endpoint} gives no keys at the moment (status {head.status})",
                hint="try again in a few seconds; if it lasts, ask the operator whether the model is open",
            )
        if head.status != 200:
            raise ServerUnsealed(
                f"{endpoint} answered {head.status} when asked for its keys", hint=_HINTS.get(head.status, _UNSEALED)
            )
        octets = yield from _gathered(BUNDLE_LIMIT)
        now = datetime.fromtimestamp(self.clock(), UTC)
        server = verify_bundle(octets, endpoint=endpoint, nonce=nonce, trust=self.trust, now=now)
        self.servers.put(server)
        return server

    def exchange(self, server: VerifiedServer, request: Request, *, stream: bool) -> Generator[Step, object, Answered]:
        """Send `request` sealed to `server` and give the authenticated answer.

        Raises `RequestRefused` for an answer that is not encapsulated, `StreamTruncated` for one that was cut,
        `EncapsulationInvalid` and `MessageInvalid` for one that was changed.
        """
        path = server.endpoint.inside(request.path)
        if path != request.path:
            request = replace(request, path=path)
        answered = yield from self._attempt(server, request, stream)
        if isinstance(answered, _Refused):
            if not self.retry or answered.problem is None or answered.problem.type != OHTTP_KEY:
                raise refused(server.endpoint, answered.status, len(request.content))
            renewed = self.servers.get(server.endpoint, self.clock())
            if renewed is None or renewed.config == server.config:  # else another thread has the new keys already
                self.servers.drop(renewed or server)
                renewed = yield from self.verify(server.endpoint, request.headers, fresh=True)
            if renewed.config == server.config:
                raise RequestRefused(
                    f"{server.endpoint} refuses the key that it still offers",
                    status=answered.status,
                    hint="somebody on the path forges answers, or several hosts share the address: see mode fleet",
                )
            server = renewed
            answered = yield from self._attempt(server, request, stream)
            if isinstance(answered, _Refused):
                raise refused(server.endpoint, answered.status, len(request.content))
        answered = yield from _whole_problem(answered)
        corrected = _corrected_date(answered)
        if corrected is None:
            return answered
        dated = tuple(line for line in request.headers if line[0].lower() != "date")
        again = yield from self._attempt(server, replace(request, headers=(*dated, ("date", corrected))), stream)
        if isinstance(again, _Refused):
            raise refused(server.endpoint, again.status, len(request.content))
        return again

    def _outer(self, headers: Headers) -> Headers:
        named = ((name.lower(), value) for name, value in headers)
        return tuple(
            (name, _shown(value) if name == SEQUENCE_ID else value) for name, value in named if name in self.outer
        )

    def _attempt(
        self, server: VerifiedServer, request: Request, stream: bool
    ) -> Generator[Step, object, Answered | _Refused]:
        form = Form.CHUNKED if stream else Form.SINGLE
        headers = end_to_end(request.headers)
        if not any(name.lower() == "date" for name, _ in headers):
            headers = (*headers, ("date", email.utils.formatdate(self.clock(), usegmt=True)))
        plain = replace(request, headers=headers).serialise()
        if padding := self.padding.padding(len(plain)):
            plain += bytes(padding)
        outer: Headers = (("content-type", form.request_type),)
        single: ohttp.ResponseOpener | None = None
        opener: chunked.ResponseOpener | None = None
        body: bytes | bytearray
        if form is Form.SINGLE:
            body, single = ohttp.encapsulate(server.config, server.pair, plain)
        else:
            outer = (*outer, ("incremental", "?1"))
            sealer = chunked.RequestSealer(server.config, server.pair)
            body = b"".join((sealer.front, sealer.seal(plain), sealer.finish()))
            opener = sealer.response_opener()
        head = yield Send(server.endpoint.url, (*outer, *self._outer(request.headers)), body)
        assert isinstance(head, OuterHead)
        found = Form.of_response(head.media_type)
        if found is None:
            return _Refused(head.status, (yield from _problem(head)))
        if found is not form:
            raise EncapsulationInvalid("the answer has another form than the request")
        if single is not None:
            message = yield from _gathered(RESPONSE_LIMIT)
            response = Response.parse(single.open(message), self.limits)
            return Answered(ResponseHead(response.status, response.headers), response.content)
        assert opener is not None
        return (yield from _started(ResponseStream(opener, self.limits)))


def _shown(sequence: str) -> str:
    """The name under which a sequence is routed (docs/protocol.md section 2)."""
    return hashlib.sha256(labelled("strongroom sequence v1", sequence.encode("latin-1"))).hexdigest()[:32]


def _whole_problem(answered: Answered) -> Generator[Step, object, Answered]:
    """A streamed problem document, gathered; any other answer as it is."""
    head, stream = answered.head, answered.stream
    if stream is None or head.status != 400 or dict(head.headers).get("content-type") != PROBLEM_TYPE:
        return answered
    pieces = [answered.content]
    while True:
        octets = yield Receive()
        assert isinstance(octets, bytes)
        pieces += stream.feed(octets) if octets else stream.finish()
        if not octets:
            return Answered(head, b"".join(pieces))
        if sum(map(len, pieces)) > PROBLEM_LIMIT:
            return Answered(head, b"".join(pieces), stream)


def _corrected_date(answered: Answered) -> str | None:
    """The server's Date, where an authenticated answer says that only ours was wrong."""
    fields = dict(answered.head.headers)
    whole = answered.stream is None
    if not whole or answered.head.status != 400 or fields.get("content-type") != PROBLEM_TYPE or "date" not in fields:
        return None
    try:
        problem = Problem.parse(answered.content)
    except MalformedInput:
        return None
    return fields["date"] if problem.type == DATE else None


def _started(stream: ResponseStream) -> Generator[Step, object, Answered]:
    """Read a chunked answer up to its head."""
    pieces: list[bytes] = []
    while stream.head is None:
        octets = yield Receive()
        assert isinstance(octets, bytes)
        if not octets:
            pieces += stream.finish()
            if stream.head is None:
                raise stream.truncated("the answer has no head")
            return Answered(stream.head, b"".join(pieces))
        pieces += stream.feed(octets)
    return Answered(stream.head, b"".join(pieces), stream)


def _gathered(limit: int) -> Generator[Step, object, bytes]:
    pieces: list[bytes] = []
    size = 0
    while True:
        octets = yield Receive()
        assert isinstance(octets, bytes)
        if not octets:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        size += len(octets)
        if size > limit:
            raise EncapsulationInvalid(f"an answer of more than {limit} bytes")
        pieces.append(octets)


def _problem(head: OuterHead) -> Generator[Step, object, Problem | None]:
    """The problem document of an answer that was not encapsulated, where it can mean a retry; else None."""
    bare = head.media_type.partition(";")[0].strip().lower()
    if head.status not in (400, 422) or bare != PROBLEM_TYPE:
        return None
    try:
        return Problem.parse((yield from _gathered(PROBLEM_LIMIT)))
    except (MalformedInput, EncapsulationInvalid):
        return None


_UNSEALED = "is a sealed model served there? `strongroom verify-server` shows what the endpoint answers"
_HINTS = {
    400: "the server knows neither this model nor this media type",
    401: "the server's frontend demands a token: give --token, or an Authorization header",
    403: "the server's frontend refuses this token",
    404: "no model of this name is registered there",
    405: "is this the inference address of the server?",
    409: "the same encapsulated request came twice; a proxy on the way may have sent it again",
    413: "the request is larger than the server's frontend accepts (max_request_size)",
    415: "the model behind this endpoint is not sealed, or older than this client",
    422: "the server cannot open requests to the key it offers; a proxy on the way may change bodies",
    503: "the model is not available at the moment; try again, or ask the operator",
    507: "the server ran out of memory",
}


def refused(endpoint: Endpoint, status: int, size: int) -> RequestRefused:
    """The error for an answer that nobody authenticated."""
    said = f", the request's content has {size} bytes" if status == 413 else ""
    return RequestRefused(
        f"{endpoint} answered {status} without encapsulation{said}", status=status, hint=_HINTS.get(status, _UNSEALED)
    )
