"""Which Intel platforms a policy accepts: kind, package and instance, on pretend platforms and on captured quotes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from doubles.dcap_platform import FMSPC, enclave
from evidence.test_trustworthiness import intel, sgx, tdx
from strongroom.encoding import Fields, b64
from strongroom.errors import MalformedInput
from strongroom.evidence.dcap_policy import TcbPolicy, appraise_platform
from strongroom.evidence.policy import Policy
from strongroom.evidence.reference import reference_policy
from strongroom.evidence.sgx import SgxVerifier
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.types import Checklist, Endorsements, Evidence

KEYS = {  # policy key → (claim, check)
    "fmspcs": ("fmspc", "platform-fmspc"),
    "ppids": ("ppid", "ppid"),
    "platform_instance_ids": ("platform_instance_id", "platform-instance-id"),
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIZES = {"fmspcs": 6, "ppids": 16, "platform_instance_ids": 16}


def judged(make, table):
    """(claims, the checks that failed) of that evidence under that table."""
    verifier, body, items, now = make()
    policy, checks = verifier.policy(Fields(table, where=verifier.tee)), Checklist()
    claims = verifier.verify(Evidence(verifier.tee, body), Endorsements(items), now, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, checks.failed


@pytest.mark.parametrize("make", [tdx, sgx], ids=lambda make: make.__name__)
@pytest.mark.parametrize("key", KEYS)
def test_a_listed_platform_is_accepted_and_another_refused_with_what_was_found(make, key):
    claim, check = KEYS[key]
    found = judged(make, {})[0][claim]
    assert judged(make, {key: ["ab" * SIZES[key], found]})[1] == ()
    [failed] = judged(make, {key: ["ab" * SIZES[key]]})[1]
    assert failed.name == f"{make.__name__}.{check}" and str(failed.word) == "identity"
    assert (failed.expected, failed.found) == ("one of " + "ab" * SIZES[key], found)
    assert key in failed.hint and "PCK Certificate" in failed.source


@pytest.mark.parametrize("make", [tdx, sgx], ids=lambda make: make.__name__)
@pytest.mark.parametrize("key", KEYS)
def test_an_empty_list_of_platforms_denies(make, key):
    [failed] = judged(make, {key: []})[1]
    assert failed.expected == "nothing is allowed: the list is empty"


def test_a_platform_without_an_instance_is_on_no_list_of_instances():
    """Intel's processor CA certifies packages and says nothing about a platform."""
    verified = judged(tdx, {})[0].verified
    without = replace(verified, pck=replace(verified.pck, platform_instance_id=b""))
    checks = Checklist()
    appraise_platform(without, TcbPolicy(platform_instance_ids=frozenset({"ab" * 16})), checks, "tdx")
    assert [(each.name, each.found, each.ok) for each in checks] == [("tdx.platform-instance-id", "(none)", False)]


def test_an_altered_quote_is_not_asked_whose_platform_it_is():
    """Its certificate is nobody's word about it, and the signature's refusal says it all."""

    def altered():
        verifier, body, items, now = sgx()
        quote = bytearray(intel().quote(enclave()))
        quote[60] ^= 1
        return verifier, body | {"quote": b64(bytes(quote))}, items, now

    names = {each.name for each in judged(altered, {"fmspcs": []})[1]}
    assert "sgx.platform-fmspc" not in names and names


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fmspcs", "00" * 6), ("ppids", "00" * 16), ("platform_instance_ids", "00" * 16), ("fmspcs", "ab" * 5),
        ("ppids", "ab" * 15), ("fmspcs", "00906ED50000"), ("ppids", "not hex"),
    ],
)  # fmt: skip
def test_a_value_that_names_no_platform_is_no_policy(key, value):
    with pytest.raises(MalformedInput, match=key):
        TcbPolicy.read(Fields({key: [value]}, where="tdx"))


# -- captured quotes --------------------------------------------------------------------------


def captured(folder, tee):
    """Every shared case of that TEE, as (name, verifier, evidence, an empty policy)."""
    verifier = {"tdx": TdxVerifier(), "sgx": SgxVerifier()}[tee]
    found = []
    for path in sorted(folder.glob(f"{tee}/*/*quote*")):
        octets = path.read_bytes()
        body = {"quote": b64(octets)} | ({"cc_eventlog": None} if tee == "tdx" else {})
        policy = verifier.policy(Fields({}, where=tee))
        found.append((path.parent.name, verifier, Evidence(tee, body), policy))
    return found


@pytest.mark.parametrize("tee", ["tdx", "sgx"])
def test_every_captured_quote_names_its_platform_and_a_policy_can_name_it_alone(shared_evidence, tee):
    cases = captured(shared_evidence, tee)
    assert cases
    platforms = set()
    for name, verifier, evidence, plain in cases:
        claims = verifier.verify(evidence, Endorsements(), NOW, plain, Checklist())
        own = {key: [claims[claim]] for key, (claim, _) in KEYS.items() if claims[claim].strip("0")}
        assert {"fmspcs", "ppids"} <= set(own), name
        platforms.add(claims["ppid"])
        for table, wrong in ((own, set()), ({key: [] for key in own}, set(own))):
            policy, checks = verifier.policy(Fields(table, where=tee)), Checklist()
            verifier.appraise(verifier.verify(evidence, Endorsements(), NOW, policy, Checklist()), policy, checks)
            asked = {f"{tee}.{KEYS[key][1]}" for key in own}
            assert {each.name for each in checks.failed} & asked == {f"{tee}.{KEYS[key][1]}" for key in wrong}, name
        text = reference_policy(evidence, {tee: verifier}, name="measured").toml()
        assert all(f'{key} = ["{value}"]' in text for key, (value,) in own.items()), name
        assert Policy.parse(text, {tee: verifier}).tees[tee].tcb.ppids is None
    assert len(platforms) > 1


def test_the_pretend_platform_is_told_in_a_comment_and_not_demanded():
    verifier, body, _, _ = tdx()
    measured = reference_policy(Evidence("tdx", body), {"tdx": verifier}, name="measured")
    [note] = measured.notes
    assert f'fmspcs = ["{FMSPC.hex()}"]' in note
    assert not set(measured.values) & set(KEYS)
