"""The Azure verifier: each link from hardware to nonce is broken once, and found."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from doubles.amd_keys import NOW, amd_keys
from doubles.azure_guest import VM, AzureGuest, jwk
from doubles.paper_tpm import NONCE, PaperTpm, rsa_key
from hypothesis import given
from hypothesis import strategies as st
from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.azure import AzureSnpVerifier, AzureTdxVerifier
from strongroom.evidence.azure_hcl import HclReport, RuntimeData
from strongroom.evidence.types import Checklist, Endorsements, Evidence

GUEST = AzureGuest()


def appraised(evidence, table=None, guest=GUEST, vcek=True):
    verifier, checks = AzureSnpVerifier(issuers=guest.chip.line.issuers), Checklist()
    policy = verifier.policy(Fields(table or {}, where="az-snp-vtpm"))
    items = Endorsements({"vcek": guest.chip.certificate()} if vcek else {})
    claims = verifier.verify(evidence, items, NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, checks


def words(evidence, table=None, **more):
    return {str(check.word) for check in appraised(evidence, table, **more)[1].failed}


def test_a_good_guest_is_accepted():
    claims, checks = appraised(GUEST.evidence())
    assert checks.failed == ()
    assert claims.report_data == NONCE
    assert claims["vm_id"] == VM
    assert claims["user_data"] == "0a" * 64
    assert claims["secure_boot"] is True


def test_the_protocols_form_brings_its_own_vcek():
    assert words(GUEST.protocol(), vcek=False) == set()
    assert words(GUEST.evidence(), vcek=False) == {"collateral-missing"}


def test_runtime_data_may_end_in_nuls_that_are_hashed_with_it():
    guest = AzureGuest(trailing=b"\0\0\0")
    assert words(guest.evidence(), guest=guest) == set()


def test_runtime_data_that_the_hardware_does_not_vouch_for_is_refused():
    """The attack that the hash is for: another attestation key beside a genuine report."""
    forger = PaperTpm(key=rsa_key(2048, 3))
    forged = AzureGuest(tpm=forger)
    hcl = replace(GUEST.hcl(), runtime_data=forged.runtime_data)
    assert words(forged.evidence(hcl)) == {"binding"}


def test_a_report_of_another_guest_is_refused():
    other = AzureGuest(user_data=bytes(64))
    hcl = replace(GUEST.hcl(), hardware=other.hcl().hardware)
    assert words(GUEST.evidence(hcl)) == {"binding"}


def test_parts_beside_the_hcl_report_have_to_equal_what_is_in_it():
    other = AzureGuest(user_data=bytes(64))
    hcl = GUEST.hcl()
    assert words(GUEST.evidence(hcl, report=hcl.hardware, runtime_data=GUEST.runtime_data)) == set()
    assert words(GUEST.evidence(report=other.hcl().hardware)) == {"binding"}
    assert words(GUEST.evidence(runtime_data=other.runtime_data)) == {"binding"}


def test_a_quote_by_another_key_is_refused():
    forger = AzureGuest(tpm=PaperTpm(key=rsa_key(2048, 3)))
    parts = forger.parts()
    assert words(GUEST.evidence(tpm_quote=parts.tpm_quote, tpm_signature=parts.tpm_signature)) == {"signature"}


@pytest.mark.parametrize(
    ("part", "expected"),
    [("hcl_report", {"evidence-missing"}), ("tpm_quote", {"evidence-missing"}), ("tpm_signature", {"evidence-missing"}),
     ("pcrs", {"evidence-missing"})],
)  # fmt: skip
def test_each_missing_part_is_named(part, expected):
    assert words(GUEST.evidence(**{part: None})) == expected


def test_an_empty_nonce_is_refused_unless_allowed():
    guest = AzureGuest(tpm=PaperTpm(nonce=b""))
    assert words(guest.evidence(), guest=guest) == {"nonce"}
    assert words(guest.evidence(), {"allow_empty_nonce": True}, guest=guest) == set()


def test_report_and_runtime_data_by_themselves_stand_for_the_hcl_report():
    parts = {"report": GUEST.hcl().hardware, "runtime_data": GUEST.runtime_data}
    assert words(GUEST.evidence(hcl_report=None, **parts)) == set()
    assert words(GUEST.evidence(hcl_report=None, report=parts["report"])) == {"evidence-missing"}
    other = AzureGuest(user_data=bytes(64)).runtime_data
    assert words(GUEST.evidence(hcl_report=None, report=parts["report"], runtime_data=other)) == {"binding"}


def test_registers_that_no_quote_vouches_for_are_not_said_to_be_others():
    table = {"pcrs": {"4": ["00" * 32]}}
    for part in ("tpm_quote", "pcrs"):
        assert words(GUEST.evidence(**{part: None}), table) == {"evidence-missing"}


@pytest.mark.parametrize("keys", [lambda tpm: [], lambda tpm: [jwk(tpm), jwk(tpm)], lambda tpm: [jwk(tpm, "Other")]])
def test_there_has_to_be_exactly_one_attestation_key(keys):
    guest = AzureGuest(runtime={"keys": keys(PaperTpm()), "user-data": ""})
    assert words(guest.evidence(), guest=guest) == {"binding"}


def test_the_hardware_is_held_to_its_own_rules():
    guest = AzureGuest(report_changes={"policy": 0xB0000, "vmpl": 1})
    assert words(guest.evidence(), guest=guest) == {"debug", "vmpl"}
    assert words(guest.evidence(), {"allow_debug": True, "max_vmpl": 1}, guest=guest) == set()
    assert words(GUEST.evidence(), {"min_tcb": {"snp": 250}}) == {"tcb"}
    assert words(GUEST.evidence(), {"measurements": ["00" * 48]}) == {"measurement"}


@pytest.mark.parametrize(
    ("good", "bad", "word"),
    [
        ({"pcrs": {"4": ["00" * 32]}}, {"pcrs": {"4": ["01" * 32]}}, "measurement"),
        ({"user_data": ["0a" * 64]}, {"user_data": ["00" * 64]}, "binding"),
        ({"vm_ids": [VM]}, {"vm_ids": []}, "identity"),
    ],
)
def test_each_policy_key_decides(good, bad, word):
    assert words(GUEST.evidence(), good) == set()
    assert words(GUEST.evidence(), bad) == {word}


def test_secure_boot_off_is_refused_where_it_is_asked_for():
    off = AzureGuest(runtime={"keys": [jwk(PaperTpm())], "vm-configuration": {"secure-boot": False}})
    assert words(off.evidence(), {"require_secure_boot": True}, guest=off) == {"policy-bits"}
    assert words(GUEST.evidence(), {"require_secure_boot": True}) == set()


def test_another_hash_is_refused():
    assert words(GUEST.evidence(GUEST.hcl(hash_type=2))) == {"algorithm"}


def test_a_tdx_guests_report_is_not_an_snp_guests():
    hcl = GUEST.hcl(kind=4, hardware=bytes(1024))
    assert "format" in words(GUEST.evidence(hcl))


def test_a_tdreport_is_no_quote():
    verifier, checks = AzureTdxVerifier(), Checklist()
    hcl = GUEST.hcl(kind=4, hardware=bytes(1024))
    policy = verifier.policy(Fields({}, where="az-tdx-vtpm"))
    claims = verifier.verify(
        Evidence("az-tdx-vtpm", dict(GUEST.evidence(hcl).body)), Endorsements(), NOW, policy, checks
    )
    verifier.appraise(claims, policy, checks)
    assert {str(check.word) for check in checks.failed} == {"evidence-missing"}


def test_a_forged_hierarchy_is_refused():
    forged = replace(GUEST, chip=amd_keys("Genoa").chip(product="Milan"))
    verifier, checks = AzureSnpVerifier(issuers=GUEST.chip.line.issuers), Checklist()
    policy = verifier.policy(Fields({}, where="az-snp-vtpm"))
    verifier.verify(forged.protocol(), Endorsements(), NOW, policy, checks)
    assert "chain" in {str(check.word) for check in checks.failed}


# -- parsers -----------------------------------------------------------------------------


def test_an_hcl_report_is_the_exact_inverse_of_its_parser():
    octets = GUEST.hcl().serialise()
    assert HclReport.parse(octets).serialise() == octets


HEADER = {"magic": 0, "version": 4, "size": 8, "status": 16, "reserved": 20, "data size": 1216, "type": 1224,
          "count": 1232, "padding": -1}  # fmt: skip


@pytest.mark.parametrize("at", HEADER.values(), ids=HEADER)
def test_a_field_of_another_value_is_refused(at):
    octets = bytearray(GUEST.hcl().serialise())
    octets[at] ^= 0x10
    with pytest.raises(EvidenceMalformed):
        HclReport.parse(bytes(octets))


def test_every_cut_into_an_hcl_report_is_refused():
    octets = GUEST.hcl(padding=0).serialise()
    for size in range(0, len(octets), 7):
        with pytest.raises(EvidenceMalformed):
            HclReport.parse(octets[:size])


@pytest.mark.parametrize(
    "runtime",
    [
        {},
        {"keys": {}},
        {"keys": [1]},
        {"keys": [jwk(PaperTpm()) | {"kty": "EC"}]},
        {"keys": [jwk(PaperTpm()) | {"n": "AQAB"}]},
        {"keys": [jwk(PaperTpm()) | {"e": "AA"}]},
        {"keys": [jwk(PaperTpm()) | {"n": "*"}]},
        {"keys": [], "user-data": "00"},
        {"keys": [], "user-data": "zz"},
        {"keys": [], "vm-configuration": []},
    ],
    ids=range(10),
)
def test_runtime_data_of_another_form_is_refused(runtime):
    guest = AzureGuest(runtime=runtime or {"none": 1})
    with pytest.raises(EvidenceMalformed):
        words(guest.evidence(), guest=guest)


@given(st.binary(max_size=200))
def test_any_bytes_are_runtime_data_or_refused(octets):
    with contextlib.suppress(EvidenceMalformed):
        RuntimeData.parse(octets)


@pytest.mark.parametrize(
    "change",
    [{"version": 3}, {"version": "1"}, {"hcl_report": "*"}, {"vcek": "AA="}, {"vcek": "AAA=="}, {"more": 1},
     {"tpm_quote": {}}, {"tpm_quote": {"signature": "AA", "message": "", "pcrs": []}}],
    ids=range(8),
)  # fmt: skip
def test_a_body_of_another_form_is_refused(change):
    with pytest.raises(EvidenceMalformed):
        words(Evidence("az-snp-vtpm", dict(GUEST.protocol().body) | change))
