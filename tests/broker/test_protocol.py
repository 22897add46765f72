"""The protocol's messages: exact inverses, strict where something is hashed, and the exact words of errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.broker.jwe import TeeKeyPair
from strongroom.broker.protocol import (
    Attestation,
    Challenge,
    ErrorInformation,
    Request,
    Resource,
    parse_tee_key,
)
from strongroom.errors import MalformedInput, ProtocolMismatch

KEY = TeeKeyPair.generate().public
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # a busy machine is no finding
@given(extra=json_values)
def test_a_request_is_the_inverse_of_its_json(extra):
    request = Request("snp", extra)
    assert Request.parse(json.dumps(request.serialise()).encode()) == request


@settings(deadline=None)  # a busy machine is no finding
@given(primary=json_values, additional=st.text(max_size=50), init=st.none() | st.text(max_size=50))
def test_an_attestation_is_the_inverse_of_its_json(primary, additional, init):
    attestation = Attestation("nonce", KEY, primary, additional, init)
    assert Attestation.parse(json.dumps(attestation.serialise()).encode()) == attestation


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
def test_a_tee_key_is_the_inverse_of_its_jwk(kind):
    key = TeeKeyPair.generate(kind).public
    assert parse_tee_key(key.serialise()) == key


@pytest.mark.parametrize("extra", ["kid", "use", "key_ops", "d", "x5c"])
def test_a_further_member_of_the_jwk_is_refused(extra):
    with pytest.raises(MalformedInput, match="unknown field"):
        parse_tee_key({**KEY.serialise(), extra: "a"})


@pytest.mark.parametrize(
    "change", [{"alg": "RSA1_5"}, {"crv": "P-384"}, {"kty": "OKP"}, {"x": "AA"}, {"alg": "ML-KEM-768+A192KW"}]
)
def test_a_jwk_of_another_kind_is_refused(change):
    with pytest.raises(MalformedInput):
        parse_tee_key({**KEY.serialise(), **change})


def test_another_version_names_both_before_anything_else_is_looked_at():
    with pytest.raises(ProtocolMismatch, match=r"expect =0\.4\.0 while the request is 0\.5\.0"):
        Request.parse(b'{"version":"0.5.0","new-member":1}')


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ("", "sha384"),
        (None, "sha384"),
        ({}, "sha384"),
        ({"selected-hash-algorithm": "SHA512"}, "sha512"),
        ([1], "sha384"),
    ],
)
def test_a_challenge_selects_its_hash_or_sha384(extra, name):
    challenge = Challenge.parse(json.dumps({"nonce": "n", "extra-params": extra, "later": 1}).encode())
    assert challenge.hash_name() == name


@pytest.mark.parametrize("value", [5, None, "md5", "sha1", ["sha384"]])
def test_a_hash_that_is_not_known_is_refused(value):
    challenge = Challenge("n", {"selected-hash-algorithm": value})
    with pytest.raises(MalformedInput, match="selected-hash-algorithm"):
        challenge.hash_name()


def test_a_nonce_is_kept_verbatim():
    odd = "not base64 at all \u00e9=="
    assert Challenge.parse(json.dumps({"nonce": odd, "extra-params": ""}).encode()).nonce == odd


@pytest.mark.parametrize("member", ["nonce", "additional", "init_data"])
def test_a_lone_surrogate_where_something_is_hashed_is_refused(member):
    attestation = Attestation(**{"nonce": "n", "tee_key": KEY, "primary": {}, "additional": "", member: "\ud800"})
    with pytest.raises(MalformedInput, match="surrogate"):
        Attestation.parse(json.dumps(attestation.serialise()).encode("ascii"))


def test_init_data_in_json_is_refused():
    body = Attestation("n", KEY, {}, "", "x").serialise()
    body["init-data"]["format"] = "json"
    with pytest.raises(MalformedInput, match="toml"):
        Attestation.parse(json.dumps(body).encode())


@pytest.mark.parametrize(
    "path",
    [
        "a/b",
        "a/b/c/d",
        "a//c",
        "../b/c",
        ".a/b/c",
        "a/b/..",
        "a/b/%2e",
        "a/b/c d",
        "a/b/c\n",
        "a/b/\u00e9",
        "a/b/" + "c" * 129,
    ],
)
def test_a_name_outside_the_alphabet_is_refused(path):
    with pytest.raises(MalformedInput):
        Resource.parse(path)


@pytest.mark.parametrize("path", ["a/b/c", "A-_/1.0/c.", "kbs:///a/b/c"])
def test_a_name_inside_the_alphabet_is_kept(path):
    assert str(Resource.parse(path)) == path.removeprefix("kbs:///")


@settings(deadline=None)  # a busy machine is no finding
@given(name=st.text(max_size=30), detail=st.text(max_size=60))
def test_error_information_is_the_inverse_of_its_json(name, detail):
    information = ErrorInformation(name, detail)
    assert ErrorInformation.parse(json.dumps(information.serialise()).encode()) == information


@pytest.mark.parametrize("name", ["InvalidRequestPath", "PluginNotFound"])
def test_the_two_errors_of_a_path_are_404(name):
    assert ErrorInformation(name).status == 404


@pytest.mark.parametrize(
    "name",
    [
        "AdminAuthInitialization",
        "AdminAuthAccess",
        "AttestationError",
        "HTTPFailed",
        "HTTPSFailed",
        "JweError",
        "PluginManagerInitialization",
        "PluginInternalError",
        "PolicyDeny",
        "ParsePolicyError",
        "PolicyEngineError",
        "RvpsError",
        "SerdeError",
        "StorageBackendInitialization",
        "TokenNotFound",
        "TokenVerifierError",
        "PrometheusError",
    ],
)
def test_every_other_error_of_the_protocol_is_401_and_spelled_as_it_is(name):
    information = ErrorInformation(name, "detail")
    assert information.status == 401
    spelled = f'{{"type":"https://github.com/confidential-containers/kbs/errors/{name}","detail":"detail"}}'
    assert json.dumps(information.serialise(), separators=(",", ":")) == spelled
    assert ErrorInformation.parse(spelled.encode()) == information


@settings(deadline=None)  # a busy machine is no finding
@given(st.binary(max_size=200))
def test_noise_is_malformed_and_nothing_else(octets):
    for kind in (Attestation, Challenge, ErrorInformation):
        with pytest.raises(MalformedInput):
            kind.parse(octets)
    with pytest.raises((MalformedInput, ProtocolMismatch)):
        Request.parse(octets)
