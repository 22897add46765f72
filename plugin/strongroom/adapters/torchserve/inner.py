"""The user's own handler, loaded by TorchServe's own loader from the room and run on opened requests.

The handler finds what it would find in a plain server: its files, its manifest, its configuration, its
working directory, a `Context` of its own. Nothing of TorchServe is changed for it but one thing: what
it streams goes through the channel (see `streaming`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from strongroom.adapters.torchserve.routes import Route, route_of
from strongroom.adapters.torchserve.rows import Headers, answer_bytes, row_of
from strongroom.adapters.torchserve.streaming import replace_intermediate, response_head, streaming
from strongroom.channel.bhttp import Request, Response
from strongroom.channel.problems import WRONG_TARGET
from strongroom.errors import MessageInvalid
from strongroom.worker.streams import BatchStream

JSON = ("content-type", "application/json")


def refusal(status: int, kind: str, message: str) -> Response:
    """An error in the shape TorchServe's frontend gives one."""
    body = json.dumps({"code": status, "type": kind, "message": message}, indent=2) + "\n"
    return Response(status, (JSON,), body.encode())


class InnerService:
    """One loaded handler. `serve` runs a batch and never raises for what the handler does."""

    def __init__(self, service: Any, report: Callable[[BaseException], None]) -> None:
        self._service = service
        self._report = report

    @classmethod
    def load(cls, room: Path, outer: Any, *, report: Callable[[BaseException], None]) -> InnerService:
        """Load the handler that the sealed manifest names; `outer` is TorchServe's context of our own handler.

        `report` hears of exceptions, by class only in production. Whatever the handler's initialize raises
        comes out of here.
        """
        from ts.model_loader import ModelLoaderFactory

        manifest = json.loads((room / "MAR-INF" / "MANIFEST.json").read_bytes())
        plain = outer.system_properties
        sys.dont_write_bytecode = True
        sys.path[:] = [str(room), *(each for each in sys.path if not _same(each, plain["model_dir"]))]
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(room), *(each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep)[1:] if each)]
        )
        os.chdir(room)
        replace_intermediate()
        service = ModelLoaderFactory.get_model_loader().load(
            outer.model_name,
            str(room),
            manifest["model"]["handler"],
            plain["gpu_id"],
            plain["batch_size"],
            None,
            plain["limit_max_image_pixels"],
            outer.metrics,
        )
        return cls(service, report)

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
            served = self._run(rows, outer, indices, stream)
            for (position, _, _), answer in zip(rows, served, strict=True):
                answers[position] = answer
        return [each for each in answers if each is not None]

    def _read(self, request: Request) -> tuple[dict[str, Any], Headers] | Response:
        route = route_of(request.path)
        if route is None or not self._is_mine(route):
            return WRONG_TARGET.response()
        try:
            return row_of(request.content, request.headers, route)
        except MessageInvalid:
            return refusal(400, "BadRequestException", "The body inside the sealed request cannot be read")

    def _is_mine(self, route: Route) -> bool:
        context = self._service.context
        version = str(context.manifest.get("model", {}).get("modelVersion", ""))
        return route.model == context.model_name and route.version in (None, version)

    def _run(
        self,
        rows: Sequence[tuple[int, dict[str, Any], Headers]],
        outer: Any,
        indices: Sequence[int],
        stream: BatchStream,
    ) -> list[Response]:
        from ts.context import RequestProcessor

        context = self._service.context
        context.request_ids = {n: outer.get_request_id(indices[position]) for n, (position, _, _) in enumerate(rows)}
        context.request_processor = [RequestProcessor(headers) for _, _, headers in rows]
        context.metrics.request_ids = context.request_ids
        context.cl_socket = getattr(outer, "cl_socket", None)
        places = [indices[position] for position, _, _ in rows]
        try:
            with streaming(context, stream, places):
                answers = self._service._entry_point([row for _, row, _ in rows], context)
        except MemoryError as error:
            stream.fail()
            return self._failed(len(rows), error, 507, "InsufficientStorageException", "Out of resources")
        except Exception as error:  # the user's code may raise anything; each item gets an encrypted 500
            stream.fail()
            status = getattr(error, "error_code", 500)
            return self._failed(len(rows), error, status, "InternalServerException", "Prediction failed")
        if not isinstance(answers, list) or len(answers) != len(rows):
            stream.fail()
            wrong = TypeError(f"a handler returns a list of {len(rows)}")
            return self._failed(len(rows), wrong, 500, "InternalServerException", "Invalid model predict output")
        return [self._response(context, n, answer) for n, answer in enumerate(answers)]

    def _response(self, context: Any, n: int, answer: Any) -> Response:
        try:
            content = answer_bytes(answer)
        except (TypeError, ValueError) as error:
            return self._failed(1, error, 500, "InternalServerException", "Unsupported model output data type.")[0]
        status, headers = response_head(context, n)
        return Response(status, headers, content)

    def _failed(self, count: int, error: BaseException, status: Any, kind: str, message: str) -> list[Response]:
        self._report(error)
        status = status if isinstance(status, int) and 400 <= status <= 599 else 500
        return [refusal(status, kind, message)] * count


def _same(path: str, folder: str) -> bool:
    return bool(path) and os.path.realpath(path) == os.path.realpath(folder)
