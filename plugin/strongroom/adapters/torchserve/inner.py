"""The user's own handler, loaded by TorchServe's own loader from the room and run on opened requests.

The handler finds what it would find in a plain server: its files, its manifest, its configuration, its
working directory, a `Context` of its own. Nothing of TorchServe is changed for it but one thing: what
it streams goes through the channel (see `streaming`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from strongroom.adapters.torchserve.routes import Route, route_of
from strongroom.adapters.torchserve.rows import Headers, answer_bytes, row_of
from strongroom.adapters.torchserve.streaming import replace_intermediate, response_head, streaming
from strongroom.channel import problems
from strongroom.channel.bhttp import Request, Response
from strongroom.errors import MessageInvalid
from strongroom.torch import map_models
from strongroom.worker.streams import BatchStream

_log = logging.getLogger(__name__)

JSON = ("content-type", "application/json")
INTERNAL = "InternalServerException"


def refusal(status: int, kind: str, message: str) -> Response:
    """An error in the shape TorchServe's frontend gives one."""
    body = json.dumps({"code": status, "type": kind, "message": message}, indent=2) + "\n"
    return Response(status, (JSON,), body.encode())


class InnerService:
    """One loaded handler. `serve` runs a batch and never raises for what the handler does."""

    def __init__(self, service: Any, report: Callable[[BaseException], None], *, rerun: bool = False) -> None:
        self._service = service
        self._report = report
        self._rerun = rerun

    @classmethod
    def load(
        cls, room: Path, outer: Any, *, report: Callable[[BaseException], None], envelope: str = "", rerun: bool = False
    ) -> InnerService:
        """Load the handler that the sealed manifest names; `outer` is TorchServe's context of our own handler.

        `report` hears of exceptions, by class only in production. `envelope` names one of TorchServe's request
        envelopes. With `rerun` the items of a batch that failed run again, one by one. Whatever the handler's
        initialize raises comes out of here.
        """
        from ts.model_loader import ModelLoaderFactory

        manifest = json.loads((room / "MAR-INF" / "MANIFEST.json").read_bytes())
        plain = outer.system_properties
        sys.dont_write_bytecode = True
        others = (each for each in sys.path if each != str(room) and not _same(each, plain["model_dir"]))
        sys.path[:] = [str(room), *others]
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(room), *(each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep)[1:] if each)]
        )
        os.chdir(room)
        replace_intermediate()
        map_models()
        service = ModelLoaderFactory.get_model_loader().load(
            outer.model_name,
            str(room),
            manifest["model"]["handler"],
            plain["gpu_id"],
            plain["batch_size"],
            envelope or None,
            plain["limit_max_image_pixels"],
            outer.metrics,
        )
        return cls(service, report, rerun=rerun)

    def serve(
        self, requests: Sequence[Request], outer: Any, indices: Sequence[int], stream: BatchStream
    ) -> list[Response]:
        """Answer opened requests; `indices` are their places in the outer batch.

        What no handler should see (another model's path, an unreadable form) is answered here.
        """
        answers: list[Response | None] = [None] * len(requests)
        rows: list[tuple[int, dict[str, Any], Headers]] = []
        for position, request in enumerate(requests):
            read = self._read(request)
            if isinstance(read, Response):
                answers[position] = read
            else:
                rows.append((position, *read))
        if rows:
            served = self._run(rows, requests, outer, indices, stream)
            for (position, _, _), answer in zip(rows, served, strict=True):
                answers[position] = answer
        return [each for each in answers if each is not None]

    def _read(self, request: Request) -> tuple[dict[str, Any], Headers] | Response:
        route = route_of(request.path)
        if route is None or not self._is_mine(route):
            return problems.WRONG_TARGET.response()
        headers = request.headers
        if request.authority and request.header("host") is None:  # where HTTP/2 has it, and handlers do not look
            headers = (("host", request.authority), *headers)
        try:
            return row_of(request.content, headers, route)
        except Exception as error:  # whatever a client's bytes do to a parser is that client's alone
            if not isinstance(error, MessageInvalid):
                self._report(error)
            return refusal(400, "BadRequestException", "The body inside the sealed request cannot be read")

    def _is_mine(self, route: Route) -> bool:
        context = self._service.context
        version = str(context.manifest.get("model", {}).get("modelVersion", ""))
        return route.model == context.model_name and route.version in (None, version)

    def _run(
        self,
        rows: Sequence[tuple[int, dict[str, Any], Headers]],
        requests: Sequence[Request],
        outer: Any,
        indices: Sequence[int],
        stream: BatchStream,
    ) -> list[Response]:
        from ts.context import RequestProcessor

        context = self._service.context
        places = [indices[position] for position, _, _ in rows]
        context.request_ids = {n: outer.get_request_id(place) for n, place in enumerate(places)}
        context.request_processor = [RequestProcessor(headers) for _, _, headers in rows]
        context.metrics.request_ids = context.request_ids
        context.cl_socket = getattr(outer, "cl_socket", None)
        try:
            with streaming(context, stream, places):
                answers = self._service._entry_point([row for _, row, _ in rows], context)
            if not isinstance(answers, list) or len(answers) != len(rows):
                raise InvalidAnswer(f"a handler returns a list of {len(rows)}")
        except Exception as error:  # the user's code may raise anything; each item gets an encrypted error
            self._report(error)
            if self._rerun and len(rows) > 1 and not stream.used(places):
                _log.info("the items of a batch of %d run again, one by one", len(rows))
                return [self._run_again(position, requests, outer, indices, stream) for position, _, _ in rows]
            stream.fail(places)
            return [_failure(error, alone=len(rows) == 1)] * len(rows)
        return [
            self._response(context, n, answer, place, stream)
            for n, (answer, place) in enumerate(zip(answers, places, strict=True))
        ]

    def _run_again(
        self, position: int, requests: Sequence[Request], outer: Any, indices: Sequence[int], stream: BatchStream
    ) -> Response:
        """One item by itself, read anew: the run that failed may have changed what it was given."""
        read = self._read(requests[position])
        return (
            read if isinstance(read, Response) else self._run([(position, *read)], requests, outer, indices, stream)[0]
        )

    def _response(self, context: Any, n: int, answer: Any, place: int, stream: BatchStream) -> Response:
        try:
            content = answer_bytes(answer)
            status, headers = response_head(context, n)
        except Exception as error:  # objects of the user's own may raise anything while they are turned into bytes
            self._report(error)
            stream.fail([place])
            return refusal(500, INTERNAL, "Unsupported model output data type.")
        return Response(status, headers, content)


class InvalidAnswer(TypeError):
    """A handler returned something other than a list with one entry for each row."""


def _failure(error: Exception, *, alone: bool) -> Response:
    """The encrypted answer for what a handler raised, in the words of TorchServe's own.

    A `PredictionException` brings a status and a text of the author's own. The text is passed on only
    where the batch held a single item, so that it cannot tell one client about another.
    """
    from ts.utils.util import PredictionException

    if isinstance(error, MemoryError) or "CUDA" in _text(error):
        return refusal(507, "InsufficientStorageException", "Out of resources")
    if isinstance(error, InvalidAnswer):
        return refusal(500, INTERNAL, "Invalid model predict output")
    if isinstance(error, PredictionException):
        status = error.error_code if isinstance(error.error_code, int) and 400 <= error.error_code <= 599 else 500
        return refusal(status, INTERNAL, _text(error.message) if alone else "Prediction failed")
    return refusal(500, INTERNAL, "Prediction failed")


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # the user's own class may say anything or nothing
        return ""


def _same(path: str, folder: str) -> bool:
    return bool(path) and os.path.realpath(path) == os.path.realpath(folder)
