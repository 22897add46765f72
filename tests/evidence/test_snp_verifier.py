"""The SNP verifier under a key hierarchy of our own: products, keys, revocation, and every policy key."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest
from doubles.amd_keys import NOW, AmdKeys, amd_keys, evidence_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.encoding import Fields, b64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.snp_report import SnpReport, Tcb, from_serde, to_serde
from strongroom.evidence.types import Checklist, Endorsements, Evidence


def appraised(chip, evidence, table=None, now=NOW, **endorsements):
    """(claims, words that failed)."""
    verifier = SnpVerifier(issuers=chip.line.issuers)
    policy, checks = verifier.policy(Fields(table or {}, where="snp")), Checklist()
    items = {chip.kind: chip.certificate(), **endorsements}
    claims = verifier.verify(evidence, Endorsements(items), now, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, {str(check.word) for check in checks.failed}


def words(chip, report, table=None, **more):
    return appraised(chip, evidence_of(report), table, **more)[1]


@pytest.fixture(scope="module")
def milan():
    return amd_keys("Milan").chip()


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_good_report_of_each_product_is_accepted(product):
    chip = amd_keys(product).chip()
    claims, failed = appraised(chip, evidence_of(chip.report()))
    assert failed == set()
    assert claims["product"] == product
    assert claims.report_data == b"\x11" * 64
    assert claims.device_id == chip.hwid.ljust(64, b"\0").hex()


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_each_report_version_is_accepted(milan, version):
    older = {"launch_mitigations": 0, "current_mitigations": 0} if version < 5 else {}
    older |= {"cpuid": (0, 0, 0)} if version < 3 else {}
    assert words(milan, milan.report(version=version, **older)) == set()


def test_turin_puts_its_tcb_in_another_order():
    chip = amd_keys("Turin").chip(tcb=Tcb(9, 1, 2, 3, fmc=4))
    report = chip.report()
    assert report.reported_tcb.hex() == "0409010200000003"
    assert words(chip, report, {"min_tcb": {"fmc": 4, "bootloader": 9, "tee": 1, "snp": 2, "microcode": 3}}) == set()
    assert words(chip, report, {"min_tcb": {"fmc": 5}}) == {"tcb"}
    assert words(chip, report, {"min_tcb": {"microcode": 4}}) == {"tcb"}


def test_turin_chip_ids_end_in_zeros():
    chip = amd_keys("Turin").chip()
    assert words(chip, chip.report(chip_id=chip.hwid + b"\1" * 56)) == {"identity"}


def test_before_turin_there_is_no_fmc_to_ask_for(milan):
    assert words(milan, milan.report(), {"min_tcb": {"fmc": 0}}) == {"tcb"}


def test_a_certificate_of_another_product_is_refused():
    chip = amd_keys("Genoa").chip(product="Milan")
    assert words(chip, chip.report()) == {"identity"}


@pytest.mark.parametrize("version", [2, 3])
def test_a_certificate_of_a_line_with_another_tcb_layout_fails_its_checks_and_no_more(milan, version):
    older = {"cpuid": (0, 0, 0)} if version < 3 else {}
    report = milan.report(version=version, launch_mitigations=0, current_mitigations=0, **older)
    assert words(amd_keys("Turin").chip(), report) == {"signature", "identity", "tcb"}


def test_a_processor_that_is_not_known_is_refused(milan):
    assert words(milan, milan.report(cpuid=(0x19, 0x50, 0))) == {"identity"}


def test_another_chips_certificate_is_refused(milan):
    other = amd_keys("Milan").chip(hwid=b"\x77" * 64)
    report = milan.report()
    assert words(other, report) == {"signature", "identity"}


def test_a_certificate_for_another_tcb_is_refused(milan):
    assert words(milan, milan.report(reported_tcb=Tcb(7, 0, 19, 200).serialise())) == {"tcb"}


def test_a_key_under_the_wrong_intermediate_is_refused():
    line = amd_keys("Milan")
    chip = line.chip(signer=line.asvk)
    assert words(chip, chip.report()) == {"chain"}


def test_a_hierarchy_of_ones_own_is_refused(milan):
    forged = AmdKeys("Milan").chip()
    verifier, checks = SnpVerifier(issuers=milan.line.issuers), Checklist()
    policy = verifier.policy(Fields({}, where="snp"))
    items = Endorsements({"vcek": forged.certificate()})
    verifier.verify(evidence_of(forged.report()), items, NOW, policy, checks)
    assert {str(check.word) for check in checks.failed} == {"chain"}


def test_a_missing_certificate_is_named(milan):
    verifier, checks = SnpVerifier(issuers=milan.line.issuers), Checklist()
    policy = verifier.policy(Fields({}, where="snp"))
    claims = verifier.verify(evidence_of(milan.report()), Endorsements(), NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    assert [str(check.word) for check in checks.failed] == ["collateral-missing"]


@pytest.mark.parametrize("days", [-400, 366 * 6])
def test_dates_outside_a_certificate_are_refused(milan, days):
    assert words(milan, milan.report(), now=NOW + timedelta(days=days)) == {"validity-period"}


# -- VLEK --------------------------------------------------------------------------


def test_a_vlek_needs_the_policys_consent():
    chip = amd_keys("Milan").chip(csp_id="cloud.example")
    assert words(chip, chip.report()) == {"policy-bits"}
    assert words(chip, chip.report(), {"allow_vlek": True}) == set()
    assert words(chip, chip.report(), {"allow_vlek": True, "csp_ids": ["cloud.example"]}) == set()


@pytest.mark.parametrize("allowed", [["other.example"], []])
def test_a_vlek_of_another_provider_is_refused(allowed):
    chip = amd_keys("Milan").chip(csp_id="cloud.example")
    assert words(chip, chip.report(), {"allow_vlek": True, "csp_ids": allowed}) == {"identity"}


def test_a_vcek_names_no_provider(milan):
    assert words(milan, milan.report(), {"csp_ids": ["cloud.example"]}) == {"identity"}


@pytest.mark.parametrize(
    ("csp_id", "failed"), [("cloud.example", set()), ("other.example", {"identity"}), (None, {"identity"})]
)
def test_the_provider_is_judged_without_a_report_too(csp_id, failed):
    chip = amd_keys("Milan").chip(csp_id=csp_id)
    verifier, checks = SnpVerifier(issuers=chip.line.issuers), Checklist()
    policy = verifier.policy(Fields({"csp_ids": ["cloud.example"]}, where="snp"))
    verifier.verify_endorsements(Endorsements({chip.kind: chip.certificate()}), NOW, policy, checks)
    assert {str(check.word) for check in checks.failed} == failed


def test_a_vcek_does_not_pass_for_a_vlek():
    line = amd_keys("Milan")
    chip = line.chip()
    report = chip.report(flags=1 << 2)
    verifier, checks = SnpVerifier(issuers=line.issuers), Checklist()
    policy = verifier.policy(Fields({"allow_vlek": True}, where="snp"))
    verifier.verify(evidence_of(report), Endorsements({"vlek": chip.certificate()}), NOW, policy, checks)
    assert {str(check.word) for check in checks.failed} == {"chain", "identity"}


# -- revocation --------------------------------------------------------------------


def test_a_fresh_crl_of_the_root_satisfies_a_policy_that_asks_for_one(milan):
    crl = milan.line.ark.crl()
    assert words(milan, milan.report(), {"require_revocation_status": True}, crl=crl) == set()


def test_a_missing_crl_is_a_refusal_where_one_is_asked_for(milan):
    assert words(milan, milan.report(), {"require_revocation_status": True}) == {"revocation"}


@pytest.mark.parametrize("required", [False, True])
def test_a_revoked_intermediate_is_refused_whenever_its_crl_is_there(milan, required):
    crl = milan.line.ark.crl(milan.line.ask.certificate)
    assert words(milan, milan.report(), {"require_revocation_status": required}, crl=crl) == {"revocation"}


def test_a_stale_crl_is_refused(milan):
    crl = milan.line.ark.crl(at=NOW - timedelta(days=60))
    assert words(milan, milan.report(), crl=crl) == {"validity-period"}
    assert "revocation" in words(milan, milan.report(), {"require_revocation_status": True}, crl=crl)


def test_a_crl_of_somebody_else_is_no_crl(milan):
    crl = AmdKeys("Milan").ark.crl()
    assert words(milan, milan.report(), {"require_revocation_status": True}, crl=crl) == {"revocation"}
    crl = amd_keys("Genoa").ark.crl()
    assert words(milan, milan.report(), {"require_revocation_status": True}, crl=crl) == {"revocation"}


# -- the guest, the TCB and the platform ---------------------------------------------


@pytest.mark.parametrize(
    ("changes", "table", "word"),
    [
        ({"policy": 0xB0000}, {"allow_debug": True}, "debug"),
        ({"policy": 0x70000}, {"allow_migration": True}, "migration"),
        ({"vmpl": 1}, {"max_vmpl": 1}, "vmpl"),
        ({"vmpl": 3}, {"max_vmpl": 3}, "vmpl"),
    ],
)
def test_what_the_default_policy_refuses_a_policy_may_allow(milan, changes, table, word):
    assert words(milan, milan.report(**changes)) == {word}
    assert words(milan, milan.report(**changes), table) == set()


def test_a_report_that_the_host_asked_for_speaks_for_no_guest(milan):
    assert words(milan, milan.report(vmpl=0xFFFFFFFF), {"max_vmpl": 3}) == {"vmpl"}


@pytest.mark.parametrize(
    ("good", "bad", "changes", "word"),
    [
        ({"allow_smt": True}, {"allow_smt": False}, {}, "policy-bits"),
        ({"min_guest_svn": 3}, {"min_guest_svn": 4}, {}, "tcb"),
        ({"min_tcb": {"snp": 20}}, {"min_tcb": {"snp": 21}}, {}, "tcb"),
        ({"min_committed_tcb": {"microcode": 200}}, {"min_committed_tcb": {"microcode": 201}}, {}, "tcb"),
        ({"min_launch_tcb": {"bootloader": 7}}, {"min_launch_tcb": {"bootloader": 8}}, {}, "tcb"),
        ({"min_firmware": "1.55.40"}, {"min_firmware": "1.55.41"}, {}, "tcb"),
        ({"min_firmware": "1.9.99"}, {"min_firmware": "2.0.0"}, {}, "tcb"),
        ({"require_alias_check": False}, {"require_alias_check": True}, {"platform_info": 5}, "policy-bits"),
        ({"require_ciphertext_hiding": False}, {"require_ciphertext_hiding": True}, {}, "policy-bits"),
        ({"require_author_key": False}, {"require_author_key": True}, {}, "policy-bits"),
        ({"products": ["Milan"]}, {"products": ["Genoa"]}, {}, "identity"),
        ({"measurements": ["22" * 48]}, {"measurements": ["23" * 48]}, {}, "measurement"),
        ({"measurements": ["22" * 48]}, {"measurements": []}, {}, "measurement"),
        ({"host_data": ["33" * 32]}, {"host_data": ["00" * 32]}, {}, "measurement"),
        ({"id_key_digests": ["00" * 48]}, {"id_key_digests": []}, {}, "measurement"),
        ({"author_key_digests": ["00" * 48]}, {"author_key_digests": ["01" * 48]}, {}, "measurement"),
        ({"family_ids": ["00" * 16]}, {"family_ids": ["01" * 16]}, {}, "identity"),
        ({"image_ids": ["00" * 16]}, {"image_ids": ["01" * 16]}, {}, "identity"),
        ({"chip_ids": [bytes(range(1, 65)).hex()]}, {"chip_ids": ["00" * 64]}, {}, "identity"),
    ],
)
def test_each_policy_key_decides(milan, good, bad, changes, word):
    report = milan.report(**changes)
    assert words(milan, report, good) == set()
    assert words(milan, report, bad) == {word}


def test_ciphertext_hiding_and_alias_check_are_read_from_platform_info(milan):
    report = milan.report(platform_info=0x30)
    assert words(milan, report, {"require_alias_check": True, "require_ciphertext_hiding": True}) == set()


def test_a_security_policy_has_to_hash_to_host_data(milan):
    text = b"package policy"
    report = milan.report(host_data=hashlib.sha256(text).digest())
    assert words(milan, report, security_policy=text) == set()
    assert words(milan, report, security_policy=text + b" ") == {"measurement"}


@pytest.mark.parametrize(
    "table",
    [{"min_tcb": {"ucode": 1}}, {"min_tcb": {"snp": 256}}, {"measurements": ["22"]}, {"measurements": ["ZZ" * 48]},
     {"max_vmpl": 4}, {"min_firmware": "1.55"}, {"min_firmware": "1.55.999"}, {"allow_debug": 1}, {"unknown": True}],
)  # fmt: skip
def test_a_policy_that_cannot_be_meant_is_an_error(table):
    with pytest.raises(MalformedInput):
        SnpVerifier().policy(Fields(table, where="snp"))


def test_every_failed_check_says_what_to_do_next(milan):
    verifier = SnpVerifier(issuers=milan.line.issuers)
    table = {"measurements": [], "min_tcb": {"snp": 99}, "require_alias_check": True, "min_firmware": "9.9.9"}
    policy, checks = verifier.policy(Fields(table, where="snp")), Checklist()
    report = milan.report(policy=0xF0000, vmpl=2, platform_info=1)
    claims = verifier.verify(evidence_of(report), Endorsements({"vcek": milan.certificate()}), NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    assert len(checks.failed) == 7
    assert all(check.expected and check.found and check.source and check.hint for check in checks.failed)
    assert all(check.source for check in checks.all)


# -- signature and format --------------------------------------------------------------


def test_a_report_without_a_signing_key_is_refused(milan):
    assert words(milan, milan.report(flags=7 << 2)) == {"signature"}


def test_another_signature_algorithm_is_refused(milan):
    assert words(milan, milan.report(signature_algorithm=2)) == {"algorithm", "signature"}


def test_a_signature_number_above_the_curve_is_no_signature(milan):
    report = milan.report()
    assert words(milan, replace(report, r=report.r[:48] + b"\1" + bytes(23))) == {"signature"}
    assert words(milan, replace(report, r=bytes(72), s=bytes(72))) == {"signature"}


def test_nothing_is_read_out_of_a_report_whose_signature_is_wrong(milan):
    assert words(milan, replace(milan.report(), policy=0xB0000)) == {"signature"}


RESERVED = {
    "flags": 0x48, "offset 0x4c": 0x4C, "after CPUID": 0x18B, "after the current firmware": 0x1EB,
    "after the committed firmware": 0x1EF, "offset 0x208": 0x208, "the last reserved signed byte": 0x29F,
    "after the signature": 0x330, "the last byte": 1183,
}  # fmt: skip


@pytest.mark.parametrize("at", RESERVED.values(), ids=RESERVED)
def test_a_reserved_byte_that_is_not_zero_is_refused_though_it_was_signed(milan, at):
    octets = bytearray(milan.report().serialise())
    octets[at] |= 0x80
    with pytest.raises(EvidenceMalformed):
        words(milan, milan.signed_octets(bytes(octets)))


@pytest.mark.parametrize(
    "changes",
    [{"version": 1}, {"version": 6}, {"policy": 0x10000}, {"policy": 0x30000 | 1 << 26}, {"flags": 2 << 2},
     {"version": 2}, {"version": 4}, {"current_tcb": b"\1" * 8}, {"launch_tcb": b"\0\0\1\0\0\0\0\0"}],
)  # fmt: skip
def test_a_field_that_the_abi_rules_out_is_refused(milan, changes):
    with pytest.raises(EvidenceMalformed):
        words(milan, milan.report(**changes))


@pytest.mark.parametrize("size", [0, 1, 1183, 1185, 2368])
def test_a_report_of_another_length_is_refused(milan, size):
    octets = (milan.report().serialise() * 2)[:size]
    with pytest.raises(EvidenceMalformed, match="1184"):
        words(milan, octets)


@given(st.binary(min_size=1184, max_size=1184))
@settings(max_examples=200)
def test_any_bytes_parse_exactly_or_are_refused(octets):
    with contextlib.suppress(EvidenceMalformed):
        assert SnpReport.parse(octets).serialise() == octets


@given(st.integers(0, 1183), st.integers(0, 7))
@settings(max_examples=300)
def test_a_report_with_one_bit_flipped_still_parses_exactly_or_is_refused(at, bit):
    octets = bytearray(amd_keys("Genoa").chip().report().serialise())
    octets[at] ^= 1 << bit
    try:
        report = SnpReport.parse(bytes(octets))
    except EvidenceMalformed:
        return
    assert report.serialise() == bytes(octets)


# -- bodies --------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_the_protocols_object_gives_the_exact_bytes_back(product):
    report = amd_keys(product).chip().report()
    assert from_serde(to_serde(report)) == report.serialise()


def test_the_protocols_body_is_accepted_with_the_chain_it_carries(milan):
    chain = [{"cert_type": "ARK", "data": [1]}, {"cert_type": "VCEK", "data": list(milan.certificate())}]
    body = {"attestation_report": to_serde(milan.report()), "cert_chain": chain}
    verifier, checks = SnpVerifier(issuers=milan.line.issuers), Checklist()
    policy = verifier.policy(Fields({}, where="snp"))
    claims = verifier.verify(Evidence("snp", body), Endorsements(), NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    assert checks.failed == ()


def test_a_certificate_from_outside_stands_before_one_that_came_with_the_evidence(milan):
    chain = [{"cert_type": "VCEK", "data": list(b"rubbish")}]
    body = {"attestation_report": to_serde(milan.report()), "cert_chain": chain}
    assert appraised(milan, Evidence("snp", body))[1] == set()


def spoilt_bodies():
    report = amd_keys("Milan").chip().report()
    good = to_serde(report)
    yield {}
    yield {"report": b64(report.serialise()), "more": 1}
    yield {"report": report.serialise().hex()}
    yield {"attestation_report": good, "cert_chain": {}}
    yield {"attestation_report": good, "cert_chain": [{"cert_type": "VCEK", "data": [256]}]}
    yield {"attestation_report": good, "cert_chain": [{"cert_type": "VCEK", "data": []}] * 2}
    yield {"attestation_report": good | {"more": 1}, "cert_chain": None}
    yield {"attestation_report": good | {"vmpl": -1}, "cert_chain": None}
    yield {"attestation_report": good | {"chip_id": [0] * 63}, "cert_chain": None}
    yield {"attestation_report": good | {"measurement": [True] * 48}, "cert_chain": None}
    yield {"attestation_report": good | {"reported_tcb": {"bootloader": 1}}, "cert_chain": None}
    yield {"attestation_report": {name: each for name, each in good.items() if name != "policy"}, "cert_chain": None}


@pytest.mark.parametrize("body", list(spoilt_bodies()), ids=range(12))
def test_a_body_of_another_form_is_refused(milan, body):
    with pytest.raises(EvidenceMalformed):
        appraised(milan, Evidence("snp", body))
