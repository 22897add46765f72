"""The key bundle: exact inverses, a binding that moves with every member, and strictness."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom.channel.bundle import (
    AdmittedArchive,
    BundleEvidence,
    BundleParts,
    KeyBundle,
    KeysRequest,
    ServedModel,
)
from strongroom.channel.keyset import KeySet
from strongroom.channel.padding import Padding
from strongroom.channel.problems import (
    KEY_UNKNOWN,
    NOT_OPENED,
    SEEN_BEFORE,
    Problem,
    inner_problem,
    outer_problem,
)
from strongroom.errors import (
    ConfigurationInvalid,
    DateRefused,
    EncapsulationInvalid,
    KeyUnknown,
    MalformedInput,
    MessageInvalid,
    ReplayRefused,
    StreamTruncated,
)
from strongroom.keys import ArchiveDigest, AuthorId

DIGEST = ArchiveDigest(bytes(range(32)))
PARTS = BundleParts(
    ohttp_keys=KeySet(first_key_id=1).ohttp_keys,
    not_before=1_800_000_000,
    not_after=1_800_003_600,
    model=ServedModel("digits", "1.0", DIGEST),
    admitted=(AdmittedArchive(DIGEST, AuthorId(bytes(32)), "digits", 1),),
    configuration=bytes([1]) * 32,
    plugins=bytes([2]) * 32,
    mode="host",
    nonce=bytes([3]) * 32,
)
BUNDLE = KeyBundle(PARTS, BundleEvidence("simulated", {"report": "abc"}))


@pytest.mark.parametrize("nonce", [None, bytes(32)])
def test_a_bundle_reads_back_the_same(nonce):
    bundle = replace(BUNDLE, parts=replace(PARTS, nonce=nonce))
    assert KeyBundle.parse(bundle.serialise()) == bundle
    assert KeyBundle.parse(bundle.serialise()).parts.binding() == bundle.parts.binding()


def test_the_binding_is_the_hash_of_the_protocol_page():
    def part(octets):
        return len(octets).to_bytes(8, "big") + octets

    members = json.loads(BUNDLE.serialise())
    for name in ("evidence", "nonce", "ohttp_keys"):
        del members[name]
    rest = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    label = b"strongroom channel v1"
    octets = len(label).to_bytes(2, "big") + label + part(PARTS.nonce) + part(PARTS.ohttp_keys) + part(rest)
    assert PARTS.binding() == hashlib.sha512(octets).digest()
    assert len(PARTS.binding()) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"ohttp_keys": b"other"},
        {"not_before": 1},
        {"not_after": 1_900_000_000},
        {"model": replace(PARTS.model, name="other")},
        {"model": replace(PARTS.model, version="2.0")},
        {"model": replace(PARTS.model, archive=ArchiveDigest(bytes(32)))},
        {"admitted": ()},
        {"admitted": (replace(PARTS.admitted[0], author=AuthorId(bytes([1]) * 32)),)},
        {"configuration": bytes(32)},
        {"plugins": bytes(32)},
        {"mode": "fleet"},
        {"nonce": None},
        {"nonce": bytes(32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_binding_moves_with_every_member(change):
    assert replace(PARTS, **change).binding() != PARTS.binding()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonce", "AAAA"),
        ("ohttp_keys", "not base64url!"),
        ("not_before", "soon"),
        ("not_before", 2_000_000_000),
        ("model", {"name": "digits"}),
        ("model", {"name": "digits", "version": "1", "archive": "00" * 32, "more": 1}),
        ("admitted", {}),
        ("admitted", [{"archive": "00" * 31}]),
        ("configuration", "00"),
        ("plugins", "0" * 63 + "G"),
        ("mode", "shared"),
        ("mode", ""),
        ("mode", None),
        ("evidence", {"tee": "simulated", "body": []}),
        ("evidence", {"tee": "simulated"}),
        ("more", 1),
    ],
)
def test_a_member_of_another_kind_is_refused(name, value):
    members = json.loads(BUNDLE.serialise())
    members[name] = value
    with pytest.raises(MalformedInput):
        KeyBundle.parse(json.dumps(members).encode())


def test_unsorted_or_doubled_archives_are_refused():
    one, two = PARTS.admitted[0], replace(PARTS.admitted[0], archive=ArchiveDigest(bytes([255]) * 32))
    replace(PARTS, admitted=(one, two))
    for admitted in ((two, one), (one, one)):
        with pytest.raises(MalformedInput):
            replace(PARTS, admitted=admitted)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_bundle_or_are_refused(octets):
    with pytest.raises(MalformedInput):
        KeyBundle.parse(octets)


@pytest.mark.parametrize("nonce", [None, bytes(range(32))])
def test_a_keys_request_reads_back_the_same(nonce):
    assert KeysRequest.parse(KeysRequest(nonce).serialise()) == KeysRequest(nonce)


@pytest.mark.parametrize("octets", [b"", b"[]", b'{"nonce":"AAAA"}', b'{"nonce":null}', b'{"other":1}'])
def test_another_keys_request_is_refused(octets):
    with pytest.raises(MalformedInput):
        KeysRequest.parse(octets)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (KeyUnknown("detail"), KEY_UNKNOWN),
        (EncapsulationInvalid("detail"), NOT_OPENED),
        (StreamTruncated("detail"), NOT_OPENED),
        (ReplayRefused("detail"), SEEN_BEFORE),
    ],
)
def test_outside_each_failure_has_one_status_and_one_text(error, problem):
    assert outer_problem(error) is problem
    assert Problem.parse(problem.serialise()) == problem
    assert b"detail" not in problem.serialise()


def test_inside_a_message_problem_keeps_its_status():
    assert inner_problem(MessageInvalid("x")).status == 400
    assert inner_problem(MessageInvalid("x", status=431)).status == 431
    assert inner_problem(MessageInvalid("x", status=413)).status == 413
    assert inner_problem(DateRefused("x")).type.endswith("#date")


@pytest.mark.parametrize(
    ("policy", "size", "padded"),
    [
        ("none", 777, 777),
        ("power-of-two", 0, 256),
        ("power-of-two", 256, 256),
        ("power-of-two", 257, 512),
        ("bucket:100", 1, 100),
        ("bucket:100", 100, 100),
        ("bucket:100", 101, 200),
    ],
)
def test_padding_fills_up_to_the_policys_size(policy, size, padded):
    assert size + Padding(policy).padding(size) == padded


@pytest.mark.parametrize("policy", ["", "bucket", "bucket:0", "bucket:-1", "power-of-3", "bucket:99999999999"])
def test_another_padding_policy_is_refused(policy):
    with pytest.raises(ConfigurationInvalid):
        Padding(policy)
