"""The Azure attester on a software TPM laid out as the paravisor lays out its own, and the verifier after it."""

from __future__ import annotations

import json

import pytest
from doubles.amd_keys import NOW, amd_keys
from doubles.azure_machine import AzureMachine
from strongroom.encoding import Fields
from strongroom.errors import AttesterUnavailable
from strongroom.evidence.azure import AzureSnpVerifier
from strongroom.evidence.types import Checklist, Endorsements, Evidence

pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
from strongroom.attest.azure import AzureSnpAttester, AzureTdxAttester, HttpMetadata, missing_snp, missing_tdx

DIGEST = bytes(range(48))
VCEK = "/metadata/THIM/amd/certification"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with AzureMachine(tmp_path_factory.mktemp("azure") / "machine") as machine:
        yield machine


@pytest.fixture
def metadata(machine):
    answers = dict(machine.answers)
    with machine.metadata() as base:
        yield HttpMetadata(base)
    machine.answers = answers


def failed(evidence, table=None):
    verifier, checks = AzureSnpVerifier(issuers=amd_keys("Milan").issuers), Checklist()
    policy = verifier.policy(Fields(table or {}, where="az-snp-vtpm"))
    claims = verifier.verify(evidence, Endorsements(), NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, {str(check.word) for check in checks.failed}


def test_a_guests_evidence_is_accepted_as_it_travels(machine, metadata):
    with AzureSnpAttester(machine.tpm.tcti, metadata=metadata) as attester:
        evidence = attester.evidence(DIGEST)
    claims, words = failed(Evidence("az-snp-vtpm", json.loads(json.dumps(dict(evidence.body)))))
    assert words == set()
    assert claims.report_data == DIGEST
    assert claims["secure_boot"] is True


def test_each_call_quotes_its_own_digest(machine, metadata):
    with AzureSnpAttester(machine.tpm.tcti, metadata=metadata) as attester:
        for number in range(3):
            claims, words = failed(attester.evidence(bytes((number,)) * 64))
            assert (claims.report_data, words) == (bytes((number,)) * 48, set())


@pytest.mark.parametrize("size", [0, 31, 65])
def test_report_data_of_another_size_is_refused(machine, metadata, size):
    with (
        AzureSnpAttester(machine.tpm.tcti, metadata=metadata) as attester,
        pytest.raises(AttesterUnavailable, match="report data"),
    ):
        attester.evidence(bytes(size))


@pytest.mark.parametrize(
    ("answer", "said"),
    [((500, b""), "status 500"), ((200, b"{"), "odd"), ((200, b"{}"), "odd"), ((200, b'{"vcekCert": "x"}'), "odd"),
     ((200, b" " * (1 << 19)), "status 200")],
)  # fmt: skip
def test_a_metadata_service_that_answers_nonsense_is_an_error(machine, metadata, answer, said):
    machine.answers[VCEK] = answer
    with (
        AzureSnpAttester(machine.tpm.tcti, metadata=metadata) as attester,
        pytest.raises(AttesterUnavailable, match=said),
    ):
        attester.evidence(DIGEST)


def test_a_metadata_service_that_is_not_there_is_an_error(machine):
    with (
        AzureSnpAttester(machine.tpm.tcti, metadata=HttpMetadata("http://127.0.0.1:9")) as attester,
        pytest.raises(AttesterUnavailable, match="no answer"),
    ):
        attester.evidence(DIGEST)


def test_a_vcek_of_another_chip_is_found_by_the_verifier(machine, metadata):
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    other = x509.load_der_x509_certificate(amd_keys("Milan").chip(hwid=b"\7" * 64).certificate())
    machine.answers[VCEK] = (200, json.dumps({"vcekCert": other.public_bytes(Encoding.PEM).decode()}).encode())
    with AzureSnpAttester(machine.tpm.tcti, metadata=metadata) as attester:
        assert failed(attester.evidence(DIGEST))[1] == {"signature", "identity"}


def test_an_snp_guest_cannot_attest_as_a_tdx_guest(machine, metadata):
    with (
        AzureTdxAttester(machine.tpm.tcti, metadata=metadata) as attester,
        pytest.raises(AttesterUnavailable, match="type 2, not 4"),
    ):
        attester.evidence(DIGEST)


def test_missing_tells_the_two_kinds_of_guest_apart(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("TPM2TOOLS_TCTI", machine.tpm.tcti)
    assert missing_snp() == ""
    assert "type 2, not 4" in missing_tdx()
    monkeypatch.setenv("TPM2TOOLS_TCTI", "device:/nothing")
    assert "no Azure paravisor" in missing_snp()


def test_a_tpm_without_a_paravisor_has_no_key_of_it(tmp_path):
    from doubles.software_tpm import SoftwareTpm

    with SoftwareTpm(tmp_path / "plain") as tpm, pytest.raises(AttesterUnavailable, match="paravisor"):
        AzureSnpAttester(tpm.tcti)


def test_a_td_quote_comes_from_the_hosts_quoting_service_over_the_tdreport(machine, shared_evidence):
    """A capture of a real guest: its HCL report, and the quote that Azure's service made for it."""
    from strongroom.encoding import b64url
    from strongroom.evidence.azure_hcl import HclReport

    folder = shared_evidence / "az-tdx-vtpm" / "spr"
    hcl, quote = HclReport.parse((folder / "hcl_report.bin").read_bytes()), (folder / "quote.bin").read_bytes()
    with machine.metadata() as base, AzureTdxAttester(machine.tpm.tcti, metadata=HttpMetadata(base)) as attester:
        machine.answers["/acc/tdquote"] = (200, json.dumps({"quote": b64url(quote) + "=="}).encode())
        assert attester._added(hcl) == {"td_quote": quote}
        assert json.loads(machine.asked[-1][1]) == {"report": b64url((folder / "tdreport.bin").read_bytes())}
        with pytest.raises(AttesterUnavailable, match="quoting service"):
            attester._added(machine.guest.hcl())


def test_init_data_goes_into_pcr_8_of_the_virtual_tpm_and_a_policy_finds_it_there(machine, metadata):
    """Last in this file: the register keeps it until the machine boots again."""
    from strongroom.errors import EvidenceRefused
    from strongroom.evidence.init_data import InitData
    from strongroom.evidence.judge import judge
    from strongroom.evidence.policy import Policy
    from strongroom.launch.roots import bind_init_data, check_init_data

    data = InitData.parse('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"strongroom.toml" = "x"\n')
    verifiers = {"az-snp-vtpm": AzureSnpVerifier(issuers=amd_keys("Milan").issuers)}

    def judged(evidence, digest):
        policy = Policy.parse(f'name = "x"\ninit_data = ["{digest}"]\n[az-snp-vtpm]\n', verifiers)
        return judge(evidence, binding=DIGEST, endorsements=Endorsements(), policy=policy, now=NOW, verifiers=verifiers)

    with AzureSnpAttester(machine.tpm.tcti, metadata=metadata) as attester:
        assert check_init_data(data, attester, {}) == "PCR 8"
        with pytest.raises(EvidenceRefused, match=r"az-snp-vtpm\.init-data"):
            judged(attester.evidence(DIGEST), data.digest.hex())
        bind_init_data(data, attester)
        verdict = judged(attester.evidence(DIGEST), data.digest.hex())
    assert str(verdict.claims.values["init_data"].provenance) == "hardware"
