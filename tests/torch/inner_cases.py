"""Whatever the user's handler raises or returns, each item of its batch gets an answer, and only its own.

Run by test_inner_cases.py in a process of its own: the inner service imports torch.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from strongroom.adapters.torchserve.inner import InnerService
from strongroom.adapters.torchserve.streaming import _send_intermediate
from strongroom.channel.bhttp import Request
from strongroom.worker.streams import BatchStream
from ts.context import Context
from ts.utils.util import PredictionException


class Served:
    """The real inner service around a handler, in TorchServe's own context, without its sockets."""

    def __init__(self, handler, *, rerun: bool = False) -> None:
        manifest = {"model": {"modelName": "m", "modelVersion": "1.0"}}
        context = Context("m", "/", manifest, 8, None, "0.12.0")
        context.metrics = SimpleNamespace(request_ids={})
        self.reported: list[BaseException] = []
        self.inner = InnerService(
            SimpleNamespace(_entry_point=handler, context=context), self.reported.append, rerun=rerun
        )

    def ask(self, *bodies: bytes, path: str = "/predictions/m", batch: str = "id"):
        requests = [Request("POST", "http", "h", path, (), body) for body in bodies]
        outer = SimpleNamespace(get_request_id=lambda place: f"{batch}-{place}", cl_socket=None)
        stream = BatchStream(dict.fromkeys(range(len(bodies))), None, gather=0, limit=10_000)
        answers = self.inner.serve(requests, outer, range(len(bodies)), stream)
        stream.close()
        return [stream.last(place, answer) for place, answer in enumerate(answers)]


def raising(error: BaseException):
    def handler(data, context):
        raise error

    return handler


def said(answer) -> str:
    return json.loads(answer.content)["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("secret"), 500),
        (StopIteration("secret"), 500),
        (AssertionError("secret"), 500),
        (RecursionError("secret"), 500),
        (MemoryError("secret"), 507),
        (RuntimeError("CUDA out of memory: secret"), 507),
        (PredictionException("secret", 422), 422),
        (PredictionException("secret", 200), 500),
        (PredictionException("secret", 999), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_what_a_handler_raises_is_every_items_error_and_tells_none_about_another(error, status):
    served = Served(raising(error))
    answers = served.ask(b"one", b"two")
    assert [each.status for each in answers] == [status, status]
    assert "secret" not in "".join(map(said, answers))
    assert served.reported == [error]


def test_a_text_for_the_client_is_passed_on_where_there_is_only_one():
    [answer] = Served(raising(PredictionException("out of tea", 418))).ask(b"one")
    assert (answer.status, said(answer)) == (418, "out of tea")


@pytest.mark.parametrize(
    "returned", [None, [], ["one"], ["one", "two", "three"], "text", {"a": 1}, ("a", "b")], ids=str
)
def test_an_answer_that_does_not_fit_the_batch_is_an_error_of_all(returned):
    answers = Served(lambda data, context: returned).ask(b"one", b"two")
    assert [(each.status, said(each)) for each in answers] == [(500, "Invalid model predict output")] * 2


@pytest.mark.parametrize("odd", [object(), {1, 2}, {"a": object()}, 1 + 2j], ids=["object", "set", "inside", "complex"])
def test_an_item_that_cannot_be_sent_fails_alone(odd):
    bad, good = Served(lambda data, context: [odd, "fine"]).ask(b"one", b"two")
    assert (bad.status, said(bad)) == (500, "Unsupported model output data type.")
    assert (good.status, good.content) == (200, b"fine")


def test_an_item_for_another_model_or_with_an_unreadable_form_never_reaches_the_handler():
    seen = []

    def handler(data, context):
        seen.extend(data)
        return ["fine"] * len(data)

    served = Served(handler)
    [astray] = served.ask(b"x", path="/predictions/other")
    torn = Request(
        "POST", "http", "h", "/predictions/m", (("content-type", "multipart/form-data; boundary=B"),), b"--B\r\ntorn"
    )
    good = Request("POST", "http", "h", "/predictions/m", (), b"good")
    outer = SimpleNamespace(get_request_id="id-{}".format, cl_socket=None)
    answers = served.inner.serve([torn, good], outer, [0, 1], BatchStream({0: None, 1: None}, None, gather=0, limit=99))
    assert astray.status == 421
    assert [each.status for each in answers][1] == 200
    assert [bytes(row["body"]) for row in seen if "body" in row][-1] == b"good"
    assert len(seen) == 1 + (answers[0].status == 200)


def test_with_rerun_every_item_is_run_again_alone_once_and_only_the_bad_one_fails():
    sizes = []

    def handler(data, context):
        sizes.append(len(data))
        if any(row.get("body") == b"bad" for row in data):
            raise ValueError
        return [row["body"] for row in data]

    answers = Served(handler, rerun=True).ask(b"a", b"bad", b"c")
    assert [each.status for each in answers] == [200, 500, 200]
    assert [answers[0].content, answers[2].content] == [b"a", b"c"]
    assert sizes == [3, 1, 1, 1]


def test_with_rerun_an_item_is_read_anew_whatever_the_failed_run_did_to_it():
    def handler(data, context):
        bodies = [row.pop("body") for row in data]
        if len(data) > 1:
            raise ValueError
        return bodies

    assert [each.content for each in Served(handler, rerun=True).ask(b"a", b"b")] == [b"a", b"b"]


def test_a_piece_that_a_late_thread_of_an_earlier_batch_sends_reaches_nobody():
    earlier = {}

    def handler(data, context):
        if not earlier:
            earlier.update(context.request_ids)
        else:
            _send_intermediate([b"of the first client"], earlier, "", 200, context)
        return ["fine"]

    served = Served(handler)
    assert [served.ask(b"x", batch=each)[0].content for each in ("one", "two")] == [b"fine", b"fine"]


def test_a_piece_goes_to_the_request_that_the_handler_names():
    def handler(data, context):
        _send_intermediate([b"for the second, "], {0: context.request_ids[1]}, "", 200, context)
        return ["fine", "fine"]

    assert [each.content for each in Served(handler).ask(b"a", b"b")] == [b"fine", b"for the second, fine"]


class Mute(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("secret")


def test_an_exception_that_cannot_be_printed_is_an_error_like_any_other():
    served = Served(raising(Mute()))
    assert [(each.status, said(each)) for each in served.ask(b"one")] == [(500, "Prediction failed")]
    [answer] = Served(raising(PredictionException(Mute(), 422))).ask(b"one")
    assert (answer.status, said(answer)) == (422, "")


def test_a_status_that_is_no_number_is_an_error_of_its_own_item_only():
    def handler(data, context):
        context.set_response_status("nope", idx=0)
        return ["one", "two"]

    assert [each.status for each in Served(handler).ask(b"one", b"two")] == [500, 200]


def test_an_answer_that_raises_while_it_becomes_bytes_is_an_error_of_its_own_item_only():
    class Strange(dict):
        def items(self):
            raise KeyError("secret")

    answers = Served(lambda data, context: [Strange(a=1), "two"]).ask(b"one", b"two")
    assert [each.status for each in answers] == [500, 200]
    assert b"secret" not in answers[0].content


def test_a_body_that_breaks_its_parser_is_refused_and_the_others_are_answered(monkeypatch):
    def breaks(content, headers, route):
        if content == b"one":
            raise OverflowError("secret")
        return {"body": bytearray(content)}, {}

    monkeypatch.setattr("strongroom.adapters.torchserve.inner.row_of", breaks)
    served = Served(lambda data, context: ["fine"] * len(data))
    assert [each.status for each in served.ask(b"one", b"two")] == [400, 200]
    assert [type(each) for each in served.reported] == [OverflowError]


def test_the_handler_finds_the_name_of_the_server_that_the_client_asked():
    served = Served(lambda data, context: [context.get_request_header(0, "Host")])
    assert served.ask(b"one")[0].content == b"h"
