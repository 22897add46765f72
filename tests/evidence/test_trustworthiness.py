"""What a verdict's numbers say, for every TEE: the software is approved only where the software was looked at."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from doubles.amd_keys import NOW as AMD_NOW
from doubles.amd_keys import amd_keys
from doubles.azure_guest import AzureGuest
from doubles.cca_platform import PretendCca
from doubles.dcap_platform import NOW as INTEL_NOW
from doubles.dcap_platform import PretendIntel, enclave, trust_domain
from doubles.nvidia_device import NOW as NVIDIA_NOW
from doubles.nvidia_device import PretendNvidia
from doubles.paper_tpm import NOW as TPM_NOW
from doubles.paper_tpm import PaperTpm
from evidence import test_nitro
from strongroom.broker.rego import ReleasePolicy
from strongroom.encoding import Fields, b64
from strongroom.evidence.azure import AzureSnpVerifier
from strongroom.evidence.cca import CcaVerifier
from strongroom.evidence.judge import Submodule
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.sgx import SgxVerifier
from strongroom.evidence.simulated import SimulatedReport, SimulatedVerifier
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.trustworthiness import EXECUTABLES, status, trust_vector
from strongroom.evidence.types import (
    Check,
    Checklist,
    Claim,
    Claims,
    Endorsements,
    Evidence,
    Provenance,
    Word,
)  # fmt: skip
from strongroom.plugins import Plugins

ZERO = "00" * 32


@cache
def intel() -> PretendIntel:
    return PretendIntel()


@cache
def arm() -> PretendCca:
    return PretendCca()


@cache
def nvidia() -> PretendNvidia:
    return PretendNvidia()


def snp():
    chip = amd_keys("Milan").chip()
    body = {"report": b64(chip.report().serialise())}
    return SnpVerifier(issuers=amd_keys("Milan").issuers), body, {"vcek": chip.certificate()}, AMD_NOW


def tdx():
    body = {"quote": b64(intel().quote(trust_domain())), "cc_eventlog": None}
    verifier = TdxVerifier(intel_root=intel().root.certificate)
    return verifier, body, {"collateral": intel().collateral(tdx=True)}, INTEL_NOW


def sgx():
    body = {"quote": b64(intel().quote(enclave()))}
    verifier = SgxVerifier(intel_root=intel().root.certificate)
    return verifier, body, {"collateral": intel().collateral()}, INTEL_NOW


def azure():
    guest = AzureGuest()
    verifier = AzureSnpVerifier(issuers=guest.chip.line.issuers)
    return verifier, guest.evidence().body, {"vcek": guest.chip.certificate()}, AMD_NOW


def cca():
    return CcaVerifier(), {"token": list(arm().token(bytes(64)))}, {"cpak": arm().cpak}, None


def tpm():
    return TpmVerifier(), PaperTpm().evidence().body, {}, TPM_NOW


def nitro():
    verifier = test_nitro.VERIFIERS["aws-nitro"]
    return verifier, {"document": b64(test_nitro.document())}, {}, test_nitro.NOW


def gpu():
    verifier = NvidiaVerifier(device_root=nvidia().root.certificate, rim_root=nvidia().rim_root.certificate)
    device = {"evidence": b64(nvidia().report(bytes(32))), "certificate": b64(nvidia().chain)}
    rims = {"driver_rim": nvidia().rim("driver"), "vbios_rim": nvidia().rim("vbios")}
    return verifier, {"device_evidence_list": [device]}, rims, NVIDIA_NOW


def simulated():
    return SimulatedVerifier(), SimulatedReport.sign(bytes(32), bytes(64), {}).serialise(), {}, AMD_NOW


def submodule(make, table: dict[str, Any]) -> Submodule:
    """The accepted submodule of that evidence under that table."""
    verifier, body, items, now = make()
    policy, checks = verifier.policy(Fields(table, where="table")), Checklist()
    claims = verifier.verify(Evidence(verifier.tee, body), Endorsements(items), now, policy, checks)
    verifier.appraise(claims, policy, checks)
    assert checks.failed == ()
    return Submodule(claims, checks.all)


PIN = {"ak_trust": "pinned", "pinned_aks": [PaperTpm().public.name.hex()]}
PCR4 = {"pcrs": {"4": ZERO}}
SIMULATION = {"protects_nothing": True}

APPROVED = [
    (snp, {"measurements": "measurement"}, {}),
    (snp, {"id_key_digests": "id_key_digest"}, {}),
    (snp, {"author_key_digests": "author_key_digest"}, {}),
    (tdx, {"measurements": "mr_td"}, {}),
    (sgx, {"measurements": "mr_enclave"}, {}),
    (sgx, {"mr_signers": "mr_signer"}, {"isv_prod_ids": [0, 1, 7]}),
    (azure, {"measurements": "measurement"}, PCR4),
    (cca, {"measurements": "initial_measurement"}, {}),
    (tpm, {}, PIN | PCR4),
    (nitro, {}, {"pcrs": {"0": None}}),
    (nitro, {}, {"pcrs": {"8": None}}),
    (nitro, {}, {"pcrs": {"1": None, "2": None}}),
    (gpu, {}, {}),
    (simulated, {}, SIMULATION | {"measurements": [ZERO]}),
]
NOT_APPROVED = [
    (snp, {}, {}),
    (snp, {"host_data": "host_data"}, {"products": ["Milan"]}),
    (tdx, {}, {}),
    (tdx, {"mr_config_ids": "mr_config_id", "rtmr3": "rtmr3", "mr_seams": "mr_seam"}, {}),
    (sgx, {}, {"min_isv_svn": 1}),
    (sgx, {"mr_signers": "mr_signer"}, {}),
    (azure, {}, {}),
    (azure, {"measurements": "measurement"}, {}),
    (azure, {}, PCR4),
    (cca, {"rem0": "rem0", "personalization_values": "personalization"}, {}),
    (tpm, {}, PIN),
    (tpm, {}, PIN | {"pcrs": {"16": ZERO, "23": ZERO}}),
    (nitro, {}, {}),
    (nitro, {}, {"pcrs": {"1": None, "4": None}}),
    (gpu, {}, {"required_rims": ["vbios"]}),
    (gpu, {"driver_versions": "driver_version"}, {"required_rims": []}),
    (simulated, {}, SIMULATION | {"any_measurement": True}),
]


def table(make, listed: dict[str, str], more: dict[str, Any]) -> dict[str, Any]:
    """`listed` names a claim for each list of the policy; a register without a value gets the one it has."""
    base = PIN if make is tpm else SIMULATION | {"any_measurement": True} if make is simulated else {}
    claims = submodule(make, base).claims if listed or make is nitro else None
    made = {key: [claims[claim]] for key, claim in listed.items()} | more
    if make is nitro and "pcrs" in made:
        made = made | {"pcrs": {index: claims["pcrs"][index].hex() for index in made["pcrs"]}}
    return made


def named(case) -> str:
    make, listed, more = case
    return f"{make.__name__}: {', '.join([*listed, *more]) or 'nothing'}"


@pytest.mark.parametrize("case", APPROVED, ids=named)
def test_software_that_the_policy_lists_is_approved(case):
    make, listed, more = case
    assert trust_vector(submodule(make, table(make, listed, more)))["executables"] == 3


@pytest.mark.parametrize("case", NOT_APPROVED, ids=named)
def test_genuine_hardware_with_software_that_nobody_listed_is_not_approved(case):
    make, listed, more = case
    vector = trust_vector(submodule(make, table(make, listed, more)))
    assert vector["executables"] == 33
    assert status(vector) == "warning"


@pytest.mark.parametrize("make", [snp, tdx, sgx, azure, cca, tpm, nitro], ids=lambda make: make.__name__)
def test_the_shipped_policy_for_measured_software_keeps_the_key_from_an_empty_table(make):
    """The hole that this closes: checks of a module's signer and the like once counted as measured software."""
    vector = trust_vector(submodule(make, PIN if make is tpm else {}))
    evidence = {"snp": {"present": True}}
    cpu = {
        "ear.status": status(vector),
        "ear.trustworthiness-vector": vector,
        "strongroom.revocation": "judged",
        "ear.veraison.annotated-evidence": evidence,
    }
    policy = ReleasePolicy.template("measured")
    asked = {"plugin": "resource", "resource-path": ["a", "b", "c"], "method": "GET"}
    assert not policy.decide({"submods": {"cpu0": cpu}}, asked).granted
    good = {"hardware": 2, "executables": 3, "configuration": 3}
    cpu = cpu | {"ear.status": "affirming", "ear.trustworthiness-vector": good}
    assert policy.decide({"submods": {"cpu0": cpu}}, asked).granted


def test_every_built_in_tee_is_known_here():
    assert set(EXECUTABLES) | {"nvidia", "ear"} == set(Plugins().verifiers())


def test_a_tpms_key_says_nothing_about_the_machines_settings():
    assert trust_vector(submodule(tpm, PIN | PCR4)) == {"hardware": 2, "executables": 3, "configuration": 0}


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ({"cpu0": {"hardware": 2, "executables": 3, "configuration": 2}}, (2, 3, 2)),
        ({"cpu0": {"hardware": 2, "executables": 33}}, (2, 33, 0)),
        ({"cpu0": {}}, (0, 0, 0)),
        ({"cpu0": {"hardware": True, "executables": "3"}}, (0, 0, 0)),
        ({"cpu0": {"hardware": 2, "executables": 3}, "cpu1": {"hardware": 2}}, (2, 0, 0)),
        ({"cpu0": {"hardware": 2, "executables": 3}, "gpu0": {"hardware": 2, "executables": 33}}, (2, 3, 0)),
        ({"only": {"hardware": 3, "executables": 4}}, (3, 4, 0)),
        ({}, (2, 33, 36)),
    ],
)
def test_another_verifiers_judgement_is_passed_on_as_it_was_said(inner, expected):
    submodules = {name: {"ear.trustworthiness-vector": vector} for name, vector in inner.items()}
    made = Checklist()
    made.that(True, "ear.match /x", Word.MEASUREMENT, expected="x", found="x")
    claims = Claims("ear", {"claims": Claim({"submods": submodules}, Provenance.ATTESTATION_RESULT)}, b"")
    vector = trust_vector(Submodule(claims, made.all))
    assert (vector["hardware"], vector["executables"], vector["configuration"]) == expected


def test_a_plugins_tee_is_approved_by_its_own_measurement_checks():
    def judged(word: Word) -> int:
        check = Check("abacus.beads", word, True, "7", "7")
        return trust_vector(Submodule(Claims("abacus", {}, bytes(32)), (check,)))["executables"]

    assert (judged(Word.MEASUREMENT), judged(Word.DEBUG)) == (3, 33)
