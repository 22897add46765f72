"""EAR: whose judgement is believed, and what our own verdicts become."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.amd_keys import NOW as AMD_NOW
from doubles.amd_keys import amd_keys
from evidence.pki import Authority
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.encoding import Fields, b64, b64url, unb64url
from strongroom.errors import ConfigurationInvalid, EvidenceMalformed, EvidenceRefused
from strongroom.evidence.ear import EarVerifier, ear_claims, resolve
from strongroom.evidence.judge import Presented, Verdict, examine, judge, judge_composite
from strongroom.evidence.jws import CompactJws
from strongroom.evidence.policy import Policy
from strongroom.evidence.simulated import SimulatedReport, SimulatedVerifier
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.trustworthiness import status, tier
from strongroom.evidence.types import Checklist, Endorsements, Evidence, Word

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BINDING = bytes(range(48))
CA = Authority.root("Verifier CA")
SERVICE = CA.issue("Attestation service", key=ec.generate_private_key(ec.SECP256R1()))
VERIFIERS = {"ear": EarVerifier()}


def claims(**changes: Any) -> dict[str, Any]:
    submodule = {
        "ear.status": "affirming",
        "ear.trustworthiness-vector": {"hardware": 2, "executables": 3, "configuration": 2},
        "ear.veraison.annotated-evidence": {"report_data": BINDING.hex() + "00" * 16, "tdx": {"mr_td": "aa"}},
    }
    at = int(NOW.timestamp())
    return {"iss": "service", "iat": at - 10, "exp": at + 290, "submods": {"cpu0": submodule}} | changes


def jwk_of(key, **more: Any) -> dict[str, Any]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url(key.public_key().public_bytes_raw()), **more}
    numbers = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        return {"kty": "RSA", "n": b64url(numbers.n.to_bytes(256, "big")), "e": b64url(b"\1\0\1"), **more}
    width = (key.curve.key_size + 7) // 8
    name = {256: "P-256", 384: "P-384", 521: "P-521"}[key.curve.key_size]
    x, y = (b64url(each.to_bytes(width, "big")) for each in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": name, "x": x, "y": y, **more}


def sign(payload: Any, key, header: dict[str, Any]) -> str:
    signed = ".".join(b64url(json.dumps(each).encode()) for each in (header, payload)).encode()
    algorithm = header.get("alg", "")
    if algorithm.startswith("ES"):
        digest = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384(), "ES512": hashes.SHA512()}[algorithm]
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        width = (key.curve.key_size + 7) // 8
        signature = r.to_bytes(width, "big") + s.to_bytes(width, "big")
    elif algorithm == "EdDSA":
        signature = key.sign(signed)
    elif algorithm == "RS256":
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    elif algorithm == "PS384":
        signature = key.sign(signed, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())
    else:
        signature = b""
    return f"{signed.decode()}.{b64url(signature)}"


def chained(payload: Any | None = None, **header: Any) -> str:
    chain = [b64(each.certificate.public_bytes(Encoding.DER)) for each in (SERVICE, CA)]
    jwk = jwk_of(SERVICE.key, x5c=chain)
    return sign(payload if payload is not None else claims(), SERVICE.key, {"alg": "ES256", "jwk": jwk} | header)


CA_PEM = CA.certificate.public_bytes(Encoding.PEM).decode()
PINNED_CA = f'trusted_certificates = """\n{CA_PEM}"""\n'


def pinned_keys(*keys: dict[str, Any]) -> str:
    return f"trusted_keys = '''{json.dumps({'keys': list(keys)})}'''\n"


def judged(token: str, table: str = PINNED_CA, now: datetime = NOW, binding: bytes = BINDING) -> Verdict:
    policy = Policy.parse(f'name = "ear"\n[ear]\n{table}', VERIFIERS)
    return judge(
        Evidence("ear", {"token": token}), binding=binding, endorsements=Endorsements(), policy=policy, now=now,
        verifiers=VERIFIERS,
    )  # fmt: skip


def refused(token: str, table: str = PINNED_CA, **changes: Any) -> set[Word]:
    with pytest.raises(EvidenceRefused) as caught:
        judged(token, table, **changes)
    return {check.word for check in caught.value.checks if not check.ok}


def test_a_token_whose_certificates_chain_to_the_pinned_authority_is_believed():
    verdict = judged(chained())
    assert verdict.claims["submodules"] == {"cpu0": "affirming"}
    assert str(verdict.claims.values["claims"].provenance) == "attestation-result"


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ec.generate_private_key(ec.SECP521R1()), "ES512"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
        (rsa.generate_private_key(65537, 2048), "RS256"),
        (rsa.generate_private_key(65537, 2048), "PS384"),
    ],
    ids=["ES256", "ES384", "ES512", "EdDSA", "RS256", "PS384"],
)
def test_a_token_by_a_pinned_key_is_believed(key, algorithm):
    table = pinned_keys(jwk_of(key, kid="one", use="sig"))
    assert judged(sign(claims(), key, {"alg": algorithm, "kid": "one"}), table)
    assert refused(sign(claims(), key, {"alg": algorithm, "kid": "two"}), table) == {Word.CHAIN}


def test_a_token_that_a_pinned_edwards_key_did_not_sign_is_refused():
    key, stranger = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    table = pinned_keys(jwk_of(key, kid="one"))
    assert refused(sign(claims(), stranger, {"alg": "EdDSA", "kid": "one"}), table) == {Word.SIGNATURE}


def test_an_algorithm_that_is_not_known_is_named_beside_a_key_that_is_not():
    for algorithm in ("RS1", "HS256", "none"):
        assert refused(sign(claims(), SERVICE.key, {"alg": algorithm, "kid": "two"})) == {Word.CHAIN, Word.ALGORITHM}


@pytest.mark.parametrize(
    "other",
    [
        {"kty": "oct", "k": "AA", "kid": "two"},
        {"kty": "AKP", "kid": "two"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "two"},
        {"kty": "OKP", "crv": "X25519", "x": "AA", "kid": "two"},
        {"kty": "RSA", "x5c": ["AA"], "kid": "two"},
        {"kid": "one"},
        {},
        None,
    ],
    ids=range(8),
)
def test_keys_that_nobody_here_could_use_are_passed_over(other):
    table = pinned_keys(other, jwk_of(SERVICE.key, kid="one"))
    assert judged(sign(claims(), SERVICE.key, {"alg": "ES256", "kid": "one"}), table)


def test_a_key_that_only_the_header_vouches_for_is_not_believed():
    stranger = ec.generate_private_key(ec.SECP256R1())
    for header in ({"jwk": jwk_of(stranger)}, {"kid": "one"}, {}):
        assert refused(sign(claims(), stranger, {"alg": "ES256"} | header)) == {Word.CHAIN}


def test_a_chain_to_another_authority_of_the_same_name_is_not_believed():
    other = Authority.root("Verifier CA")
    service = other.issue("Attestation service", key=ec.generate_private_key(ec.SECP256R1()))
    chain = [b64(each.certificate.public_bytes(Encoding.DER)) for each in (service, other)]
    token = sign(claims(), service.key, {"alg": "ES256", "x5c": chain})
    assert refused(token) == {Word.CHAIN}


def test_a_header_that_names_two_keys_is_not_believed():
    stranger = ec.generate_private_key(ec.SECP256R1())
    chain = [b64(each.certificate.public_bytes(Encoding.DER)) for each in (SERVICE, CA)]
    token = sign(claims(), stranger, {"alg": "ES256", "jwk": jwk_of(stranger, x5c=chain)})
    assert Word.BINDING in refused(token)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "RS256", ""])
def test_the_key_decides_the_algorithm_and_not_the_header(algorithm):
    header, payload, signature = chained().split(".")
    opened = json.loads(unb64url(header))
    header = b64url(json.dumps(opened | {"alg": algorithm}).encode())
    for spelled in (signature, ""):
        assert Word.ALGORITHM in refused(f"{header}.{payload}.{spelled}")


def test_a_shared_key_algorithm_with_the_public_key_as_secret_is_refused():
    table = pinned_keys(jwk_of(SERVICE.key, kid="one"))
    token = sign(claims(), SERVICE.key, {"alg": "HS256", "kid": "one"})
    assert refused(token, table) == {Word.ALGORITHM}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"exp": int(NOW.timestamp()) - 1}, Word.VALIDITY_PERIOD),
        ({"iat": int(NOW.timestamp()) + 1}, Word.VALIDITY_PERIOD),
        ({"nbf": int(NOW.timestamp()) + 1}, Word.VALIDITY_PERIOD),
        ({"submods": {}}, Word.ATTESTATION_RESULT),
        ({"submods": []}, Word.ATTESTATION_RESULT),
        ({"submods": {"cpu0": "affirming"}}, Word.ATTESTATION_RESULT),
    ],
)
def test_claims_out_of_date_or_without_a_judgement_are_refused(change, word):
    assert word in refused(chained(claims(**change)))


@pytest.mark.parametrize("moment", [10**400, -(10**400), True, "now"])
@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
def test_dates_that_are_no_times_cannot_be_read(name, moment):
    """Integers of any length are JSON; none of them may end in an error of the arithmetic."""
    token = chained(claims(**{name: moment}))
    with pytest.raises(EvidenceMalformed, match="numbers of seconds"):
        VERIFIERS["ear"].verify(
            Evidence("ear", {"token": token}), Endorsements(), NOW,
            VERIFIERS["ear"].policy(Fields({"trusted_certificates": CA_PEM, "max_age": 60}, where="ear")), Checklist(),
        )  # fmt: skip


def test_a_token_without_dates_is_refused():
    for name in ("iat", "exp"):
        payload = claims()
        del payload[name]
        assert refused(chained(payload)) == {Word.VALIDITY_PERIOD}


@pytest.mark.parametrize("stated", ["warning", "contraindicated", "none", "AFFIRMING", None, 2])
def test_a_submodule_that_is_not_affirming_is_refused(stated):
    payload = claims()
    payload["submods"]["gpu0"] = {"ear.status": stated}
    assert refused(chained(payload)) == {Word.ATTESTATION_RESULT}


def test_a_status_that_is_better_than_its_vector_is_refused():
    payload = claims()
    payload["submods"]["cpu0"]["ear.trustworthiness-vector"]["hardware"] = 97
    assert refused(chained(payload)) == {Word.ATTESTATION_RESULT}


def test_a_policy_may_leave_vectors_alone():
    payload = claims()
    for vector in ({"hardware": 97}, {"hardware": "good"}, None):
        payload["submods"]["cpu0"]["ear.trustworthiness-vector"] = vector
        assert judged(chained(payload), PINNED_CA + "check_vectors = false\n")
    payload["submods"]["cpu0"]["ear.status"] = "warning"
    assert refused(chained(payload), PINNED_CA + "check_vectors = false\n") == {Word.ATTESTATION_RESULT}


def test_one_affirming_number_among_zeros_does_not_stand_for_the_others():
    payload = claims()
    payload["submods"]["cpu0"]["ear.trustworthiness-vector"] = {"hardware": 2, "executables": 0}
    assert judged(chained(payload))
    assert refused(chained(payload), PINNED_CA + 'required_claims = ["executables"]\n') == {Word.ATTESTATION_RESULT}


def test_required_submodules_issuers_and_ages_are_asked_for():
    assert refused(chained(), PINNED_CA + 'submodules = ["cpu0", "gpu0"]\n') == {Word.ATTESTATION_RESULT}
    assert refused(chained(), PINNED_CA + 'issuers = ["other"]\n') == {Word.IDENTITY}
    assert refused(chained(), PINNED_CA + "max_age = 5\n") == {Word.VALIDITY_PERIOD}
    assert judged(chained(), PINNED_CA + 'issuers = ["service"]\nmax_age = 60\n')


def test_values_in_the_claims_can_be_demanded_by_pointer():
    pointer = '"/submods/cpu0/ear.veraison.annotated-evidence/tdx/mr_td"'
    assert judged(chained(), PINNED_CA + f'[ear.match]\n{pointer} = ["aa", "bb"]\n')
    assert refused(chained(), PINNED_CA + f'[ear.match]\n{pointer} = ["bb"]\n') == {Word.MEASUREMENT}
    assert refused(chained(), PINNED_CA + f"[ear.match]\n{pointer} = []\n") == {Word.MEASUREMENT}
    assert refused(chained(), PINNED_CA + '[ear.match]\n"/nowhere" = ["x"]\n') == {Word.MEASUREMENT}


def test_another_services_jwt_needs_values_to_match_and_its_own_binding():
    payload = {"iat": claims()["iat"], "exp": claims()["exp"], "x-type": "tdx", "x-data": b64(BINDING.ljust(64, b"\0"))}
    table = PINNED_CA + 'profile = "jwt"\nbinding = "/x-data"\n[ear.match]\n"/x-type" = ["tdx"]\n'
    assert judged(chained(payload), table)
    assert refused(chained(payload | {"x-type": "sim"}), table) == {Word.MEASUREMENT}
    assert refused(chained(payload | {"x-data": ""}), table) == {Word.BINDING}


def test_a_token_about_another_session_is_refused():
    assert refused(chained(), binding=BINDING[::-1]) == {Word.BINDING}


@pytest.mark.parametrize(
    "table",
    [
        "",
        PINNED_CA + 'profile = "jwt"\n',
        PINNED_CA + 'profile = "maa"\n',
        PINNED_CA + 'statuses = ["contraindicated"]\n',
        pinned_keys({"kty": "oct", "k": "AA", "kid": "one"}),
        pinned_keys(jwk_of(SERVICE.key)),
        pinned_keys(jwk_of(SERVICE.key, kid="one"), jwk_of(SERVICE.key, kid="one")),
        pinned_keys(jwk_of(SERVICE.key, kid="one", d="AA")),
        pinned_keys(jwk_of(SERVICE.key, kid="one"), jwk_of(SERVICE.key, kid="two", d="AA")),
        pinned_keys(),
        "trusted_keys = '{\"keys\": null}'\n",
        'trusted_keys = \'{"keys": {"one": {}}}\'\n',
        "trusted_certificates = 'nothing'\n",
        PINNED_CA + "surprise = 1\n",
    ],
)
def test_a_table_that_believes_nobody_or_nonsense_is_not_used(table):
    with pytest.raises(ConfigurationInvalid):
        Policy.parse(f'name = "ear"\n[ear]\n{table}', VERIFIERS)


@settings(deadline=None)  # a busy machine is no finding
@given(st.text(max_size=60) | st.tuples(st.binary(), st.binary(), st.binary()).map(lambda p: ".".join(map(b64url, p))))
def test_text_that_is_no_token_raises_our_error_only(text):
    with pytest.raises(EvidenceMalformed):
        CompactJws.parse(text)


def test_a_critical_header_parameter_is_refused():
    assert refused(chained(crit=["b64"])) == {Word.FORMAT}


def test_pointers_follow_the_rfc():
    document = {"a/b": {"~": [10, {"": 1}]}}
    assert resolve(document, "/a~1b/~0/0") == 10
    assert resolve(document, "/a~1b/~0/1/") == 1
    assert resolve(document, "/a~1b/~0/2") is None
    assert resolve(document, "/a~1b/~0/-1") is None
    assert resolve(document, "/a~1b/~0/" + "9" * 5000) is None
    assert resolve(document, "") == document


# -- writing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "none"), (1, "none"), (-1, "none"), (2, "affirming"), (31, "affirming"), (32, "warning"), (95, "warning"),
     (96, "contraindicated"), (127, "contraindicated"), (-3, "affirming"), (-33, "warning"), (-128, "contraindicated")],
)  # fmt: skip
def test_numbers_fall_into_the_tiers_of_ar4si(value, expected):
    assert tier(value) == expected
    assert status({"hardware": value, "executables": 0}) == expected


CHIP = amd_keys("Milan").chip()


def snp_verdict(table: str = "") -> Verdict:
    verifiers = {"snp": SnpVerifier(issuers=amd_keys("Milan").issuers)}
    policy = Policy.parse(f'name = "p"\n[snp]\n{table}', verifiers)
    report = CHIP.report(report_data=BINDING.ljust(64, b"\0"))
    return judge(
        Evidence("snp", {"report": b64(report.serialise())}), binding=BINDING,
        endorsements=Endorsements({"vcek": CHIP.certificate()}), policy=policy, now=AMD_NOW, verifiers=verifiers,
    )  # fmt: skip


def test_a_verdict_without_reference_values_is_not_affirming():
    submodule = ear_claims(snp_verdict(), runtime_data_claims={"nonce": "n"})["submods"]["cpu0"]
    assert submodule["ear.trustworthiness-vector"] == {"hardware": 2, "executables": 33, "configuration": 3}
    assert submodule["ear.status"] == "warning"


def test_a_verdict_with_reference_values_is_affirming_and_carries_its_claims():
    told = ear_claims(
        snp_verdict(f'measurements = ["{"22" * 48}"]'), runtime_data_claims={"nonce": "n", "tee-pubkey": {}}
    )
    submodule = told["submods"]["cpu0"]
    assert submodule["ear.status"] == "affirming"
    annotated = submodule["ear.veraison.annotated-evidence"]
    assert annotated["report_data"] == BINDING.hex() + "00" * 16
    assert annotated["runtime_data_claims"]["nonce"] == "n"
    assert annotated["snp"]["measurement"] == "22" * 48
    assert annotated["snp"]["reported_tcb_microcode"] == 200
    assert annotated["snp"]["evidence"]["policy"]["debug_allowed"] is False
    assert annotated["provenance"]["measurement"] == "hardware"
    assert json.loads(json.dumps(told)) == told


def test_the_simulated_tee_is_never_affirming():
    verifiers = {"simulated": SimulatedVerifier()}
    policy = Policy.parse(
        f'name = "dev"\n[simulated]\nprotects_nothing = true\nmeasurements = ["{"11" * 32}"]', verifiers
    )
    report = SimulatedReport.sign(b"\x11" * 32, BINDING.ljust(64, b"\0"), {})
    verdict = judge_composite(
        Presented(Evidence("simulated", report.serialise())), (), binding=BINDING, device_binding=b"", policy=policy,
        now=NOW, verifiers=verifiers,
    )  # fmt: skip
    assert ear_claims(verdict, runtime_data_claims={})["submods"]["cpu0"]["ear.status"] == "warning"


def test_our_own_claims_signed_by_a_pinned_broker_are_believed_elsewhere():
    told = ear_claims(snp_verdict(f'measurements = ["{"22" * 48}"]'), runtime_data_claims={})
    at = int(NOW.timestamp())
    token = chained(told | {"iat": at, "exp": at + 300})
    assert judged(token, PINNED_CA + 'required_claims = ["hardware", "executables"]\n')


def test_a_real_token_of_an_attestation_service_is_read(shared_evidence):
    folder = shared_evidence / "ear" / "coco-as"
    policy = Policy.parse(
        f'name = "p"\n[ear]\ntrusted_certificates = """\n{(folder / "as_ca.pem").read_text()}"""', VERIFIERS
    )
    checks = Checklist()
    evidence = Evidence("ear", {"token": (folder / "ear.jwt").read_text().strip()})
    at = datetime(2026, 1, 20, 7, 56, tzinfo=UTC)
    found = examine(Presented(evidence), policy, at, VERIFIERS, checks)
    assert not checks.failed
    assert len(found.report_data) == 64
    later = Checklist()
    examine(Presented(evidence), policy, at + timedelta(hours=1), VERIFIERS, later)
    assert {check.word for check in later.failed} == {Word.VALIDITY_PERIOD}
