"""What `strongroom_handlers.sealed` does: TorchServe's row in, the sealed service, TorchServe's answer out.

TorchServe calls the handler once with no data when it loads the model, and then with each batch. Neither
call raises: a failure at load would leave clients hanging, and an exception in a batch would answer all
of it with one 503 and put its text into the log. While the model is not open every request is answered
503 at once, and the next one tries again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from strongroom.adapters.torchserve.flags import SIZES_VARIABLE
from strongroom.adapters.torchserve.inner import InnerService
from strongroom.adapters.torchserve.metrics import MetricLines, known_metrics
from strongroom.adapters.torchserve.streaming import sender
from strongroom.archive.header import Header
from strongroom.channel.bhttp import Limits, Response
from strongroom.channel.bundle import BUNDLE_TYPE
from strongroom.channel.problems import UNAVAILABLE
from strongroom.errors import ModelUnavailable, StrongroomError
from strongroom.launch.hardening import harden_worker
from strongroom.worker.guard import OutputGuard
from strongroom.worker.link import Link, Settings
from strongroom.worker.loader import Room, sweep
from strongroom.worker.service import Answer, Outer, SealedService
from strongroom.worker.watch import Watch

_log = logging.getLogger(__name__)

DEFAULT_SIZES = "6553500,6553500"


class SealedHandler:
    """One per worker process."""

    def __init__(self) -> None:
        self._service: SealedService | None = None
        self._link: Link | None = None
        self._inner: InnerService | None = None
        self._room: Room | None = None
        self._guard: OutputGuard | None = None
        self._settings: Settings | None = None
        self._watch: Watch | None = None

    def handle(self, data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
        """TorchServe's entry point. `data` is None at load."""
        if data is None:
            self._initialize(context)
            return None
        service = self._service
        if service is None:  # the outer archive itself could not be read
            answers = [Answer.problem(UNAVAILABLE) for _ in data]
        else:
            with self._watch.busy() if self._watch is not None else contextlib.nullcontext():
                answers = service.answer(
                    [self._outer(row, context, index) for index, row in enumerate(data)],
                    lambda: self._ready(context),
                    sender(context),
                )
        for index, answer in enumerate(answers):
            if service is not None and context.get_request_header(index, "describe") == "True":
                answers[index] = answer = service.bundle()
            context.set_response_status(answer.status, "", index)
            context.set_response_content_type(index, answer.media_type)
            for name, value in answer.headers:
                context.set_response_header(index, name, value)
            if not _is_rest(context, index):
                context.set_response_header(index, "ts_stream_next", "false")
        return [_described(answer) for answer in answers]

    def _initialize(self, context: Any) -> None:
        self._guard = OutputGuard.install(MetricLines(known_metrics(context.metrics), context.model_name), ("ts",))
        sweep(Path(tempfile.gettempdir()))
        try:
            header = Path(context.system_properties["model_dir"], "SEALED-INF", "header").read_bytes()
            self._link = Link(Header.parse(header).core.digest)
        except (OSError, StrongroomError) as error:
            _log.error("this archive cannot be served: %s", type(error).__name__)
            return
        request, response = map(int, os.environ.get(SIZES_VARIABLE, DEFAULT_SIZES).split(","))
        self._service = SealedService(self._link, limit=response, limits=Limits(content=request))
        try:
            self._ready(context)
        except StrongroomError as error:
            _log.warning("the model is not open yet: %s: %s", type(error).__name__, error)

    def _ready(self, context: Any) -> _Bound:
        """The user's handler, loaded now if its model has become available; raises `KeeperError`."""
        if self._watch is not None and self._watch.over:
            raise ModelUnavailable("the model is withdrawn, and this worker is about to end")
        if self._inner is None:
            assert self._link is not None
            settings = self._enclosed(self._link)
            if self._room is None:
                self._room = Room.furnish(self._link.model())
                self._watch = Watch(self._link.another())
                self._watch.start()
            try:
                self._inner = InnerService.load(
                    self._room.folder, context, report=self._report, envelope=settings.envelope, rerun=settings.rerun
                )
            except Exception as error:  # the user's initialize may raise anything
                self._report(error)
                raise ModelUnavailable(f"the model's own handler failed to load: {type(error).__name__}") from None
            if self._service is not None:
                self._service.settings = settings
        return _Bound(self._inner, context)

    def _enclosed(self, link: Link) -> Settings:
        """The settings, once this process is as closed as they say; before that it asks for no model."""
        if self._settings is None:
            settings = link.settings()
            harden_worker(network=settings.network == "allow")
            if settings.output == "pass" and self._guard is not None:
                self._guard.lift()
            self._settings = settings
        return self._settings

    def _report(self, error: BaseException) -> None:
        """Say the class of what the user's code raised; its text may hold a request's content."""
        told = self._settings is not None and self._settings.output == "pass"
        _log.error("the model's own handler raised %s", type(error).__name__, exc_info=error if told else None)

    def _outer(self, row: dict[str, Any], context: Any, index: int) -> Outer:
        """The body and its media type, over REST or gRPC; anything else has no media type of ours."""
        body = row.get("body", b"")
        octets = body if isinstance(body, bytes | bytearray) else b""
        if not _is_rest(context, index):
            kind = row.get("content-type", b"")
            named = bytes(kind).decode("latin-1") if isinstance(kind, bytes | bytearray) else ""
            return Outer(named, octets, streams=self._service is not None and self._service.settings.grpc_streaming)
        part = context.get_all_request_header(index).get("body")
        return Outer(str(part.get("content-type", "")) if isinstance(part, dict) else "", octets)


class _Bound:
    """The inner service with this batch's context."""

    def __init__(self, inner: InnerService, context: Any) -> None:
        self._inner, self._context = inner, context

    def __call__(self, requests: Any, indices: Any, stream: Any) -> list[Response]:
        return self._inner.serve(requests, self._context, indices, stream)


def _is_rest(context: Any, index: int) -> bool:
    """gRPC brings no request headers: what is there stems from the input's own entries."""
    return any(isinstance(value, str) for value in context.get_all_request_header(index).values())


def _described(answer: Answer) -> Any:
    """TorchServe wants an object where the management API asks for the description."""
    return bytes(answer.body) if answer.media_type != BUNDLE_TYPE else bytes(answer.body).decode()


_handler = SealedHandler()
handle = _handler.handle
