"""The TPM attester against a real software TPM: EK certificate, AK, credential, quote, launch log, verdict."""

from __future__ import annotations

import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from doubles.software_tpm import SoftwareTpm
from strongroom.encoding import Fields, b64, unb64
from strongroom.errors import AttesterUnavailable, EvidenceRefused, MalformedInput
from strongroom.evidence.tpm import TpmChallenge, TpmVerifier
from strongroom.evidence.tpm_credential import Challenge, make_credential
from strongroom.evidence.tpm_event_log import LAUNCH_PCR, LaunchEvent
from strongroom.evidence.tpm_evidence import TpmEvidence
from strongroom.evidence.tpm_structures import TpmPublic
from strongroom.evidence.types import Checklist, Endorsements, Evidence

tpm2_pytss = pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
from strongroom.attest.tpm import TpmAttester, read_launch_log  # noqa: E402

DIGEST = bytes(range(48))


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    with SoftwareTpm(tmp_path_factory.mktemp("tpm") / "machine") as machine:
        yield machine


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    return SoftwareTpm(tmp_path_factory.mktemp("factory") / "machine")


@pytest.fixture
def fresh(factory, tmp_path):
    """A TPM of another maker, of this test alone: for what changes its registers."""
    with SoftwareTpm(tmp_path / "fresh", like=factory) as machine:
        yield machine


def attester(tpm, folder, **settings):
    return TpmAttester(tpm.tcti, event_log=folder / "no-event-log", launch_log=folder / "launch.json", **settings)


def appraised(evidence, table, verifier=None):
    """(claims, words that failed) under the ``[tpm]`` table."""
    verifier = verifier or TpmVerifier()
    policy, checks = verifier.policy(Fields(table, where="tpm")), Checklist()
    claims = verifier.verify(evidence, Endorsements(), datetime.now(UTC), policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, {str(check.word) for check in checks.failed}


def activated(tpm, attester):
    """(verifier of the session, evidence): the whole exchange of docs/attestation/tpm.md."""
    challenge = Challenge.announced(attester.announce())
    attester.respond(challenge.credential.serialise())
    evidence = attester.evidence(DIGEST)
    return TpmChallenge(challenge).verifier(evidence), evidence


def by_activation(tpm, **more):
    return {"ak_trust": "activated", "ek_roots": tpm.roots, **more}


@pytest.mark.parametrize("ak", ["rsa", "ecc"])
def test_an_activated_key_of_a_certified_tpm_is_accepted(tpm, tmp_path, ak):
    with attester(tpm, tmp_path, ak=ak) as mine:
        verifier, evidence = activated(tpm, mine)
    claims, failed = appraised(evidence, by_activation(tpm), verifier)
    assert failed == set()
    assert claims.report_data == DIGEST[:32]
    assert claims["ek_key"] == claims.device_id


def test_json_carries_evidence_announcement_and_challenge(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        challenge = Challenge.announced(json.loads(json.dumps(mine.announce())))
        mine.respond(json.loads(json.dumps(challenge.credential.serialise())))
        body = json.loads(json.dumps(dict(mine.evidence(DIGEST).body)))
    evidence = Evidence("tpm", body)
    assert TpmEvidence.parse(body).serialise() == body
    assert appraised(evidence, by_activation(tpm), TpmChallenge(challenge).verifier(evidence))[1] == set()


def test_without_an_activation_a_policy_that_asks_for_one_refuses(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        evidence = mine.evidence(DIGEST)
    assert appraised(evidence, by_activation(tpm))[1] == {"binding"}


def test_an_answer_from_another_session_is_refused(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        _, evidence = activated(tpm, mine)
        other = Challenge.announced(mine.announce())
    with pytest.raises(EvidenceRefused, match="not activated"):
        TpmChallenge(other).verifier(evidence)


def test_an_answer_does_not_fit_another_quote(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        challenge = Challenge.announced(mine.announce())
        mine.respond(challenge.credential.serialise())
        answered, later = TpmEvidence.parse(mine.evidence(DIGEST).body), TpmEvidence.parse(mine.evidence(DIGEST).body)
    moved = replace(later, activation=answered.activation)
    with pytest.raises(EvidenceRefused):
        TpmChallenge(challenge).verifier(Evidence("tpm", moved.serialise()))


def test_an_answer_is_given_once(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        activated(tpm, mine)
        assert "activation" not in mine.evidence(DIGEST).body


def test_evidence_for_somebody_else_meanwhile_does_not_use_the_answer_up(tpm, tmp_path):
    """A keeper quotes for a client's nonce in one thread while another is in a handshake with the broker."""
    with attester(tpm, tmp_path) as mine, ThreadPoolExecutor(1) as another:
        challenge = Challenge.announced(mine.announce())
        mine.respond(challenge.credential.serialise())
        assert "activation" not in another.submit(mine.evidence, DIGEST).result().body
        assert "activation" in mine.evidence(DIGEST).body


def test_a_software_key_beside_a_real_ek_certificate_cannot_be_activated(tpm, tmp_path):
    """The attack that activate-credential is for: the AK is not in the TPM whose EK is shown."""
    with attester(tpm, tmp_path) as mine, attester(tpm, tmp_path, ak="ecc") as other:
        announced = mine.announce() | {"ak_pub": other.announce()["ak_pub"]}
        challenge = Challenge.announced(announced)
        with pytest.raises(AttesterUnavailable, match="activate"):
            mine.respond(challenge.credential.serialise())


def test_an_activation_of_one_key_does_not_serve_another(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine, attester(tpm, tmp_path, ak="ecc") as other:
        verifier, _ = activated(tpm, mine)
        evidence = other.evidence(DIGEST)
    assert "binding" in appraised(evidence, by_activation(tpm), verifier)[1]


def test_an_ek_of_another_maker_is_refused(tpm, fresh, tmp_path):
    with attester(tpm, tmp_path) as mine:
        verifier, evidence = activated(tpm, mine)
    assert appraised(evidence, by_activation(fresh), verifier)[1] == {"chain"}


def test_a_pinned_key_is_accepted_and_stays_the_same_over_a_reboot(fresh, tmp_path):
    with attester(fresh, tmp_path) as mine:
        name = mine.ak_name
    fresh.reboot()
    with attester(fresh, tmp_path) as mine:
        evidence = mine.evidence(DIGEST)
    table = {"ak_trust": "pinned", "pinned_aks": [name.hex()], "ek_roots": fresh.roots}
    assert appraised(evidence, table)[1] == set()
    assert appraised(evidence, table | {"pinned_aks": ["00" * 34]})[1] == {"identity"}
    assert appraised(evidence, table | {"pinned_aks": []})[1] == {"identity"}


def test_a_tpm_without_ak_certificate_fails_the_default_policy(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        evidence = mine.evidence(DIGEST)
    assert appraised(evidence, {"ek_roots": tpm.roots})[1] == {"collateral-missing"}


def test_the_protocols_own_form_is_read_back(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        evidence = mine.protocol_evidence(DIGEST)
    pin = TpmEvidence.parse(evidence.body).ak_spki
    assert pin is not None
    import hashlib

    claims, failed = appraised(evidence, {"ak_trust": "pinned", "pinned_aks": [hashlib.sha256(pin).hexdigest()]})
    assert failed == set()
    assert claims.report_data == DIGEST[:32]


def test_what_launch_extends_is_a_claim_with_the_provenance_of_a_log(fresh, tmp_path):
    digest = secrets.token_bytes(32)
    with attester(fresh, tmp_path) as mine:
        mine.extend(digest, "configuration")
        mine.extend(bytes(32), "admitted")
        verifier, evidence = activated(fresh, mine)
    claims, failed = appraised(evidence, by_activation(fresh, launch={"configuration": [digest.hex()]}), verifier)
    assert failed == set()
    assert claims.values["launch.configuration"].value == digest.hex()
    assert claims.values["launch.configuration"].provenance == "event-log"


def test_another_configuration_than_the_policys_is_refused(fresh, tmp_path):
    with attester(fresh, tmp_path) as mine:
        mine.extend(bytes(32), "configuration")
        verifier, evidence = activated(fresh, mine)
    table = by_activation(fresh, launch={"configuration": ["11" * 32]})
    assert appraised(evidence, table, verifier)[1] == {"measurement"}
    assert appraised(evidence, by_activation(fresh, launch={"configuration": []}), verifier)[1] == {"measurement"}


def test_a_second_configuration_cannot_be_extended_in_one_boot(fresh, tmp_path):
    with attester(fresh, tmp_path) as mine:
        mine.extend(bytes(32), "configuration")
        with pytest.raises(AttesterUnavailable, match="already"):
            mine.extend(b"\1" * 32, "configuration")


def rewritten(evidence, *events):
    body = TpmEvidence.parse(evidence.body)
    return Evidence("tpm", replace(body, launch_log=events).serialise())


def test_a_log_that_claims_another_digest_does_not_replay(fresh, tmp_path):
    with attester(fresh, tmp_path) as mine:
        mine.extend(bytes(32), "configuration")
        verifier, evidence = activated(fresh, mine)
    lie = rewritten(evidence, LaunchEvent(LAUNCH_PCR, "configuration", b"\1" * 32))
    claims, failed = appraised(lie, by_activation(fresh), verifier)
    assert failed == {"event-log"}
    assert "launch.configuration" not in claims.values


def test_a_log_that_names_the_same_event_twice_is_refused(fresh, tmp_path):
    """Who comes after launch may extend again; the second word for the same thing must not count."""
    with attester(fresh, tmp_path) as mine:
        mine.extend(b"\1" * 32, "configuration")
        (tmp_path / "launch.json").unlink()
        mine.extend(b"\2" * 32, "configuration")
        verifier, evidence = activated(fresh, mine)
    first, second = (LaunchEvent(LAUNCH_PCR, "configuration", bytes((n,)) * 32) for n in (1, 2))
    claims, failed = appraised(rewritten(evidence, first, second), by_activation(fresh), verifier)
    assert failed == {"event-log"}
    assert "launch.configuration" not in claims.values


def test_events_in_another_register_than_the_policys_are_refused(fresh, tmp_path):
    with attester(fresh, tmp_path) as mine:
        mine.extend(bytes(32), "configuration", pcr=13)
        verifier, evidence = activated(fresh, mine)
    assert appraised(evidence, by_activation(fresh), verifier)[1] == {"event-log"}
    assert appraised(evidence, by_activation(fresh, launch_pcr=13), verifier)[1] == set()


def test_a_damaged_launch_log_is_an_error_and_not_an_empty_one(tmp_path):
    (tmp_path / "launch.json").write_text("[{")
    with pytest.raises(AttesterUnavailable, match="launch log"):
        read_launch_log(tmp_path / "launch.json")


def test_an_expected_register_value_decides(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        verifier, evidence = activated(tpm, mine)
    good = by_activation(tpm, pcrs={"9": ["00" * 32]})
    assert appraised(evidence, good, verifier)[1] == set()
    assert appraised(evidence, by_activation(tpm, pcrs={"9": ["11" * 32]}), verifier)[1] == {"measurement"}
    assert appraised(evidence, by_activation(tpm, pcrs={"9": []}), verifier)[1] == {"measurement"}


def test_a_register_that_was_not_quoted_satisfies_nothing(tpm, tmp_path):
    with attester(tpm, tmp_path, pcrs=[0, 1, 2]) as mine:
        verifier, evidence = activated(tpm, mine)
    assert appraised(evidence, by_activation(tpm, pcrs={"9": ["00" * 32]}), verifier)[1] == {"measurement"}


def test_two_attesters_in_threads_do_not_disturb_each_other(tpm, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with attester(tpm, tmp_path, ak="ecc") as mine, ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: mine.evidence(bytes((number,)) * 32), range(8)))
        table = {"ak_trust": "pinned", "pinned_aks": [mine.ak_name.hex()], "ek_roots": tpm.roots}
    found = [appraised(each, table) for each in made]
    assert [failed for _, failed in found] == [set()] * 8
    assert [claims.report_data for claims, _ in found] == [bytes((number,)) * 32 for number in range(8)]


def test_a_closed_attester_says_so(tpm, tmp_path):
    mine = attester(tpm, tmp_path)
    mine.close()
    with pytest.raises(AttesterUnavailable, match="closed"):
        mine.evidence(DIGEST)


def test_no_tpm_is_a_clear_error(tmp_path):
    with pytest.raises(AttesterUnavailable, match="open the TPM") as refused:
        TpmAttester(f"device:{tmp_path}/nothing")
    assert refused.value.hint


@pytest.mark.parametrize("size", [0, 31, 65])
def test_report_data_of_another_size_is_refused(tpm, tmp_path, size):
    with attester(tpm, tmp_path) as mine, pytest.raises(AttesterUnavailable, match="report data"):
        mine.evidence(bytes(size))


def test_a_credential_of_another_form_is_refused(tpm, tmp_path):
    with attester(tpm, tmp_path) as mine:
        good = Challenge.announced(mine.announce()).credential.serialise()
        for bad in ({}, good | {"more": ""}, {**good, "credential_blob": "x"}):
            with pytest.raises(MalformedInput):
                mine.respond(bad)
        broken = bytearray(unb64(good["credential_blob"]))
        broken[10] ^= 1
        with pytest.raises(AttesterUnavailable):
            mine.respond({**good, "credential_blob": b64(bytes(broken))})
        for member in good:
            for cut in (b"", b"\xff\xff", b"\xff\xffabc"):
                with pytest.raises(AttesterUnavailable, match="read the broker's credential"):
                    mine.respond({**good, member: b64(cut)})


@pytest.mark.parametrize(
    ("template", "policy_free"),
    [("rsa2048:aes128cfb", 16), ("ecc256:aes128cfb", 16), ("ecc384:aes256cfb", 32), ("rsa3072:aes256cfb", 32)],
)
def test_a_credential_is_activated_by_a_real_tpm_for_every_kind_of_ek(tpm, tmp_path, template, policy_free):
    """A storage key of each EK kind, with a password instead of a policy: the same credential protection."""
    from tpm2_pytss import (
        ESYS_TR,
        TPM2B_ENCRYPTED_SECRET,
        TPM2B_ID_OBJECT,
        TPM2B_PUBLIC,
        TPMA_OBJECT,
        TPMT_PUBLIC,
        TSS2_Exception,
    )  # fmt: skip

    attributes = TPMA_OBJECT.parse("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt")
    name_alg = "sha384" if policy_free == 32 else "sha256"
    public = TPMT_PUBLIC.parse(template, nameAlg=name_alg, objectAttributes=attributes)
    with attester(tpm, tmp_path) as mine:
        esapi = mine._tpm.esapi
        try:
            handle, made, *_ = esapi.create_primary(None, TPM2B_PUBLIC(public), primary_handle=ESYS_TR.OWNER)
        except TSS2_Exception:
            if template.startswith("rsa3072"):
                pytest.xfail("this swtpm makes no RSA keys of 3072 bits")
            raise
        ek = TpmPublic.parse(bytes(made.publicArea.marshal())).public_key
        secret = secrets.token_bytes(32)
        credential = make_credential(ek, mine.ak_name, secret)
        blob, _ = TPM2B_ID_OBJECT.unmarshal(credential.blob)
        encrypted, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(credential.encrypted_secret)
        recovered = esapi.activate_credential(
            mine._ak, handle, blob, encrypted, session1=ESYS_TR.PASSWORD, session2=ESYS_TR.PASSWORD
        )
        esapi.flush_context(handle)
    assert bytes(recovered) == secret


def test_missing_names_what_a_machine_lacks(tmp_path):
    from strongroom.attest.tpm import missing

    assert "no TPM" in missing(tmp_path / "tpmrm0")
    (tmp_path / "there").touch()
    assert missing(tmp_path / "there") == ""


@pytest.mark.parametrize("named", ["/tmp/mine.so", "cmd:sh -c id", "pcap:device:/dev/tpmrm0", "libtss2-tcti-cmd.so.0"])
def test_a_variable_cannot_name_a_library_or_a_command(monkeypatch, named):
    from strongroom.attest.tpm import missing
    from strongroom.attest.tpm_connection import TCTI_VARIABLE

    monkeypatch.setenv(TCTI_VARIABLE, named)
    with pytest.raises(AttesterUnavailable, match="a library or a command") as refused:
        TpmAttester()
    assert "swtpm" in refused.value.hint
    assert "a library or a command" in missing()


def test_a_variable_names_another_tpm(monkeypatch, tpm, tmp_path):
    from strongroom.attest.tpm import missing
    from strongroom.attest.tpm_connection import TCTI_VARIABLE

    monkeypatch.setenv(TCTI_VARIABLE, tpm.tcti)
    assert missing() == ""
    with attester(tpm, tmp_path) as named, TpmAttester(launch_log=tmp_path / "none") as found:
        assert found.ak_name == named.ak_name


def test_whoever_may_not_write_to_run_keeps_the_launch_log_in_memory(monkeypatch):
    import strongroom.attest.tpm as module

    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    mine = module.launch_log_of("swtpm:port=1")
    assert str(mine.parent) == "/dev/shm/strongroom-launch-4711"
    assert mine.name != module.launch_log_of("swtpm:port=2").name


def test_a_folder_that_another_user_made_holds_no_launch_log_of_ours(monkeypatch, tmp_path):
    import strongroom.attest.tpm as module

    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    if os.stat(tmp_path).st_uid == 0:
        os.chown(tmp_path, 4711, -1)
    with pytest.raises(AttesterUnavailable, match="another user"):
        module.write_launch_log(tmp_path / "log.json", ())


def test_what_is_measured_on_a_machine_is_a_policy_for_it(fresh, tmp_path):
    from strongroom.evidence.policy import Policy
    from strongroom.evidence.reference import reference_policy

    verifiers = {"tpm": TpmVerifier()}
    with attester(fresh, tmp_path) as mine:
        mine.extend(DIGEST[:32], "configuration")
        evidence = mine.evidence(DIGEST)
    measured = reference_policy(evidence, verifiers, name="machine")
    assert measured.values["pinned_aks"] == [mine.ak_name.hex()]
    assert measured.values["launch"] == {"configuration": [DIGEST[:32].hex()]}
    assert any("ek_roots" in note for note in measured.notes)
    assert Policy.parse(measured.toml(), verifiers).tees["tpm"].launch
    assert appraised(evidence, {**measured.values, "ek_roots": fresh.roots})[1] == set()
    assert appraised(evidence, {**measured.values, "ek_roots": fresh.roots, "pcrs": {"0": "11" * 32}})[1] == {
        "measurement"
    }
