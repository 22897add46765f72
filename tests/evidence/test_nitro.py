"""AWS Nitro documents, signed by an authority in memory: every rule of the format and of a policy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import cbor2
import pytest
from doubles.cca_platform import sign1
from doubles.tee_devices import nitro_document
from evidence.pki import DAY, NOW, Authority
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.encoding import b64
from strongroom.errors import ConfigurationInvalid, EvidenceMalformed, EvidenceRefused
from strongroom.evidence.cose import Sign1, decode_cbor
from strongroom.evidence.judge import Verdict, judge
from strongroom.evidence.nitro import AttestationDocument, NitroVerifier
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import Endorsements, Evidence, Word

BINDING = bytes(range(64))
AWS = Authority.root("aws.nitro-enclaves", usage=("key_cert_sign", "crl_sign"))
ZONE = AWS.issue("zone", ca=True, usage=("key_cert_sign", "crl_sign"))
ENCLAVE = ZONE.issue("i-0-enc0", begin=NOW - timedelta(hours=1), end=NOW + timedelta(hours=2))
VERIFIERS = {"aws-nitro": NitroVerifier(roots=(AWS.certificate,))}


def document(user_data: bytes = BINDING, **changes: Any) -> bytes:
    return nitro_document(AWS, ENCLAVE, (ZONE,), user_data, at=NOW, **changes)


def parts(octets: bytes) -> list:
    """The four members under the tag."""
    return cbor2.loads(octets).value


def judged(octets: bytes, table: str = "", *, now=NOW, items=None) -> Verdict:
    policy = Policy.parse(f'name = "test"\n[aws-nitro]\n{table}', VERIFIERS)
    return judge(
        Evidence("aws-nitro", {"document": b64(octets)}), binding=BINDING, endorsements=Endorsements(items or {}),
        policy=policy, now=now, verifiers=VERIFIERS,
    )  # fmt: skip


def refused(octets: bytes, table: str = "", **options: Any) -> set[Word]:
    with pytest.raises(EvidenceRefused) as caught:
        judged(octets, table, **options)
    return {check.word for check in caught.value.checks if not check.ok}


def test_a_document_with_tag_and_without_is_judged():
    assert judged(document()).claims["module_id"] == "i-0-enc0"
    bare = cbor2.dumps(parts(document()))
    assert judged(bare).claims["nonce"] == b""


@pytest.mark.parametrize("register", [0, 1, 2])
def test_a_register_of_zeros_is_a_debug_enclave(register):
    octets = document(pcrs={register: bytes(48)})
    assert refused(octets) == {Word.DEBUG}
    assert judged(octets, "allow_debug = true")


def test_registers_are_held_against_the_policy():
    right, wrong = f'"{"01" * 48}"', f'"{"02" * 48}"'
    assert judged(document(), f"[aws-nitro.pcrs]\n0 = [{wrong}, {right}]\n")
    assert judged(document(), f"[aws-nitro.pcrs]\n0 = {right}\n")
    for table in (f"0 = [{wrong}]", "0 = []", f"20 = [{right}]", ""):
        assert refused(document(), f"[aws-nitro.pcrs]\n{table}\n") == {Word.MEASUREMENT}


def test_module_ids_and_ages_are_asked_for():
    assert refused(document(), 'module_ids = ["i-1-enc0"]') == {Word.IDENTITY}
    assert refused(document(), "max_age = 60", now=NOW + timedelta(minutes=2)) == {Word.VALIDITY_PERIOD}
    assert judged(document(), 'module_ids = ["i-0-enc0"]\nmax_age = 60')


def test_a_document_outlives_its_certificate_by_nothing():
    assert refused(document(), now=NOW + timedelta(hours=3)) == {Word.VALIDITY_PERIOD}
    assert refused(document(), now=NOW - 2 * DAY) == {Word.VALIDITY_PERIOD}


def test_a_document_under_another_root_or_by_another_key_is_refused():
    other = Authority.root("aws.nitro-enclaves")
    zone = other.issue("zone", ca=True)
    enclave = zone.issue("i-0-enc0")
    assert refused(nitro_document(other, enclave, (zone,), BINDING, at=NOW)) == {Word.CHAIN}
    payload = parts(document())[2]
    assert refused(sign1(enclave.key, cbor2.loads(payload))) == {Word.SIGNATURE}


def test_other_user_data_is_another_session():
    assert refused(document(BINDING[::-1])) == {Word.BINDING}
    assert refused(document(b"")) == {Word.BINDING}


def test_a_revoked_enclave_is_refused():
    from cryptography.hazmat.primitives.serialization import Encoding

    lists = {"crl:zone": ZONE.crl(ENCLAVE.certificate).public_bytes(Encoding.DER)}
    assert refused(document(), items=lists) == {Word.REVOCATION}


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "SHA256"}, {"module_id": ""}, {"module_id": 7}, {"timestamp": 0}, {"timestamp": "now"},
        {"pcrs": {}, "certificate": b""}, {"cabundle": []}, {"cabundle": [b"x"] * 7}, {"user_data": bytes(513)},
        {"nonce": bytes(513)}, {"public_key": bytes(1025)}, {"user_data": "text"}, {"surprise": 1},
        {"certificate": b"\0" * 100},
    ],
)  # fmt: skip
def test_a_document_out_of_form_is_refused_as_format(changes):
    assert refused(document(**changes)) == {Word.FORMAT}


@pytest.mark.parametrize("pcrs", [{32: bytes(48)}, {0: bytes(32)}, {"0": bytes(48)}, {-1: bytes(48)}])
def test_registers_out_of_form_are_refused(pcrs):
    assert refused(document(pcrs=pcrs)) == {Word.FORMAT}


def test_bytes_after_the_document_and_unprotected_headers_are_refused():
    assert refused(document() + b"\0") == {Word.FORMAT}
    protected, _, payload, signature = parts(document())
    assert refused(cbor2.dumps([protected, {4: b"key"}, payload, signature])) == {Word.FORMAT}


def test_an_algorithm_that_is_not_the_keys_is_refused():
    _, unprotected, payload, signature = parts(document())
    for algorithm in (-7, -36, -37, -65535, 5):
        octets = cbor2.dumps([cbor2.dumps({1: algorithm}), unprotected, payload, signature])
        assert refused(octets) == {Word.ALGORITHM}
    for header in ({}, {1: "ES384"}, {1: -35, 2: [1]}, []):
        assert refused(cbor2.dumps([cbor2.dumps(header), unprotected, payload, signature])) == {Word.FORMAT}


@pytest.mark.parametrize(
    "table",
    ["[aws-nitro.pcrs]\n32 = []", '[aws-nitro.pcrs]\n0 = ["00"]', "[aws-nitro.pcrs]\n00 = []", "surprise = 1",
     "allow_debug = 1", "[aws-nitro.pcrs]\n0 = 1", f"[aws-nitro.pcrs]\n{'9' * 5000} = []"],
)  # fmt: skip
def test_a_table_with_something_wrong_in_it_is_not_used(table):
    with pytest.raises(ConfigurationInvalid):
        Policy.parse(f'name = "test"\n[aws-nitro]\n{table}', VERIFIERS)


@settings(deadline=None)  # a busy machine is no finding
@given(st.binary(max_size=300))
def test_bytes_that_are_no_document_raise_our_error_only(octets):
    for parse in (lambda o: Sign1.parse(o, what="noise"), AttestationDocument.parse):
        with pytest.raises(EvidenceMalformed):
            parse(octets)


def test_a_number_that_takes_long_to_work_out_is_left_as_it_was_written():
    """As a number this takes minutes, and comes before any signature is looked at."""
    octets = b"\xc4\x82\x01\xc2\x5a" + (1 << 20).to_bytes(4, "big") + b"\xff" * (1 << 20)
    assert decode_cbor(octets, what="noise").tag == 4


def test_cbor_that_never_ends_or_nests_for_ever_is_refused():
    for octets in (b"\x9f" * 10_000, b"\x81" * 10_000, b"\x5b" + b"\xff" * 8, b""):
        with pytest.raises(EvidenceMalformed):
            decode_cbor(octets, what="noise")
