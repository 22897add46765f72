"""A sealed model behind a real HTTP server: the channel's server side, simulated evidence, no TEE.

It is a whole participant: keys, replay memory, bundle, both forms of Oblivious HTTP. `model` answers the
opened inner requests, with a `Response` or, for streams, with a head and an iterator. `host` sits where a
hostile host sits: it sees each outer exchange and may replace the answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from strongroom.adapters.torchserve.routes import route_of
from strongroom.channel import chunked, ohttp, problems
from strongroom.channel.bhttp import Headers, Request, Response, ResponseWriter
from strongroom.channel.bundle import (
    BUNDLE_TYPE,
    KEYS_REQUEST_TYPE,
    AdmittedArchive,
    BundleEvidence,
    BundleParts,
    KeyBundle,
    KeysRequest,
    ServedModel,
)
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.channel.replay import ReplayMemory
from strongroom.errors import ChannelError, DateRefused, EncapsulationInvalid, StreamTruncated
from strongroom.evidence.simulated import SimulatedReport
from strongroom.keys import ArchiveDigest, AuthorId

ARCHIVE = ArchiveDigest(bytes([7]) * 32)
AUTHOR = AuthorId(bytes([8]) * 32)
MEASUREMENT = bytes([9]) * 32
POLICY = f"""
name = "test"
[simulated]
protects_nothing = true
measurements = ["{MEASUREMENT.hex()}"]
[admitted]
authors = ["{AUTHOR}"]
"""


@dataclass
class Outer:
    """One outer answer: what a host sees and may replace. `pieces` are sent as HTTP chunks if it is not None."""

    status: int
    media_type: str
    body: bytes = b""
    pieces: Iterator[bytes] | None = None
    cut: bool = False  # end the chunked transfer cleanly, but early, after the pieces


@dataclass
class Stream:
    """A streamed inner answer; an exception in `pieces` is a model that fails midway."""

    status: int
    headers: Headers
    pieces: Iterator[bytes]


def echo(request: Request) -> Response:
    """A model that says what it was asked."""
    kind = request.header("content-type") or "application/octet-stream"
    return Response(
        200, (("content-type", kind), ("x-path", request.path), ("x-method", request.method)), request.content
    )


@dataclass
class SealedServer:
    """Serves `model` as `name` until closed. Use as a context manager."""

    model: Callable[[Request], Response | Stream] = echo
    name: str = "digits"
    version: str = "1.0"
    measurement: bytes = MEASUREMENT
    lifetime: int = 3600
    mode: str = "host"
    clock: Callable[[], float] = time.time
    host: Callable[[str, bytes, Outer], Outer] = lambda kind, body, answer: answer
    token: str | None = None
    keys: KeySet = field(default_factory=KeySet)
    change_parts: Callable[[BundleParts], BundleParts] = lambda parts: parts  # after the evidence was made
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    opened: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = ReplayMemory()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 64 * 1024
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                double.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                answer = double.answer(self.path, self.headers.get("content-type", ""), body, self.headers)
                self.send_response(answer.status)
                self.send_header("content-type", answer.media_type)
                if answer.pieces is None:
                    self.send_header("content-length", str(len(answer.body)))
                    self.end_headers()
                    self.wfile.write(answer.body)
                    return
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.wfile.flush()
                try:
                    for piece in answer.pieces:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                        self.wfile.flush()
                except RuntimeError:
                    self.close_connection = True  # a model that failed: the frontend resets the connection
                    return
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> SealedServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.origin}/predictions/{self.name}"

    @property
    def sealed(self) -> list[bytes]:
        """The encapsulated requests that arrived."""
        return [body for _, _, headers, body in self.seen if Form.of_request(headers.get("content-type", ""))]

    def answer(self, path: str, media_type: str, body: bytes, headers) -> Outer:
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            return Outer(401, "application/json", b'{"code": 401}')
        if path.split("?")[0] not in (f"/predictions/{self.name}", f"/predictions/{self.name}/{self.version}"):
            return Outer(404, "application/json", b'{"code": 404}')
        if media_type == KEYS_REQUEST_TYPE:
            return self.host("keys", body, Outer(200, BUNDLE_TYPE, self.bundle(KeysRequest.parse(body).nonce)))
        form = Form.of_request(media_type)
        if form is None:
            return _problem(problems.NOT_OURS)
        try:
            return self.host("request", body, self._exchange(form, body))
        except ChannelError as error:
            return self.host("request", body, _problem(problems.outer_problem(error)))

    def bundle(self, nonce: bytes | None) -> bytes:
        now = int(self.clock())
        parts = BundleParts(
            ohttp_keys=self.keys.ohttp_keys,
            not_before=now,
            not_after=now + self.lifetime,
            model=ServedModel(self.name, self.version, ARCHIVE),
            admitted=(AdmittedArchive(ARCHIVE, AUTHOR, self.name, 1),),
            configuration=bytes(32),
            plugins=bytes(32),
            mode=self.mode,
            nonce=nonce,
        )
        report = SimulatedReport.sign(self.measurement, parts.binding(), {})
        return KeyBundle(self.change_parts(parts), BundleEvidence("simulated", report.serialise())).serialise()

    def _exchange(self, form: Form, body: bytes) -> Outer:
        head, enc, ciphertext = RequestHead.parse(body)
        reservation = self.memory.reserve(enc, self.keys.generation_of(head), self.clock())
        opened = False
        try:
            context = self.keys.decapsulate(head, enc, form)
            if form is Form.SINGLE:
                plaintext = ohttp.open_request(context, ciphertext)
            else:
                plaintext = chunked.open_request(context, ciphertext)
            opened = True
        except (EncapsulationInvalid, StreamTruncated):
            self.memory.settle(reservation, opened=False, date=None, now=self.clock())
            raise
        try:
            request = Request.parse(plaintext)
            date = request.header("date")
            when = None if date is None else parsedate_to_datetime(date).timestamp()
            self.memory.settle(reservation, opened=opened, date=when, now=self.clock())
            self.opened.append(request)
            route = route_of(request.path)  # as the real worker: the inner path has to name this model
            mine = route is not None and route.model == self.name and route.version in (None, self.version)
            answer = self.model(request) if mine else problems.WRONG_TARGET.response()
        except DateRefused as error:
            answer = problems.inner_problem(error).response((("date", formatdate(self.clock(), usegmt=True)),))
        except ChannelError as error:
            answer = problems.inner_problem(error).response()
        if form is Form.SINGLE:
            assert isinstance(answer, Response)
            return Outer(200, form.response_type, bytes(ohttp.seal_response(context, enc, answer.serialise())))
        return Outer(200, form.response_type, pieces=_chunks(chunked.ResponseSealer(context, enc), answer))


def _chunks(sealer: chunked.ResponseSealer, answer: Response | Stream) -> Iterator[bytes]:
    if isinstance(answer, Response):
        yield sealer.front + sealer.seal(answer.serialise())
        yield sealer.finish()
        return
    writer = ResponseWriter()
    yield sealer.front + sealer.seal(writer.head(answer.status, answer.headers))
    for piece in answer.pieces:
        yield sealer.seal(writer.content(piece))
    yield sealer.seal(writer.finish())
    yield sealer.finish()


def _problem(problem: problems.Problem) -> Outer:
    return Outer(problem.status, problems.PROBLEM_TYPE, problem.serialise())
