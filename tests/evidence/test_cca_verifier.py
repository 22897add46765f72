"""CCA tokens under a pretend platform: profiles, curves, lifecycle, and each failure by its own name."""

from __future__ import annotations

import json

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from doubles.cca_platform import PretendCca, sign1
from strongroom.encoding import Fields, b64url
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.cca import CcaVerifier
from strongroom.evidence.cca_token import PlatformClaims, RealmClaims
from strongroom.evidence.types import Checklist, Endorsements, Evidence, Word

NONCE = bytes(range(64))


@pytest.fixture(scope="module")
def arm() -> PretendCca:
    return PretendCca()


def judged(arm, token=None, cpak=None, table=None):
    verifier, checks = CcaVerifier(), Checklist()
    policy = verifier.policy(Fields(table or {}, where="cca"))
    body = {"token": list(arm.token(NONCE) if token is None else token)}
    items = {} if cpak == b"" else {"cpak": cpak or arm.cpak}
    claims = verifier.verify(Evidence("cca", body), Endorsements(items), None, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, {check.name: str(check.word) for check in checks.failed}


@pytest.mark.parametrize("modern", [True, False], ids=["2023 profile", "old profile"])
@pytest.mark.parametrize("realm", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
@pytest.mark.parametrize("platform", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_both_profiles_and_all_three_curves_are_accepted(modern, realm, platform):
    claims, failed = judged(PretendCca(platform, realm, modern))
    assert failed == {}
    assert (claims.report_data, claims.binding_word) == (NONCE, Word.NONCE)
    assert claims["measurement"] == "11" * 32


def test_profiles_may_be_mixed(arm):
    old = arm.platform(c265="http://arm.com/CCA-SSD/1.0.0")
    assert judged(arm, arm.token(NONCE, platform=sign1(arm.cpak_key, old)))[1] == {}


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-384", "sha-512"])
def test_the_realm_key_is_bound_by_the_hash_that_it_names(arm, algorithm):
    from strongroom.evidence.cca import HASHES

    platform = arm.platform(c10=HASHES[algorithm](arm.rak).digest())
    realm = arm.realm(NONCE, c44240=algorithm)
    token = arm.token(platform=sign1(arm.cpak_key, platform), realm=sign1(arm.rak_key, realm))
    assert judged(arm, token)[1] == {}


@pytest.mark.parametrize("algorithm", ["sha-1", "SHA-256", "md5", "none"])
def test_no_other_hash_is_accepted(arm, algorithm):
    token = arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c44240=algorithm)))
    assert judged(arm, token)[1] == {"cca.key-hash-algorithm": "algorithm"}


@pytest.mark.parametrize(
    ("lifecycle", "secured"),
    [(0x2FFF, False), (0x3000, True), (0x30FF, True), (0x3100, False), (0x0, False), (0x4000, False), (0x6000, False)],
)
def test_only_a_secured_platform_is_accepted(arm, lifecycle, secured):
    token = arm.token(NONCE, platform=sign1(arm.cpak_key, arm.platform(c2395=lifecycle)))
    assert judged(arm, token)[1] == ({} if secured else {"cca.lifecycle": "lifecycle"})


def test_a_realm_of_another_platform_is_refused(arm):
    stranger = PretendCca()
    realm = sign1(stranger.rak_key, stranger.realm(NONCE))
    assert judged(arm, arm.token(realm=realm))[1] == {"cca.realm-key": "binding"}


def test_tokens_that_their_keys_did_not_sign_are_refused(arm):
    stranger = PretendCca()
    assert judged(arm, cpak=stranger.cpak)[1] == {"cca.platform-signature": "signature"}
    forged = sign1(stranger.rak_key, arm.realm(NONCE))
    assert judged(arm, arm.token(realm=forged))[1] == {"cca.realm-signature": "signature"}


def test_a_policy_names_platforms_and_believes_no_other(arm):
    instance = arm.platform()[256].hex()
    stranger = PretendCca()
    listed = {"cpaks": {instance: arm.cpak.decode()}}
    assert judged(arm, cpak=b"", table=listed)[1] == {}
    assert judged(arm, cpak=stranger.cpak, table=listed)[1] == {}, "what is handed in beside it does not count"
    other = {"cpaks": {"01" + "00" * 32: arm.cpak.decode()}}
    assert judged(arm, table=other)[1] == {"cca.cpak-present": "collateral-missing"}
    wrong = {"cpaks": {instance: stranger.cpak.decode()}}
    assert judged(arm, table=wrong)[1] == {"cca.platform-signature": "signature"}


@pytest.mark.parametrize(
    "cpaks",
    [{}, {"00" * 33: "{}"}, {"01" * 32: "{}"}, {"01" * 33: "{}"}, {"01" * 33: 1}, {"01" + "0A" * 32: "{}"}, []],
    ids=repr,
)
def test_a_table_of_platforms_that_cannot_be_meant_is_an_error(cpaks):
    with pytest.raises(MalformedInput):
        CcaVerifier().policy(Fields({"cpaks": cpaks}, where="cca"))


def test_a_missing_cpak_is_named(arm):
    assert judged(arm, cpak=b"")[1] == {"cca.cpak-present": "collateral-missing"}


@pytest.mark.parametrize("algorithm", [-8, -257, 5, -65535])
def test_an_algorithm_that_is_not_ecdsa_with_sha_2_is_refused(arm, algorithm):
    token = arm.token(NONCE, platform=sign1(arm.cpak_key, arm.platform(), algorithm=algorithm))
    assert judged(arm, token)[1] == {"cca.platform-algorithm": "algorithm"}


@pytest.mark.parametrize("algorithm", [-7, -36])
def test_an_algorithm_of_another_curve_than_the_keys_verifies_nothing(arm, algorithm):
    token = arm.token(NONCE, platform=sign1(arm.cpak_key, arm.platform(), algorithm=algorithm))
    assert judged(arm, token)[1] == {"cca.platform-signature": "signature"}


@pytest.mark.parametrize(
    ("table", "failed"),
    [
        ({"measurements": ["11" * 32], "rem0": ["00" * 32], "instance_ids": ["01" + "2d" * 32]}, {}),
        ({"measurements": ["12" * 32]}, {"cca.initial-measurement": "measurement"}),
        ({"measurements": []}, {"cca.initial-measurement": "measurement"}),
        ({"rem3": ["00" * 32]}, {"cca.rem3": "measurement"}),
        ({"personalization_values": ["00" * 64]}, {"cca.personalization": "measurement"}),
        ({"implementation_ids": ["00" * 32]}, {"cca.implementation-id": "identity"}),
        ({"firmware": ["3d" * 32], "firmware_signers": ["4d" * 32], "platform_configs": ["cf" * 4]}, {}),
        ({"firmware": ["3e" * 32]}, {"cca.firmware.RMM": "measurement"}),
        ({"firmware_signers": []}, {"cca.firmware-signers.RMM": "measurement"}),
    ],
)
def test_reference_values_decide(arm, table, failed):
    assert judged(arm, table=table)[1] == failed


def test_nothing_is_read_out_of_a_token_whose_signature_failed(arm):
    stranger = PretendCca()
    bad = arm.platform(c2395=0x6000)
    token = arm.token(NONCE, platform=sign1(stranger.cpak_key, bad))
    assert judged(arm, token, table={"measurements": []})[1] == {"cca.platform-signature": "signature"}


def outer(value) -> bytes:
    return cbor2.dumps(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda arm: b"",
        lambda arm: arm.token()[:-1],
        lambda arm: arm.token() + b"\0",
        lambda arm: outer(dict(cbor2.loads(arm.token()).value)),
        lambda arm: outer(cbor2.CBORTag(399, [])),
        lambda arm: outer(cbor2.CBORTag(399, {44234: b"", 44241: b""})),
        lambda arm: outer(cbor2.CBORTag(399, dict(cbor2.loads(arm.token()).value) | {1: 1})),
        lambda arm: (
            b"\xd9\x01\x8f\xa3" + cbor2.dumps(44234) + b"\x41\0" + outer(dict(cbor2.loads(arm.token()).value))[1:]
        ),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, arm.platform(), header={2: [1]})),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, [])),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, arm.platform(c265="tag:other"))),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, arm.platform(c256=bytes(33)))),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, arm.platform(c2395=True))),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, arm.platform(c2399=[]))),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, arm.platform(c2399=[{2: b""}]))),
        lambda arm: arm.token(platform=sign1(arm.cpak_key, arm.platform(c10=b"short"))),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c265="tag:other"))),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE[:32]))),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c44239=[b""] * 4))),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c44237=b"\x04" + bytes(96)))),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c44237=b"\x04" + bytes(5)))),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c44237=cbor2.dumps({1: 1})))),
        lambda arm: arm.token(
            realm=sign1(arm.rak_key, arm.realm(NONCE, c44237=cbor2.dumps({1: 2, -1: 2, -2: bytes(48), -3: True})))
        ),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c44237=cbor2.dumps({1: 2, -1: [1]})))),
        lambda arm: arm.token(realm=sign1(arm.rak_key, arm.realm(NONCE, c44237=cbor2.dumps({1: 2, -1: True})))),
    ],
)
def test_what_is_no_token_is_malformed(arm, make):
    with pytest.raises(EvidenceMalformed):
        judged(arm, make(arm))


@pytest.mark.parametrize("body", [{}, {"token": "AA=="}, {"token": [256]}, {"token": [True]}, {"token": [], "more": 1}])
def test_what_is_no_evidence_body_is_malformed(arm, body):
    verifier = CcaVerifier()
    with pytest.raises(EvidenceMalformed):
        verifier.verify(
            Evidence("cca", body), Endorsements({}), None, verifier.policy(Fields({}, where="")), Checklist()
        )


def test_a_cpak_off_its_curve_or_of_another_kind_is_malformed(arm):
    jwk = json.loads(arm.cpak)
    for change in (
        {"x": b64url(bytes(48))},
        {"crv": "P-256"},
        {"crv": "secp256k1"},
        {"kty": "RSA"},
        {"d": "AA"},
        {"k": "AA"},
        {"x": "="},
    ):
        with pytest.raises(EvidenceMalformed):
            judged(arm, cpak=json.dumps(jwk | change).encode())


def test_members_beside_a_cpaks_own_say_nothing(arm):
    more = {"kid": "a", "alg": "ES384", "use": "sig", "key_ops": ["verify"], "x5t#S256": "", "surprise": None}
    assert judged(arm, cpak=json.dumps(json.loads(arm.cpak) | more).encode())[1] == {}


def test_an_unknown_policy_key_is_an_error(arm):
    with pytest.raises(MalformedInput):
        judged(arm, table={"realm": []})


def test_claims_are_parsed_into_typed_values(arm):
    platform = PlatformClaims.parse(cbor2.dumps(arm.platform()))
    realm = RealmClaims.parse(cbor2.dumps(arm.realm(NONCE)))
    assert (platform.lifecycle, platform.components[0].kind) == (0x3003, "RMM")
    assert realm.extensible_measurements[3] == b"\3" * 32
