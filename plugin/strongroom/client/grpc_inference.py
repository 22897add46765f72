"""`SealedInference`: TorchServe's gRPC inference calls, sealed.

    with grpc.insecure_channel("host:7070") as channel:
        inference = SealedInference(channel, policy="policy.toml", name="host:7070")
        answer = inference.predict("digits", scan)
        print(answer.status, answer.content)

A call carries one encapsulated request in the entries `body` and `content-type` of TorchServe's input map, so
path and headers of the request travel inside (docs/guides/serve.md). The messages are four fields together
and are written here, so no generated stubs are needed: `PredictionsRequest` has ``model_name`` (1),
``model_version`` (2) and ``input`` (3, a map from string to bytes), `PredictionResponse` has ``prediction`` (1).
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import grpc

from strongroom.channel.bhttp import Headers, Limits, Request, Response
from strongroom.channel.bundle import BUNDLE_TYPE, KEYS_REQUEST_TYPE
from strongroom.channel.kem import XWING
from strongroom.channel.ohttp import Form
from strongroom.channel.padding import Padding
from strongroom.channel.problems import PROBLEM_TYPE, Problem
from strongroom.client.endpoint import Endpoint
from strongroom.client.exchange import OUTER, Answered, Exchanges, OuterHead, Send, Step
from strongroom.client.verify import MAX_AGE, Trust, VerifiedServer
from strongroom.errors import EncapsulationInvalid, MalformedInput, StreamTruncated
from strongroom.evidence.judge import Endorse, no_endorsements
from strongroom.evidence.policy import Policy

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """A streamed answer: status and headers are there, `pieces` come as the model makes them.

    `pieces` raises `StreamTruncated` where the authenticated end is missing.
    """

    status: int
    headers: Headers
    pieces: Iterator[bytes] = field(repr=False)


class SealedInference:
    """Sealed calls over a gRPC channel of one's own, which brings its credentials. Thread-safe.

    `name` stands for the server in messages and in the cache of verified servers. The other arguments are
    those of `client.adapter.SealedAdapter`.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        policy: Policy | Path | str,
        *,
        name: str,
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
        """Raises `ConfigurationInvalid` for a policy that cannot be used."""
        self._unary = channel.unary_unary(f"/{SERVICE}/Predictions", bytes, prediction)
        self._stream = channel.unary_stream(f"/{SERVICE}/StreamPredictions", bytes, prediction)
        self._name = name
        self._exchanges = Exchanges(
            trust=Trust.load(policy, plugins=plugins, endorse=endorse, kems=kems, max_age=max_age),
            padding=Padding(padding),
            outer=tuple(each.lower() for each in outer),
            retry=retry,
            nonce=nonce,
            limits=limits or Limits(),
        )
        self._verifying = threading.Lock()

    def verify_server(self, model: str, *, version: str | None = None, timeout: float | None = None) -> VerifiedServer:
        """Verify the server of a model now; raises `ServerRefused` with every check."""
        endpoint = self._endpoint(model, version)
        return self._wire(endpoint, timeout, streams=False).drive(self._exchanges.verify(endpoint))

    def predict(
        self,
        model: str,
        content: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Response:
        """One request, one answer. `timeout` is in seconds for each call.

        Raises `grpc.RpcError` where the call itself fails, and what `SealedAdapter` raises.
        """
        answered, _ = self._exchange(model, content, headers, version, timeout, stream=False)
        return Response(answered.head.status, answered.head.headers, answered.content)

    def stream(
        self,
        model: str,
        content: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> StreamedResponse:
        """One request, an answer in pieces. A server gathers them into one unless it was told not to."""
        answered, wire = self._exchange(model, content, headers, version, timeout, stream=True)
        return StreamedResponse(answered.head.status, answered.head.headers, _pieces(answered, wire))

    def _exchange(
        self,
        model: str,
        content: bytes,
        headers: Mapping[str, str] | None,
        version: str | None,
        timeout: float | None,
        *,
        stream: bool,
    ) -> tuple[Answered, _Wire]:
        endpoint = self._endpoint(model, version)
        given = tuple((name.lower(), value) for name, value in (headers or {}).items())
        path = f"/predictions/{quote(model, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
        request = Request("POST", "http", self._name, path, given, content)
        wire = self._wire(endpoint, timeout, streams=stream)
        server = self._exchanges.servers.get(endpoint, self._exchanges.clock())
        if server is None:
            with self._verifying:  # threads that start together ask for evidence once
                server = wire.drive(self._exchanges.verified(endpoint, given))
        return wire.drive(self._exchanges.exchange(server, request, stream=stream)), wire

    def _endpoint(self, model: str, version: str | None) -> Endpoint:
        return Endpoint(f"grpc://{self._name}", "", model, version)

    def _wire(self, endpoint: Endpoint, timeout: float | None, *, streams: bool) -> _Wire:
        return _Wire(self._unary, self._stream if streams else None, endpoint, timeout)


class _Wire:
    """Carries the steps of an exchange over calls; `stream` is None where everything goes by unary ones."""

    def __init__(self, unary: Any, stream: Any, endpoint: Endpoint, timeout: float | None) -> None:
        self._unary, self._stream, self._endpoint, self._timeout = unary, stream, endpoint, timeout
        self._messages: Iterator[bytes] = iter(())

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
        fields = dict(step.headers)
        media_type = fields.pop("content-type")
        metadata = [(name, value) for name, value in fields.items() if name != "incremental"]
        metadata += [("protocol", "gRPC")] if "authorization" in fields else []
        message = predictions_request(
            self._endpoint.model,
            self._endpoint.version,
            {"body": bytes(step.content), "content-type": media_type.encode("ascii")},
        )
        call = self._unary if self._stream is None or media_type == KEYS_REQUEST_TYPE else self._stream
        answer = call(message, timeout=self._timeout, metadata=metadata)
        self._messages = iter((answer,)) if isinstance(answer, bytes) else iter(answer)
        first = next(self._messages, b"")
        self._messages = _chained(first, self._messages)
        return _outer_head(first, media_type)

    def receive(self) -> bytes:
        """The next message, b"" at the end; raises `StreamTruncated` if the call breaks."""
        try:
            return next(self._messages, b"")
        except grpc.RpcError as error:
            raise StreamTruncated(f"the call broke inside the answer: {error.code().name}") from error


def _chained(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    """Without empty messages, since an empty one would look like the end."""
    if first:
        yield first
    for each in rest:
        if each:
            yield each


def _outer_head(first: bytes, asked: str) -> OuterHead:
    """gRPC brings neither status nor media type: a problem document is known by being one."""
    if first[:1] == b"{":
        try:
            problem = Problem.parse(first)
        except MalformedInput:
            problem = None
        if problem is not None and problem.status:
            return OuterHead(problem.status, PROBLEM_TYPE)
    form = Form.of_request(asked)
    return OuterHead(200, BUNDLE_TYPE if form is None else form.response_type)


def _pieces(answered: Answered, wire: _Wire) -> Iterator[bytes]:
    if answered.content:
        yield answered.content
    while answered.stream is not None:
        try:
            octets = wire.receive()
        except StreamTruncated as error:
            raise answered.stream.truncated(str(error), error.hint) from error
        yield from answered.stream.feed(octets) if octets else answered.stream.finish()
        if not octets:
            return


# -- the two messages ------------------------------------------------------------------


def predictions_request(model: str, version: str | None, inputs: Mapping[str, bytes]) -> bytes:
    """A `PredictionsRequest` in protobuf's wire form."""
    named = _field(1, model.encode()) + (_field(2, version.encode()) if version else b"")
    entries = (_field(1, name.encode()) + _field(2, value) for name, value in inputs.items())
    return named + b"".join(_field(3, entry) for entry in entries)


def prediction(message: bytes) -> bytes:
    """The field of a `PredictionResponse`; raises `EncapsulationInvalid` for anything else."""
    if not message:
        return b""
    size, shift, at = 0, 0, 1
    while message[0] == 1 << 3 | 2 and at < min(len(message), 11):
        size |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 0x80 and at + size == len(message):
            return message[at:]
    raise EncapsulationInvalid("the answer is not a PredictionResponse")


def _field(number: int, octets: bytes) -> bytes:
    """A length-delimited field."""
    size, length = len(octets), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + octets
