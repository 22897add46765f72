"""The two gRPC messages that the client writes itself, held against another writer and a hostile peer."""

from __future__ import annotations

import pytest
from doubles import grpc_inference as double
from hypothesis import given
from hypothesis import strategies as st
from strongroom.client.grpc_inference import _outer_head, prediction, predictions_request
from strongroom.errors import EncapsulationInvalid


@given(st.text(min_size=1, max_size=300), st.binary(max_size=40_000))
def test_a_request_is_written_as_another_writer_writes_it(model, body):
    inputs = {"body": body, "content-type": b"message/ohttp-req"}
    expected = double.request(model, body=body, content_type=b"message/ohttp-req")
    assert predictions_request(model, None, inputs) == expected


def test_a_version_stands_between_name_and_input():
    assert predictions_request("m", "1.0", {}) == b"\x0a\x01m\x12\x031.0"


@given(st.binary(max_size=70_000))
def test_a_response_is_read_back(octets):
    assert prediction(double._field(1, octets)) == octets


@given(st.binary(max_size=40))
def test_other_bytes_are_refused_and_never_misread(octets):
    try:
        found = prediction(octets)
    except EncapsulationInvalid:
        return
    assert not octets or double._field(1, found)[-len(found) or None :] == octets[len(octets) - len(found) :]


def test_a_length_without_end_is_refused():
    with pytest.raises(EncapsulationInvalid):
        prediction(b"\x0a" + b"\xff" * 40)


@pytest.mark.parametrize(
    ("first", "asked", "status", "media_type"),
    [
        (b'{"type": "about:blank", "title": "t", "status": 415}', "message/ohttp-req", 415, "application/problem+json"),
        (b"{ not json", "message/ohttp-req", 200, "message/ohttp-res"),
        (b"\x00" * 40, "message/ohttp-chunked-req", 200, "message/ohttp-chunked-res"),
        (
            b'{"ohttp_keys": ""}',
            "application/vnd.strongroom.keys-request+json",
            200,
            "application/vnd.strongroom.key-bundle+json",
        ),
    ],
)
def test_without_status_and_media_type_an_answer_is_known_by_what_it_is(first, asked, status, media_type):
    head = _outer_head(first, asked)
    assert (head.status, head.media_type) == (status, media_type)
