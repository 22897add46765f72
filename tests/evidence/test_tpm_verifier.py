"""The TPM verifier on quotes whose every part a test may spoil: keys, schemes, registers, certificates, logs."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest
from doubles.paper_tpm import (
    AK_ATTRIBUTES,
    NONCE,
    NOW,
    Maker,
    PaperTpm,
    der,
    ecc_key,
    maker,
    rsa_key,
    schemes,
    sign,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.tpm_credential import spki_of
from strongroom.evidence.tpm_event_log import EventLog
from strongroom.evidence.tpm_evidence import BankQuote, TpmEvidence
from strongroom.evidence.tpm_quote import PcrPolicy
from strongroom.evidence.tpm_structures import ECDSA, RSASSA, PcrSelection, Quote, TpmPublic, TpmSignature
from strongroom.evidence.types import Checklist, Endorsements, Evidence

TPM = PaperTpm()


def appraised(evidence, table, now=NOW, **endorsements):
    verifier, checks = TpmVerifier(), Checklist()
    policy = verifier.policy(Fields(table, where="tpm"))
    claims = verifier.verify(evidence, Endorsements(endorsements), now, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, checks


def words(evidence, table=None, **more):
    return {str(check.word) for check in appraised(evidence, pinned() if table is None else table, **more)[1].failed}


def pinned(tpm=TPM, **more):
    return {"ak_trust": "pinned", "pinned_aks": [tpm.public.name.hex()], **more}


@pytest.mark.parametrize("tpm", schemes(), ids=lambda tpm: f"{tpm.scheme:#x}-{tpm.hash_name}")
def test_a_quote_by_each_scheme_is_accepted(tpm):
    claims, checks = appraised(tpm.evidence(), pinned(tpm))
    assert checks.failed == ()
    assert claims.report_data == NONCE
    assert claims["pcrs"]["0"] == "00" * 32


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha384"])
def test_the_pcr_digest_is_by_the_hash_of_the_scheme_and_not_of_the_bank(bank, hash_name):
    tpm = PaperTpm(bank=bank, hash_name=hash_name)
    assert words(tpm.evidence(), pinned(tpm)) == set()
    if bank != hash_name:
        values = b"".join(tpm.pcrs[index] for index in range(24))
        wrong = replace(tpm.quote(), pcr_digest=hashlib.new(bank, values).digest())
        assert words(tpm.evidence(wrong), pinned(tpm)) == {"signature"}


# -- algorithms --------------------------------------------------------------------


def test_a_sha1_signature_is_refused_under_any_policy():
    tpm = PaperTpm(hash_name="sha1")
    assert words(tpm.evidence(), pinned(tpm)) == {"algorithm"}


def test_a_sha1_bank_is_refused_under_any_policy():
    tpm = PaperTpm(bank="sha1")
    assert words(tpm.evidence(), pinned(tpm, pcr_bank="sha1")) == {"algorithm"}


def test_the_strongest_bank_that_was_quoted_is_judged():
    weak, strong = PaperTpm(bank="sha1"), PaperTpm(bank="sha384")
    both = strong.body()
    both = replace(both, quotes={**weak.body().quotes, **both.quotes})
    assert words(Evidence("tpm", both.serialise())) == set()
    assert words(Evidence("tpm", both.serialise()), pinned(pcr_bank="sha256")) == {"evidence-missing"}


def test_a_short_rsa_key_is_refused():
    tpm = PaperTpm(key=rsa_key(1024))
    assert words(tpm.evidence(), pinned(tpm)) == {"algorithm"}


def test_a_signature_by_another_scheme_than_the_keys_is_refused():
    message = TPM.quote().serialise()
    other = BankQuote(message, sign(TPM.private, message, RSASSA, "sha384"), TPM.pcrs)
    assert words(TPM.evidence(quotes={"sha256": other})) == {"algorithm", "signature"}


# -- the attestation key -------------------------------------------------------------


@pytest.mark.parametrize("bit", [1 << 16, 1 << 18])
def test_a_key_that_is_not_restricted_or_cannot_sign_is_refused_even_when_pinned(bit):
    tpm = PaperTpm(attributes=AK_ATTRIBUTES & ~bit)
    assert words(tpm.evidence(), pinned(tpm)) == {"policy-bits"}


@pytest.mark.parametrize("bits", [~(1 << 1), ~(1 << 4), ~(1 << 5)])
def test_a_certified_key_was_born_in_its_tpm_and_stays_there(bits):
    tpm = PaperTpm(attributes=AK_ATTRIBUTES & bits)
    table = {"ak_roots": maker().pem}
    assert words(tpm.evidence(), table, ak_cert=der(maker().certificate(tpm.private))) == {"policy-bits"}
    assert words(TPM.evidence(), table, ak_cert=der(maker().certificate(TPM.private))) == set()


@pytest.mark.parametrize("bits", [1 << 17, 1 << 11])
def test_a_certified_key_that_also_decrypts_or_duplicates_is_refused(bits):
    tpm = PaperTpm(attributes=AK_ATTRIBUTES | bits)
    certificate = der(maker().certificate(tpm.private))
    assert words(tpm.evidence(), {"ak_roots": maker().pem}, ak_cert=certificate) == {"policy-bits"}


def test_attributes_that_the_quote_does_not_vouch_for_are_refused():
    """The certificate names the key alone: who shows better attributes than the key has is found out."""
    bad = PaperTpm(attributes=AK_ATTRIBUTES & ~(1 << 16))
    certificate = der(maker().certificate(bad.private))
    dressed = bad.evidence(ak_pub=TPM.public.serialise())
    assert words(dressed, {"ak_roots": maker().pem}, ak_cert=certificate) == {"binding"}


def test_a_name_of_another_key_is_refused():
    assert words(TPM.evidence(ak_name=TPM.public.name)) == set()
    assert words(TPM.evidence(ak_name=PaperTpm(scheme=ECDSA).public.name)) == {"binding"}


def test_two_public_parts_have_to_be_one_key():
    other = spki_of(ecc_key().public_key())
    assert words(TPM.evidence(ak_spki=spki_of(TPM.public.public_key))) == set()
    assert words(TPM.evidence(ak_spki=other)) == {"binding"}


def test_a_bare_key_can_only_be_pinned():
    bare = TPM.evidence(ak_pub=None, ak_spki=spki_of(TPM.public.public_key))
    pin = hashlib.sha256(spki_of(TPM.public.public_key)).hexdigest()
    assert words(bare, {"ak_trust": "pinned", "pinned_aks": [pin]}) == set()
    certificate = der(maker().certificate(TPM.private))
    assert words(bare, {"ak_roots": maker().pem}, ak_cert=certificate) == {"evidence-missing"}


def test_a_key_whose_name_is_by_sha1_can_be_pinned():
    public = replace(TPM.public, name_hash="sha1")
    assert len(public.name) == 22
    table = {"ak_trust": "pinned", "pinned_aks": [public.name.hex()]}
    assert words(TPM.evidence(ak_pub=public.serialise()), table) == set()
    assert words(TPM.evidence(), table) == {"identity"}


def test_without_any_key_nothing_is_believed():
    assert words(TPM.evidence(ak_pub=None)) == {"evidence-missing"}


def test_a_signature_by_another_key_is_refused():
    forged = PaperTpm(key=rsa_key(2048, 1))
    assert words(forged.evidence(ak_pub=TPM.public.serialise())) == {"signature"}


# -- certificates ----------------------------------------------------------------------


def test_a_certificate_by_another_maker_is_refused():
    stranger = der(Maker().certificate(TPM.private))
    assert words(TPM.evidence(), {"ak_roots": maker().pem}, ak_cert=stranger) == {"chain"}
    assert words(TPM.evidence(), {}, ak_cert=stranger) == {"chain"}


def test_a_certificate_of_another_key_is_refused():
    certificate = der(maker().certificate(ecc_key(1)))
    assert words(TPM.evidence(), {"ak_roots": maker().pem}, ak_cert=certificate) == {"identity"}


def test_an_expired_certificate_is_refused():
    certificate, later = der(maker().certificate(TPM.private)), NOW + timedelta(days=365 * 6)
    assert words(TPM.evidence(), {"ak_roots": maker().pem}, ak_cert=certificate, now=later) == {"validity-period"}


def test_an_intermediate_may_come_with_the_evidence():
    root = maker().pem[maker().pem.index("-----BEGIN", 5) :]
    evidence = TPM.evidence(ak_cert=der(maker().certificate(TPM.private)))
    assert words(evidence, {"ak_roots": root}) == {"chain"}
    evidence = TPM.evidence(ak_cert=der(maker().certificate(TPM.private)), certificates=(der(maker().intermediate),))
    assert words(evidence, {"ak_roots": root}) == set()


def test_a_root_that_comes_with_the_evidence_is_not_trusted():
    own = Maker()
    evidence = TPM.evidence(
        ak_cert=der(own.certificate(TPM.private)), certificates=(der(own.intermediate), der(own.root))
    )
    assert words(evidence, {"ak_roots": maker().pem}) == {"chain"}


def test_a_revoked_key_is_refused_and_a_missing_list_where_one_is_asked_for():
    certificate = maker().certificate(TPM.private)
    table = {"ak_roots": maker().pem}
    assert words(TPM.evidence(), table, ak_cert=der(certificate), crl=maker().crl(certificate)) == {"revocation"}
    assert words(TPM.evidence(), table, ak_cert=der(certificate), crl=maker().crl()) == set()
    table["require_revocation_status"] = True
    assert words(TPM.evidence(), table, ak_cert=der(certificate)) == {"revocation"}
    assert words(TPM.evidence(), table, ak_cert=der(certificate), crl=maker().crl()) == {"revocation"}
    both = {"crl": maker().crl(), "crl:root": maker().crl(by=0)}
    assert words(TPM.evidence(), table, ak_cert=der(certificate), **both) == set()
    revoked = {"crl": maker().crl(), "crl:root": maker().crl(maker().intermediate, by=0)}
    assert words(TPM.evidence(), table, ak_cert=der(certificate), **revoked) == {"revocation"}


def test_an_ek_certificate_that_is_shown_has_to_be_good():
    ek = der(maker().certificate(rsa_key(2048, 2)))
    assert words(TPM.evidence(ek_cert=ek), pinned(ek_roots=maker().pem)) == set()
    assert words(TPM.evidence(ek_cert=ek), pinned(ek_roots=maker("Other").pem)) == {"chain"}
    assert words(TPM.evidence(ek_cert=ek)) == {"collateral-missing"}


# -- the quote ---------------------------------------------------------------------------


def test_a_quote_without_a_nonce_is_refused_unless_allowed():
    tpm = PaperTpm(nonce=b"")
    assert words(tpm.evidence()) == {"nonce"}
    assert words(tpm.evidence(), pinned(allow_empty_nonce=True)) == set()


@pytest.mark.parametrize(
    ("missing", "given"),
    [("message", {"message": None}), ("signature", {"signature": None}), ("values", {"pcrs": None})],
)
def test_each_missing_part_is_named(missing, given):
    quote = replace(TPM.body().quotes["sha256"], **given)
    assert words(TPM.evidence(quotes={"sha256": quote})) == {"evidence-missing"}
    assert words(TPM.evidence(quotes={})) == {"evidence-missing"}


def test_a_quoted_register_without_its_value_is_missing():
    pcrs = {index: value for index, value in TPM.pcrs.items() if index != 7}
    quote = replace(TPM.body().quotes["sha256"], pcrs=pcrs)
    assert words(TPM.evidence(quotes={"sha256": quote})) == {"evidence-missing"}


def test_values_other_than_the_quoted_are_refused():
    quote = replace(TPM.body().quotes["sha256"], pcrs=TPM.pcrs | {7: b"\1" * 32})
    assert words(TPM.evidence(quotes={"sha256": quote})) == {"signature"}


def test_registers_that_no_quote_vouches_for_are_not_said_to_be_others():
    quote = replace(TPM.body().quotes["sha256"], pcrs=TPM.pcrs | {7: b"\1" * 32})
    assert words(TPM.evidence(quotes={"sha256": quote}), pinned(pcrs={"0": ["00" * 32]})) == {"signature"}
    assert words(TPM.evidence(quotes={}), pinned(pcrs={"0": ["00" * 32]})) == {"evidence-missing"}


def test_registers_without_values_are_a_failure_where_nothing_else_failed():
    checks = Checklist()
    PcrPolicy({0: frozenset({"00" * 32})}).appraise(None, checks, name="tpm")
    assert [str(check.word) for check in checks.failed] == ["measurement"]


def test_values_that_were_not_quoted_are_no_claims():
    tpm = PaperTpm(selected=(0, 7))
    claims, checks = appraised(tpm.evidence(), pinned())
    assert checks.failed == ()
    assert sorted(claims["pcrs"]) == ["0", "7"]


def test_a_quote_of_nothing_is_refused():
    assert words(PaperTpm(selected=()).evidence()) == {"evidence-missing"}


def test_a_quote_over_two_banks_is_refused():
    quote = TPM.quote()
    mixed = replace(quote, selections=(*quote.selections, PcrSelection("sha384", (0,))))
    assert words(TPM.evidence(mixed)) == {"signature"}


def test_something_that_was_not_made_inside_a_tpm_is_refused():
    message = b"\0" + TPM.quote().serialise()[1:]
    with pytest.raises(EvidenceMalformed, match="inside a TPM"):
        words(TPM.evidence(message))


@pytest.mark.parametrize("kind", [0x8017, 0x8014, 0x801A])
def test_another_attestation_than_a_quote_is_refused(kind):
    message = bytearray(TPM.quote().serialise())
    message[4:6] = kind.to_bytes(2, "big")
    with pytest.raises(EvidenceMalformed, match="quote"):
        words(TPM.evidence(bytes(message)))


def test_every_failed_check_says_what_to_do_next():
    tpm = PaperTpm(nonce=b"", attributes=AK_ATTRIBUTES & ~(1 << 16))
    table = {"require_event_log": True, "require_secure_boot": True, "pcrs": {"0": []}, "launch": {"configuration": []}}
    _, checks = appraised(tpm.evidence(), table)
    assert len(checks.failed) == 7
    assert all(check.expected and check.found and check.source and check.hint for check in checks.failed)
    assert all(check.source for check in checks.all)


# -- policies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        {"ak_trust": "anyone"},
        {"ak_trust": "pinned"},
        {"pinned_aks": ["00" * 34]},
        {"ak_trust": "pinned", "pinned_aks": ["00"]},
        {"ak_trust": "activated"},
        {"ak_roots": "not PEM"},
        {"ek_roots": ""},
        {"pcr_bank": "md5"},
        {"pcrs": {"24": ["00" * 32]}},
        {"pcrs": {"01": ["00" * 32]}},
        {"pcrs": {"1": ["00"]}},
        {"pcrs": {"1": [1]}},
        {"launch": {"configuration": ["00"]}},
        {"launch_pcr": 24},
        {"unknown": 1},
    ],
)
def test_a_policy_that_cannot_be_meant_is_an_error(table):
    with pytest.raises(MalformedInput):
        TpmVerifier().policy(Fields(table, where="tpm"))


@pytest.mark.parametrize("named", ["ak_roots", "ek_roots"])
def test_where_no_certificate_is_self_signed_a_chain_may_end_at_any(named):
    leaf, other = der(maker().certificate(TPM.private)), Maker()
    for each, failed in ((maker(), set()), (other, {"chain"})):
        table = {named: each.pem[: each.pem.index("-----BEGIN", 5)]}
        if named == "ek_roots":
            assert words(TPM.evidence(ek_cert=leaf), pinned(**table)) == failed
        else:
            assert words(TPM.evidence(), table, ak_cert=leaf) == failed


# -- event logs ------------------------------------------------------------------------------


def event(pcr, kind, digest, data, bank=0x000B):
    head = pcr.to_bytes(4, "little") + kind.to_bytes(4, "little") + (1).to_bytes(4, "little")
    return head + bank.to_bytes(2, "little") + digest + len(data).to_bytes(4, "little") + data


def log(*events, banks=((0x000B, 32),)):
    data = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2" + len(banks).to_bytes(4, "little")
    data += b"".join(number.to_bytes(2, "little") + size.to_bytes(2, "little") for number, size in banks) + b"\0"
    head = bytes(4) + (3).to_bytes(4, "little") + bytes(20) + len(data).to_bytes(4, "little") + data
    return head + b"".join(events)


def after(*digests, start=bytes(32)):
    for digest in digests:
        start = hashlib.sha256(start + digest).digest()
    return start


DIGEST = b"\x07" * 32


def test_a_log_that_replays_is_accepted_and_its_claims_say_so():
    tpm = PaperTpm(registers={4: after(DIGEST, DIGEST)})
    octets = log(event(4, 0x0D, DIGEST, b"grub"), event(4, 0x0D, DIGEST, b"kernel"))
    claims, checks = appraised(tpm.evidence(event_log=octets), pinned())
    assert checks.failed == ()
    assert claims.values["event_count"].provenance == "event-log"


@pytest.mark.parametrize(
    "events",
    [(event(4, 0x0D, b"\x08" * 32, b""),), (), (event(4, 0x0D, DIGEST, b""), event(5, 0x0D, DIGEST, b""))],
)
def test_a_log_that_does_not_reach_the_registers_is_refused(events):
    tpm = PaperTpm(registers={4: after(DIGEST)})
    assert words(tpm.evidence(event_log=log(*events))) == {"event-log"}


def test_a_log_of_another_bank_is_refused():
    octets = log(event(4, 0x0D, b"\x07" * 48, b"", bank=0x000C), banks=((0x000C, 48),))
    assert words(TPM.evidence(event_log=octets)) == {"event-log"}


def test_an_event_in_a_register_that_was_not_quoted_is_refused():
    tpm = PaperTpm(selected=(0, 1), registers={4: after(DIGEST)})
    _, checks = appraised(tpm.evidence(event_log=log(event(4, 0x0D, DIGEST, b""))), pinned())
    assert [(str(check.word), check.found) for check in checks.failed] == [("event-log", "PCR 4 not quoted")]


def sha1_event(pcr, kind, data=b""):
    head = pcr.to_bytes(4, "little") + kind.to_bytes(4, "little") + b"\7" * 20
    return head + len(data).to_bytes(4, "little") + data


def test_a_log_of_older_firmware_has_no_bank_that_is_judged():
    octets = sha1_event(0, 3, b"Spec ID Event00\0") + sha1_event(0, 8, b"version") + sha1_event(7, 4)
    assert words(TPM.evidence(event_log=octets)) == {"event-log"}


@pytest.mark.parametrize("octets", [sha1_event(0, 8)[:-1], sha1_event(24, 8), sha1_event(0, 8) + b"\0"], ids=range(3))
def test_a_log_of_older_firmware_is_read_to_its_end(octets):
    with pytest.raises(EvidenceMalformed):
        EventLog.parse(octets)


def test_startup_locality_sets_where_pcr_0_begins():
    locality = event(0, 3, bytes(32), b"StartupLocality\0\3")
    tpm = PaperTpm(registers={0: after(DIGEST, start=bytes(31) + b"\3")})
    assert words(tpm.evidence(event_log=log(locality, event(0, 8, DIGEST, b"")))) == set()
    assert words(tpm.evidence(event_log=log(event(0, 8, DIGEST, b"")))) == {"event-log"}
    with pytest.raises(EvidenceMalformed, match="StartupLocality"):
        words(tpm.evidence(event_log=log(event(0, 8, DIGEST, b""), locality)))


GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


def secure_boot(state, name="SecureBoot"):
    text = name.encode("utf-16-le")
    data = GLOBAL + len(name).to_bytes(8, "little") + len(state).to_bytes(8, "little") + text + state
    return event(7, 0x80000001, hashlib.sha256(data).digest(), data), hashlib.sha256(data).digest()


@pytest.mark.parametrize(("state", "on"), [(b"\1", True), (b"\0", False), (b"", False)])
def test_secure_boot_is_read_from_the_event_whose_digest_covers_it(state, on):
    entry, digest = secure_boot(state)
    evidence = PaperTpm(registers={7: after(digest)}).evidence(event_log=log(entry))
    claims, checks = appraised(evidence, pinned(require_secure_boot=True))
    assert claims["secure_boot"] is on
    assert {str(check.word) for check in checks.failed} == (set() if on else {"policy-bits"})


def test_data_that_its_digest_does_not_cover_is_not_believed():
    entry, _ = secure_boot(b"\1")
    _, real = secure_boot(b"\0")
    lie = entry.replace(hashlib.sha256(secure_boot_data(b"\1")).digest(), real)
    evidence = PaperTpm(registers={7: after(real)}).evidence(event_log=log(lie))
    claims, checks = appraised(evidence, pinned(require_secure_boot=True))
    assert "secure_boot" not in claims.values
    assert {str(check.word) for check in checks.failed} == {"policy-bits"}


def secure_boot_data(state):
    return (
        GLOBAL
        + (10).to_bytes(8, "little")
        + len(state).to_bytes(8, "little")
        + "SecureBoot".encode("utf-16-le")
        + state
    )


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        log()[:-1],
        log(banks=()),
        log(banks=((0x000B, 32), (0x000B, 32))),
        log(banks=((0x000B, 20),)),
        log() + b"\0",
        log(event(24, 1, DIGEST, b"")),
        log(event(1, 1, DIGEST, b"", bank=0x000C)),
        log(event(1, 1, DIGEST, b"")[:-1] + b"\xff"),
        b"\1" + log()[1:],
    ],
    ids=range(10),
)
def test_a_log_of_another_form_is_refused(octets):
    with pytest.raises(EvidenceMalformed):
        EventLog.parse(octets)


# -- parsers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "octets"),
    [
        (TpmPublic, TPM.public.serialise()),
        (TpmPublic, PaperTpm(scheme=ECDSA).public.serialise()),
        (Quote, TPM.quote().serialise()),
        (TpmSignature, TPM.body().quotes["sha256"].signature),
    ],
    ids=["rsa", "ecc", "quote", "signature"],
)
def test_every_cut_and_every_extension_is_refused(kind, octets):
    assert kind.parse(octets).serialise() == octets
    for size in range(len(octets)):
        with pytest.raises(EvidenceMalformed):
            kind.parse(octets[:size])
    with pytest.raises(EvidenceMalformed):
        kind.parse(octets + b"\0")


@given(st.data())
@settings(max_examples=300)
def test_a_changed_structure_parses_exactly_or_is_refused(data):
    kind, octets = data.draw(
        st.sampled_from(
            [(TpmPublic, TPM.public.serialise()), (Quote, TPM.quote().serialise()),
             (TpmSignature, TPM.body().quotes["sha256"].signature)]
        )
    )  # fmt: skip
    changed = bytearray(octets)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, min(len(changed), 80) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EvidenceMalformed):
        assert kind.parse(bytes(changed)).serialise() == bytes(changed)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_log_or_refused(octets):
    with contextlib.suppress(EvidenceMalformed):
        EventLog.parse(log() + octets)


def test_a_body_is_the_exact_inverse_of_its_parser():
    body = TPM.body(
        ak_spki=b"spki", ak_name=b"n" * 34, ak_cert=b"c", ek_cert=b"e", certificates=(b"x", b"y"), event_log=b"log",
        activation=b"a" * 32,
    )  # fmt: skip
    assert TpmEvidence.parse(body.serialise()) == body


@pytest.mark.parametrize(
    "change",
    [{"more": 1}, {"ak_pub": 1}, {"ak_pub": "*"}, {"quotes": []}, {"quotes": {"md5": {}}}, {"launch_log": {}},
     {"launch_log": [{"pcr": 24, "event": "", "digest": "00" * 32}]}, {"certificates": "x"},
     {"quotes": {"sha256": {"pcrs": {"0": "00"}}}}, {"quotes": {"sha256": {"pcrs": {"24": "00" * 32}}}},
     {"quotes": {"sha256": {"pcrs": {"9" * 5000: "00" * 32}}}}, {"quotes": {"sha256": {"pcrs": {"01": "00" * 32}}}}],
    ids=range(12),
)  # fmt: skip
def test_a_body_of_another_form_is_refused(change):
    with pytest.raises(EvidenceMalformed):
        words(Evidence("tpm", TPM.body().serialise() | change))


# -- Google Cloud ----------------------------------------------------------------------------------


def gce(table):
    from conftest import SHARED
    from evidence.snp_tpm_cases import load, try_case

    case = next(each for each in load(SHARED / "evidence", {"tpm"}) if "gce" in each.name and each.accept)
    checks, claims = try_case(replace(case, table=case.table | table))
    return claims, {str(check.word) for check in checks.failed}


def test_googles_certificate_names_the_instance(shared_evidence):
    claims, failed = gce({"gce_projects": ["google.com:wuale-gcp-testing"]})
    assert failed == set()
    assert (claims["gce_zone"], claims["gce_instance_name"]) == ("us-central1-a", "cos-test")


@pytest.mark.parametrize("table", [{"gce_projects": ["another"]}, {"gce_projects": []}, {"gce_instance_ids": ["1"]}])
def test_an_instance_of_somebody_else_is_refused(shared_evidence, table):
    assert gce(table)[1] == {"identity"}
