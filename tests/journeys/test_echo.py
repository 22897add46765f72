"""The user's handler cannot tell: what it is given and what becomes of its answer, plain and sealed."""

from __future__ import annotations

import json

import pytest
import requests

pytestmark = pytest.mark.journey

HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive"}
OF_THE_WIRE = {"host", "connection", "content-length", "transfer-encoding"}

KINDS = {
    "json": {"json": {"a": [1, 2.5, None, "ä"]}},
    "json-list": {"json": [1, 2]},
    "bad-json": {"data": b'{"a": ', "headers": {"Content-Type": "application/json"}},
    "json-with-charset": {"data": b'{"a": 1}', "headers": {"Content-Type": "application/json; charset=utf-8"}},
    "text": {"data": "grüße".encode(), "headers": {"Content-Type": "text/plain; charset=utf-8"}},
    "bad-text": {"data": b"\xff\xfe\x00", "headers": {"Content-Type": "text/plain"}},
    "octets": {"data": bytes(range(256)), "headers": {"Content-Type": "application/octet-stream"}},
    "no-type": {"data": bytes(range(256))},
    "image": {"data": b"\x89PNG\r\n", "headers": {"Content-Type": "image/png"}},
    "form": {"data": {"a": "1", "b": "zwei drei", "c": ""}},
    "form-unicode": {"data": {"ä": "ö&=+%"}},
    "multipart": {
        "files": {
            "data": ("scan.bin", bytes(range(200)), "application/octet-stream"),
            "more": ("x.json", b'{"k": 1}', "application/json"),
            "text": ("t.txt", b"hello", "text/plain"),
        }
    },
    "multipart-fields": {"files": {"data": ("a.bin", b"\x00\x01"), "plain": (None, "just a field")}},
    "empty": {"data": b""},
    "empty-json": {"data": b"", "headers": {"Content-Type": "application/json"}},
}


def pair(house, method: str, path: str, **body):
    """The plain and the sealed answer to the same call."""
    plain = requests.request(method, house.plain.url + path, timeout=60, **body)
    sealed = house.session.request(method, house.url(path), timeout=60, **body)
    return plain, sealed


def seen(answer) -> dict:
    """What the handler saw, less what belongs to the wire and not to the message.

    `Host` names the endpoint (here two ports of one machine); `Content-Length`, `Connection` and
    `Transfer-Encoding` are one connection's. Binary HTTP has lower-case names only, so names are compared
    without case; a handler that asks in another case still finds them.
    """
    fields = json.loads(answer.content)
    headers = {name.lower(): value for name, value in fields.pop("headers").items()}
    for value in headers.values():
        if isinstance(value, str) and value.startswith("multipart/form-data"):
            headers = headers | {"content-type": "multipart"}
    return fields | {"headers": {name: value for name, value in headers.items() if name not in OF_THE_WIRE}}


def test_the_plain_handler_sees_what_the_double_was_written_for(house):
    answer = requests.post(house.plain.url + "/predictions/echo", json={"a": 1}, timeout=60)
    fields = json.loads(answer.content)
    assert fields["row"] == {"body": {"a": {"type": "int", "value": 1}}}
    assert fields["cwd_is_model_dir"]
    assert "labels.json" in fields["files"]
    assert fields["yaml"]["handler"] == {"labels": ["a", "b"], "depth": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_the_handler_sees_the_same_for_every_kind_of_body(house, kind):
    plain, sealed = pair(house, "POST", "/predictions/echo", **KINDS[kind])
    assert plain.status_code == sealed.status_code == 200, (plain.content, sealed.content)
    assert seen(sealed) == seen(plain)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/predictions/echo", {}),
        ("PUT", "/predictions/echo", {"data": b"put"}),
        ("POST", "/predictions/echo/1.0", {"data": b"version"}),
        ("POST", "/predictions/echo?a=1&b=zwei", {"data": b"query"}),
        ("POST", "/predictions/echo/1.0/deep/path", {"data": b"rest"}),
        ("POST", "/explanations/echo", {"json": {"explain": 1}}),
        ("POST", "/v1/models/echo:predict", {"json": {"instances": [[1, 2]]}}),
        ("POST", "/v1/models/echo:explain", {"json": {"instances": [[1, 2]]}}),
        ("POST", "/v2/models/echo/infer", {"json": {"inputs": []}}),
        ("POST", "/v2/models/echo/explain", {"json": {"inputs": []}}),
        ("POST", "/predictions/echo", {"data": b"x", "headers": {"describe": "True"}}),
        ("POST", "/predictions/echo", {"data": b"x", "headers": {"X-Trace": "7", "Accept": "image/png"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_handler_sees_the_same_on_every_path(house, method, path, body):
    plain, sealed = pair(house, method, path, **body)
    assert plain.status_code == sealed.status_code == 200, (plain.content, sealed.content)
    assert seen(sealed) == seen(plain)


@pytest.mark.parametrize("status", [200, 201, 404, 422, 503])
def test_status_content_type_and_headers_come_back_as_the_handler_set_them(house, status):
    """Of the response only hop-by-hop fields differ, and those that TorchServe's frontend itself adds."""
    wanted = {"x-echo-status": str(status), "x-echo-type": "application/vnd.test+json"}
    plain, sealed = pair(house, "POST", "/predictions/echo", data=b"x", headers=wanted)
    assert plain.status_code == sealed.status_code == status
    assert seen(sealed) == seen(plain)
    differ = {
        name
        for name in {*map(str.lower, plain.headers), *map(str.lower, sealed.headers)}
        if plain.headers.get(name) != sealed.headers.get(name)
    }
    # The frontend of the plain server adds a request id and forbids caching; sealed, it adds both outside.
    assert differ <= HOP_BY_HOP | {"x-request-id", "pragma", "cache-control", "expires"}
    assert sealed.headers["x-echo"] == "yes"
    assert sealed.headers["content-type"] == "application/vnd.test+json"


def test_a_handler_finds_its_headers_in_whatever_case_it_asks(house):
    answer = house.session.post(house.url("/predictions/echo"), data=b"x", headers={"X-ECHO-STATUS": "202"}, timeout=60)
    assert answer.status_code == 202


def test_the_management_api_describes_the_model_by_its_key_bundle(house):
    url = f"http://127.0.0.1:{house.stage.management}/models/echo?customized=true"
    described = requests.get(url, timeout=60).json()[0]
    assert described["customizedMetadata"]["model"]["name"] == "echo"
    assert described["customizedMetadata"]["ohttp_keys"]
