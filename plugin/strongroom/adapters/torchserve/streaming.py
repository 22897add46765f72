"""TorchServe's streams: what a handler sends midway is taken out of the clear and sealed.

`ts.handler_utils.utils.send_intermediate_predict_response` writes to the frontend's socket itself, and a
deprecated copy of it stands in another module. Handlers bind either name when they are imported, so both
are replaced before that. The replacement finds the running batch by its context, and in it the client by the
id that the handler names, as TorchServe does: a piece for a request that is not running goes to nobody.

Over gRPC nothing is sent midway unless the configuration says so: TorchServe 0.12 loses a worker for good when
a unary call is answered with a stream, and a worker cannot tell the two calls apart. There the whole answer
goes out as one message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from strongroom.adapters.torchserve.rows import answer_bytes
from strongroom.channel.ohttp import Form
from strongroom.worker.service import INCREMENTAL, NO_STORE
from strongroom.worker.streams import BatchStream, Send

_running: dict[int, tuple[BatchStream, Mapping[str, int]]] = {}
"""By the identity of the handler's context: its batch's streams, and where a request's id stands in the outer batch."""


@contextlib.contextmanager
def streaming(context: Any, stream: BatchStream, places: Sequence[int]) -> Iterator[None]:
    """While a handler runs, what it sends midway goes to `stream`; `places` are those of the context's rows."""
    _running[id(context)] = (stream, {context.request_ids[row]: place for row, place in enumerate(places)})
    try:
        yield
    finally:
        del _running[id(context)]


def _send_intermediate(ret: Any, req_id_map: Any, message: Any, code: Any, context: Any = None) -> None:
    """Stands in for TorchServe's function of the same meaning; nothing of `ret` leaves in the clear."""
    stream, places = _running[id(context)]
    for row, request in req_id_map.items():
        if request in places:  # else a thread of an earlier batch is late
            status, headers = response_head(context, row)
            stream.emit(places[request], answer_bytes(ret[row]), status, headers)


def replace_intermediate() -> None:
    """Put the replacement into both modules; keeps TorchServe's own for `sender`."""
    from ts.handler_utils import utils
    from ts.protocol import otf_message_handler

    utils.send_intermediate_predict_response = _send_intermediate
    otf_message_handler.send_intermediate_predict_response = _send_intermediate


def sender(context: Any) -> Send:
    """Sends sealed bytes to the frontend now, for the items of the outer batch they belong to."""
    from ts.protocol.otf_message_handler import create_predict_response

    def send(sealed: Mapping[int, bytes]) -> None:
        for index in sealed:
            context.set_response_status(200, "", index)
            context.set_response_content_type(index, Form.CHUNKED.response_type)
            for name, value in (NO_STORE, INCREMENTAL):
                context.set_response_header(index, name, value)
        ids = {index: context.request_ids[index] for index in sealed}
        message = create_predict_response(sealed, ids, "Prediction success", 200, context, True)
        context.cl_socket.sendall(message)

    return send


def response_head(context: Any, row: int) -> tuple[int, tuple[tuple[str, str], ...]]:
    """The status and headers that a handler set for one row, as they may go into an inner response."""
    status = context.get_response_status(row)[0]
    status = 200 if status is None else int(status)
    headers = context.get_response_headers(row).items()
    named = tuple((str(name).lower(), str(value).strip(" \t")) for name, value in headers if name != "ts_stream_next")
    return status if 200 <= status <= 599 else 500, named
