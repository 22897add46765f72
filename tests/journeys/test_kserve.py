"""KServe's protocols with TorchServe's own request envelopes, applied inside: to what was opened.

What is expected comes from TorchServe's envelope classes themselves, run here on what the client sent.
"""

from __future__ import annotations

import json

import pytest
from doubles.envelopes import enveloped
from leaks.hunt import canary

pytestmark = pytest.mark.journey


def ask(house, path: str, body: object, **arguments):
    answer = house.session.post(house.url(path), timeout=60, **({"json": body} | arguments))
    assert answer.status_code == 200, answer.content
    return answer.json()


INSTANCES = {"instances": [[1, 2], [3, 4], "text", canary("instance")]}
TENSORS = {
    "id": "7",
    "inputs": [
        {"name": "input-0", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]},
        {"name": "input-1", "shape": [1], "datatype": "BYTES", "data": [canary("tensor")]},
    ],
}


def test_version_1_predicts_and_explains_as_with_the_envelope_outside(house):
    expected = enveloped("kserve", INSTANCES)
    assert set(expected) == {"predictions"}
    assert ask(house, "/v1/models/iris:predict", INSTANCES) == expected
    assert ask(house, "/predictions/iris", INSTANCES) == expected
    explained = ask(house, "/v1/models/iris:explain", INSTANCES)
    assert explained == enveloped("kserve", INSTANCES, explain=True)
    assert set(explained) == {"explanations"}


def test_octets_with_json_inside_are_understood_as_the_envelope_understands_them(house):
    octets = json.dumps(INSTANCES).encode()
    sent = {"json": None, "data": octets, "headers": {"Content-Type": "application/octet-stream"}}
    assert ask(house, "/v1/models/iris:predict", None, **sent) == enveloped("kserve", INSTANCES)


def test_a_body_that_the_envelope_cannot_read_is_an_encrypted_error(house):
    answer = house.session.post(house.url("/v1/models/iris:predict"), json=[1], timeout=60)
    assert answer.status_code == 500
    assert ask(house, "/v1/models/iris:predict", INSTANCES)


def test_version_2_infers_as_with_the_envelope_outside(house):
    answer = house.session.post(house.url("/v2/models/tensors/infer"), json=TENSORS, timeout=60)
    expected = enveloped("kservev2", TENSORS)
    assert answer.status_code == 200, answer.content
    assert answer.json() == expected
    assert expected["id"] == "7"
