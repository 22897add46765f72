"""Rows and routes as TorchServe 0.12 makes them (the journey tests compare with the real one)."""

from __future__ import annotations

import contextlib

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from strongroom.adapters.torchserve.routes import route_of
from strongroom.adapters.torchserve.rows import Headers, row_of
from strongroom.errors import MessageInvalid

PREDICT = route_of("/predictions/m")


def row(content: bytes, kind: str = "", path: str = "/predictions/m"):
    return row_of(content, (("content-type", kind),) if kind else (), route_of(path))


def test_raw_bytes_arrive_as_a_bytearray_under_body():
    assert row(b"\x00\x01")[0] == {"body": bytearray(b"\x00\x01")}


def test_json_arrives_decoded():
    assert row(b'{"x": [1]}', "application/json; charset=utf-8")[0] == {"body": {"x": [1]}}


def test_json_that_does_not_parse_arrives_as_bytes():
    assert row(b"{", "application/json")[0] == {"body": bytearray(b"{")}


def test_text_arrives_as_a_string():
    assert row("hé".encode(), "text/plain")[0] == {"body": "hé"}


def test_a_forms_last_value_of_a_name_wins():
    assert row(b"a=1&a=2&b=%C3%A9", "application/x-www-form-urlencoded")[0] == {
        "a": bytearray(b"2"),
        "b": bytearray("é".encode()),
    }


def test_a_multipart_file_is_decoded_by_its_own_type_and_a_field_is_not():
    body = (
        b'--B\r\nContent-Disposition: form-data; name="j"; filename="j"\r\nContent-Type: application/json\r\n\r\n'
        b'{"k":1}\r\n--B\r\nContent-Disposition: form-data; name="f"\r\n\r\nplain\r\n--B--\r\n'
    )
    seen, headers = row(body, "multipart/form-data; boundary=B")
    assert seen == {"j": {"k": 1}, "f": bytearray(b"plain")}
    assert headers["j"] == {"content-type": "application/json"}


@pytest.mark.parametrize("body", [b"", b"--B", b"garbage", b"--B\r\nX: y\r\n\r\nno name\r\n--B--\r\n"])
def test_a_broken_multipart_body_is_refused_or_empty(body):
    with contextlib.suppress(MessageInvalid):
        assert row(body, "multipart/form-data; boundary=B")[0] == {}


@given(
    st.binary(max_size=300), st.sampled_from(["multipart/form-data; boundary=B", "application/x-www-form-urlencoded"])
)
def test_no_form_body_raises_anything_else(body, kind):
    with contextlib.suppress(MessageInvalid):
        row(body, kind)


def test_an_uploaded_file_without_a_type_counts_as_octets_and_a_plain_field_has_none():
    body = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\nx\r\n' % part
        for part in ((b"f", b'; filename="f"'), (b"p", b""))
    )
    seen = row(body + b"--B--\r\n", "multipart/form-data; boundary=B")[1]
    assert seen["f"] == {"content-type": "application/octet-stream"}
    assert seen["p"] == {"content-type": ""}


def test_the_channels_own_date_is_not_shown_to_the_handler():
    assert (
        "date"
        not in row_of(b"", [("date", "Sun, 22 Nov 2026 20:00:00 GMT"), ("x", "1")], route_of("/predictions/m"))[1]
    )


def test_headers_are_found_in_any_case():
    headers = row(b"", "text/plain")[1]
    assert headers["Content-Type"] == headers.get("CONTENT-TYPE") == "text/plain"
    assert headers.get("absent") is None


@pytest.mark.parametrize(
    ("path", "model", "version", "explain"),
    [
        ("/predictions/m", "m", None, "False"),
        ("/predictions/m/2.0?q=1", "m", "2.0", "False"),
        ("/explanations/m", "m", None, "True"),
        ("/v1/models/m:predict", "m", None, "False"),
        ("/v2/models/m/infer", "m", None, "False"),
        ("/v2/models/m/explain", "m", None, "True"),
    ],
)
def test_a_path_names_its_model(path, model, version, explain):
    route = route_of(path)
    assert (route.model, route.version, route.headers["explain"]) == (model, version, explain)


def test_an_invocations_query_becomes_parameters():
    assert row(b"x", "", "/invocations?model_name=m&z=1")[0] == {
        "model_name": bytearray(b"m"),
        "z": bytearray(b"1"),
        "body": bytearray(b"x"),
    }


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/models",
        "/predictions",
        "/predictions/",
        "/v1/models/m",
        "/invocations",
        "",
        "/v2/models/m/versions/3/infer",
    ],
)
def test_a_path_that_torchserve_has_not_names_nothing(path):
    assert route_of(path) is None


FORM = "application/x-www-form-urlencoded"


def test_a_form_in_raw_utf8_is_read_as_the_frontend_reads_it():
    assert row("text=grüße&文=1".encode(), FORM)[0] == {"text": bytearray("grüße".encode()), "文": bytearray(b"1")}


def test_a_form_ends_at_the_end_of_its_line():
    assert row(b"a=1\r\n", FORM)[0] == row(b"a=1\nb=2", FORM)[0] == {"a": bytearray(b"1")}


def test_a_cut_escape_in_a_form_is_refused():
    with pytest.raises(MessageInvalid, match="escape"):
        row(b"a=%zz", FORM)


@pytest.mark.parametrize("name", ["ä", "文件", "plain"])
def test_names_in_any_script_arrive_in_a_multipart_form(name):
    files = {name: ("文件.png", b"data", "image/png"), f"{name}2": ("grün.json", b"[1]", "application/json")}
    prepared = requests.Request("POST", "http://h/", files=files).prepare()
    seen, headers = row(prepared.body, prepared.headers["content-type"])
    assert seen == {name: bytearray(b"data"), f"{name}2": [1]}
    assert headers[name] == {"content-type": "image/png"}


def test_a_multipart_type_without_a_boundary_is_a_body_like_any_other():
    assert row(b"x", "multipart/form-data")[0] == {"body": bytearray(b"x")}


def test_json_that_is_nested_too_deep_arrives_as_bytes():
    deep = b"[" * 100_000
    assert row(deep, "application/json")[0] == {"body": bytearray(deep)}


@given(
    st.text(st.characters(codec="latin-1"), max_size=40),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60),
    st.binary(max_size=80),
)
def test_no_header_of_a_request_or_a_part_raises_anything_else(kind, disposition, value):
    part = b"--B\r\nContent-Disposition: " + disposition.encode("latin-1") + b"\r\n\r\n" + value + b"\r\n--B--\r\n"
    with contextlib.suppress(MessageInvalid):
        row(part, "multipart/form-data; boundary=B")
    with contextlib.suppress(MessageInvalid):
        row(value, "multipart/form-data; " + kind)


def test_what_the_parser_of_forms_thinks_of_a_body_is_in_no_log(caplog):
    with contextlib.suppress(MessageInvalid):
        row(b"--B\r\nsecret secret\r\n\r\nx\r\n--B--\r\n", "multipart/form-data; boundary=B")
    assert caplog.records == []


def test_headers_stay_one_name_in_any_case_while_a_handler_changes_them():
    headers = Headers({"x-given": "1"})
    headers["X-Given"] = "2"
    headers["X-New"] = "3"
    assert dict(headers) == {"x-given": "2", "X-New": "3"}
    assert ("X-GIVEN" in headers, "x-new" in headers) == (True, True)
    assert (headers.setdefault("x-NEW", "4"), headers.pop("X-GIVEN"), headers.pop("x-given", None)) == ("3", "2", None)
    assert "x-given" not in headers
    del headers["x-new"]
    assert headers == {}
    with pytest.raises(KeyError):
        headers["x-new"]
