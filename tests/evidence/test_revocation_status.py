"""What a verdict says of revocation, for every TEE: judged, no list there is, or not judged."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.amd_keys import amd_keys
from doubles.paper_tpm import NOW as TPM_NOW
from doubles.paper_tpm import PaperTpm, der, maker, rsa_key
from doubles.tee_devices import nitro_document
from evidence import test_ear, test_nitro
from evidence.test_trustworthiness import PIN, SIMULATION, azure, cca, gpu, nitro, nvidia, sgx, simulated, snp, tdx, tpm
from strongroom.encoding import Fields, b64
from strongroom.evidence.ear import ear_claims
from strongroom.evidence.judge import judge
from strongroom.evidence.policy import Policy
from strongroom.evidence.reference import reference_policy
from strongroom.evidence.simulated import SimulatedReport, SimulatedVerifier
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.types import Checklist, Endorsements, Evidence, RevocationStatus

NITRO_NOW = test_nitro.NOW
JUDGED, NO_LIST, NOT_JUDGED = RevocationStatus.JUDGED, RevocationStatus.NO_LIST, RevocationStatus.NOT_JUDGED
ARK = amd_keys("Milan").ark
OPEN = SIMULATION | {"any_measurement": True}


def said(make, table=None, **given):
    """The status after the evidence of `make` was verified with these endorsements beside its own."""
    verifier, body, items, now = make()
    policy, checks = verifier.policy(Fields(table or {}, where="table")), Checklist()
    verifier.verify(Evidence(verifier.tee, body), Endorsements({**items, **given}), now, policy, checks)
    return checks.revocation, {str(check.word) for check in checks.failed}


@pytest.mark.parametrize("make", [snp, azure], ids=lambda make: make.__name__)
def test_amds_intermediate_is_judged_where_its_roots_list_is_there(make):
    assert said(make) == (NOT_JUDGED, set())
    assert said(make, crl=ARK.crl()) == (JUDGED, set())
    assert said(make, crl=ARK.crl(at=snp()[3] - timedelta(days=60))) == (NOT_JUDGED, {"validity-period"})
    assert said(make, crl=amd_keys("Genoa").ark.crl()) == (NOT_JUDGED, set())


@pytest.mark.parametrize("make", [tdx, sgx], ids=lambda make: make.__name__)
def test_intels_collateral_holds_the_lists_and_without_it_nothing_is_judged(make):
    assert said(make) == (JUDGED, set())
    verifier, body, _, now = make()
    assert said(lambda: (verifier, body, {}, now)) == (NOT_JUDGED, {"collateral-missing"})


def test_a_gpu_is_judged_where_it_and_its_manifests_signers_were():
    assert said(gpu)[0] is NOT_JUDGED
    assert said(gpu, **nvidia().answers()) == (JUDGED, set())
    for role in nvidia().answers():
        given = {name: each for name, each in nvidia().answers().items() if name != role}
        assert said(gpu, **given) == (NOT_JUDGED, set())


def test_a_manifest_that_is_not_required_needs_no_list():
    identity = {"ocsp:identity": nvidia().answers()["ocsp:identity"]}
    assert said(gpu, {"required_rims": []}, **identity) == (JUDGED, set())


@pytest.mark.parametrize(
    ("make", "table"), [(cca, {}), (simulated, OPEN), (tpm, PIN)], ids=["cca", "simulated", "pinned"]
)
def test_a_key_without_a_certificate_has_no_list(make, table):
    assert said(make, table) == (NO_LIST, set())


def with_certificate(certificate, **given):
    """The same of a TPM whose key has this certificate."""
    policy = TpmVerifier().policy(Fields({"ak_trust": "certificate", "ak_roots": maker().pem}, where="tpm"))
    checks, items = Checklist(), {"ak_cert": der(certificate), **given}
    TpmVerifier().verify(PaperTpm().evidence(), Endorsements(items), TPM_NOW, policy, checks)
    return checks.revocation


def test_a_certified_tpm_key_is_judged_where_every_issuers_list_is_there():
    certificate = maker().certificate(PaperTpm().private)
    assert with_certificate(certificate) is NOT_JUDGED
    assert with_certificate(certificate, crl=maker().crl()) is NOT_JUDGED
    assert with_certificate(certificate, **{"crl": maker().crl(), "crl:root": maker().crl(by=0)}) is JUDGED


def test_a_pinned_tpm_that_shows_an_ek_certificate_has_that_certificates_lists_to_answer_for():
    ek = der(maker().certificate(rsa_key(2048, 2)))
    lists = {"crl": maker().crl(), "crl:root": maker().crl(by=0)}
    assert said(tpm, PIN | {"ek_roots": maker().pem}, ek_cert=ek) == (NOT_JUDGED, set())
    assert said(tpm, PIN | {"ek_roots": maker().pem}, ek_cert=ek, **lists) == (JUDGED, set())


def test_a_nitro_enclave_is_judged_where_its_chain_names_lists_and_else_has_none():
    assert said(nitro)[0] is NO_LIST
    where = x509.DistributionPoint([x509.UniformResourceIdentifier("http://aws.example/crl")], None, None, None)
    lists = ((x509.CRLDistributionPoints([where]), False),)
    named = test_nitro.AWS.issue("zone", ca=True, usage=("key_cert_sign", "crl_sign"), extensions=lists)
    enclave = named.issue("i-0-enc0", begin=NITRO_NOW - timedelta(hours=1), end=NITRO_NOW + timedelta(hours=2))

    def listed():
        octets = nitro_document(test_nitro.AWS, enclave, (named,), bytes(64), at=NITRO_NOW)
        return test_nitro.VERIFIERS["aws-nitro"], {"document": b64(octets)}, {}, NITRO_NOW

    assert said(listed) == (NOT_JUDGED, set())
    assert said(listed, crl=test_nitro.AWS.crl().public_bytes(Encoding.DER)) == (JUDGED, set())


# -- measuring ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [snp, azure, gpu, tpm, nitro], ids=lambda make: make.__name__)
def test_a_measured_policy_demands_revocation_status_where_its_table_knows_the_key(make):
    verifier, body, _, _ = make()
    measured = reference_policy(Evidence(verifier.tee, body), {verifier.tee: verifier}, name="measured")
    assert "require_revocation_status = true" in measured.toml()
    own = Policy.parse(measured.toml(), {verifier.tee: verifier}).tees[verifier.tee]
    assert getattr(own, "hardware", own).require_revocation_status
    assert measured.compared == len(measured.values) - 1


@pytest.mark.parametrize("make", [tdx, sgx, cca], ids=lambda make: make.__name__)
def test_a_measured_policy_demands_nothing_that_its_table_does_not_know(make):
    verifier, body, _, _ = make()
    measured = reference_policy(Evidence(verifier.tee, body), {verifier.tee: verifier}, name="measured")
    assert "revocation" not in measured.toml()


# -- another verifier's judgement ----------------------------------------------------------


def passed_on(payload):
    """What becomes of another verifier's token whose signer's certificate names no list."""
    return test_ear.judged(test_ear.chained(payload)).submodules["cpu0"].revocation


def test_what_another_verifier_does_not_say_is_not_judged():
    """A stock Trustee says nothing about it."""
    assert passed_on(test_ear.claims()) is NOT_JUDGED


@pytest.mark.parametrize(
    ("cpu", "gpu", "expected"),
    [
        ("judged", "judged", JUDGED),
        ("judged", "no-list", JUDGED),
        ("no-list", "no-list", NO_LIST),
        ("judged", "not-judged", NOT_JUDGED),
        ("judged", None, NOT_JUDGED),
        ("surely", "judged", NOT_JUDGED),
        (["judged"], "judged", NOT_JUDGED),
    ],
)
def test_another_of_our_brokers_is_believed_as_it_said_it_and_the_worst_device_decides(cpu, gpu, expected):
    payload = test_ear.claims()
    submodule = payload["submods"]["cpu0"]
    payload["submods"] = {
        name: submodule | ({} if value is None else {"strongroom.revocation": value})
        for name, value in (("cpu0", cpu), ("gpu0", gpu))
    }
    assert passed_on(payload) is expected


# -- the whole ------------------------------------------------------------------------------


def test_a_verifier_that_says_nothing_has_not_judged():
    """A plugin's verifier of an earlier release, for example."""
    assert Checklist().revocation is NOT_JUDGED


def test_the_status_stands_in_verdict_and_token():
    verifiers = {"simulated": SimulatedVerifier()}
    policy = Policy.parse('name = "x"\n[simulated]\nprotects_nothing = true\nany_measurement = true\n', verifiers)
    report = SimulatedReport.sign(bytes(32), bytes(64), {})
    verdict = judge(
        Evidence("simulated", report.serialise()), binding=bytes(64), endorsements=Endorsements(), policy=policy,
        now=TPM_NOW, verifiers=verifiers,
    )  # fmt: skip
    assert verdict.serialise()["submodules"]["cpu0"]["revocation"] == "no-list"
    claims = ear_claims(verdict, runtime_data_claims={})
    assert claims["submods"]["cpu0"]["strongroom.revocation"] == "no-list"
