"""Init-data files, the hardware fields that hold them, and policies that ask for them."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from doubles.amd_keys import NOW as AMD_NOW
from doubles.amd_keys import amd_keys
from hypothesis import given
from hypothesis import strategies as st
from strongroom.errors import ConfigurationInvalid, EvidenceRefused, MalformedInput
from strongroom.evidence.init_data import FIELDS, InitData, check_field, field_of, fitted, with_init_data
from strongroom.evidence.judge import judge, serialise_claims
from strongroom.evidence.policy import Policy
from strongroom.evidence.simulated import SimulatedReport, SimulatedVerifier
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.snp_report import to_serde
from strongroom.evidence.types import Claim, Claims, Endorsements, Evidence, Provenance

TEXT = 'version = "0.1.0"\nalgorithm = "{}"\n[data]\n"strongroom.toml" = "x"\n'
BINDING = bytes(range(64))
CHIP = amd_keys("Milan").chip()


def init_data(algorithm: str = "sha256") -> InitData:
    return InitData.parse(TEXT.format(algorithm))


def test_the_digest_is_over_the_exact_text():
    one, two = init_data(), InitData.parse(TEXT.format("sha256") + "\n")
    assert one.digest == hashlib.sha256(TEXT.format("sha256").encode()).digest() != two.digest
    assert one.data == {"strongroom.toml": "x"}


@pytest.mark.parametrize(
    "text",
    ["", "x", 'version = "1"\nalgorithm = "md5"\n[data]\n', 'version = "1"\nalgorithm = "sha256"\n',
     'version = "1"\nalgorithm = "sha256"\n[data]\nx = 1\n', 'version = 1\nalgorithm = "sha256"\n[data]\n',
     'version = "1"\nalgorithm = "sha256"\nmore = 1\n[data]\n', "a = " + "[" * 5000],
)  # fmt: skip
def test_what_is_no_init_data_is_refused(text):
    with pytest.raises(MalformedInput, match="init-data"):
        InitData.parse(text)


@given(st.text(max_size=200))
def test_the_parser_raises_nothing_but_its_own_error(text):
    with contextlib.suppress(MalformedInput):
        InitData.parse(text)


@pytest.mark.parametrize("tee", FIELDS)
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_digest_is_padded_or_cut_to_the_field(tee, algorithm):
    width = FIELDS[tee][1]
    value = init_data(algorithm).field(tee)
    assert len(value) == width
    assert value == init_data(algorithm).digest[:width].ljust(width, b"\0")


@pytest.mark.parametrize("tee", ["tpm", "az-snp-vtpm", "az-tdx-vtpm"])
def test_behind_a_tpm_the_digest_is_extended_into_pcr_8(tee):
    expected = hashlib.sha256(bytes(32) + init_data().digest).digest()
    claims = Claims(tee, {"pcrs": Claim({"8": expected.hex()})}, bytes(32))
    check_field(init_data(), claims)
    assert field_of(claims).provenance is Provenance.HARDWARE
    with pytest.raises(MalformedInput, match="sha256"):
        init_data("sha384").field(tee)


def test_a_pcr_of_another_bank_says_nothing():
    value = hashlib.sha256(bytes(32) + init_data().digest).hexdigest()
    claims = Claims("tpm", {"pcrs": Claim({"8": value}), "pcr_bank": Claim("sha384")}, bytes(32))
    with pytest.raises(MalformedInput):
        check_field(init_data(), claims)


def test_a_tee_without_a_field_holds_nothing():
    with pytest.raises(MalformedInput, match="no field"):
        check_field(init_data(), Claims("aws-nitro", {}, bytes(32)))
    assert fitted(bytes(32), "nvidia") is None


def test_a_field_that_was_never_set_is_no_claim():
    assert "init_data" not in with_init_data(Claims("snp", {"host_data": Claim("00" * 32)}, bytes(64))).values


# -- policies --------------------------------------------------------------------------------


def judged(host_data: bytes, policy: str):
    report = CHIP.report(report_data=BINDING, host_data=host_data)
    evidence = Evidence("snp", {"attestation_report": to_serde(report), "cert_chain": None})
    verifiers = {"snp": SnpVerifier(issuers=amd_keys("Milan").issuers)}
    return judge(
        evidence, binding=BINDING, endorsements=Endorsements({"vcek": CHIP.certificate()}), now=AMD_NOW,
        policy=Policy.parse(f'name = "x"\n{policy}\n[snp]\n', verifiers), verifiers=verifiers,
    )  # fmt: skip


def test_a_policy_takes_the_digest_of_the_file_and_the_claim_says_that_hardware_vouches():
    data = init_data("sha384")
    verdict = judged(data.field("snp"), f'init_data = ["{data.digest.hex()}"]')
    assert "snp.init-data" in {check.name for check in verdict.checks}
    told = serialise_claims(verdict.claims)["init_data"]
    assert told == {"value": data.digest[:32].hex(), "provenance": "hardware"}


@pytest.mark.parametrize("host_data", [bytes(32), b"\x01" * 32])
def test_a_guest_that_was_started_with_another_file_or_with_none_is_refused(host_data):
    with pytest.raises(EvidenceRefused, match=r"snp\.init-data"):
        judged(host_data, f'init_data = ["{init_data().digest.hex()}"]')


def test_an_empty_list_allows_nothing():
    with pytest.raises(EvidenceRefused, match="list is empty"):
        judged(init_data().field("snp"), "init_data = []")


def test_without_the_list_nothing_is_asked():
    assert judged(bytes(32), "")


@pytest.mark.parametrize("value", ['["00"]', '["zz"]', '"00"', "[1]"])
def test_a_list_that_holds_no_digests_is_an_error_of_the_policy(value):
    with pytest.raises(ConfigurationInvalid):
        judged(bytes(32), f"init_data = {value}")


def simulated(asserted, digest: str):
    evidence = Evidence("simulated", SimulatedReport.sign(bytes(32), BINDING, asserted).serialise())
    verifiers = {"simulated": SimulatedVerifier()}
    table = f'init_data = ["{digest}"]\n[simulated]\nprotects_nothing = true\nany_measurement = true\n'
    policy = Policy.parse(f'name = "x"\n{table}', verifiers)
    return judge(
        evidence, binding=BINDING, endorsements=Endorsements(), policy=policy, now=AMD_NOW, verifiers=verifiers
    )


def test_the_simulated_tee_can_only_say_so_itself_and_that_counts_nowhere_else():
    digest = init_data().digest.hex()
    verdict = simulated({"init_data": digest}, digest)
    assert verdict.claims.values["init_data"].provenance is Provenance.SELF_ASSERTED
    with pytest.raises(EvidenceRefused):
        simulated({}, digest)


class Boaster:
    """A verifier that passes on what its evidence says about itself, as a careless plugin might."""

    tee = "snp"

    def __init__(self, provenance):
        self._provenance = provenance

    def policy(self, table):
        return None

    def verify(self, evidence, endorsements, now, policy, checks):
        checks.that(True, "snp.signature", "signature", expected="", found="")
        digest = Claim(init_data().digest.hex(), self._provenance)
        return Claims("snp", {"init_data": digest, "launch.init-data": digest}, BINDING)

    def appraise(self, claims, policy, checks):
        pass


@pytest.mark.parametrize("provenance", [Provenance.SELF_ASSERTED, Provenance.ATTESTATION_RESULT])
def test_what_software_says_about_itself_does_not_satisfy_a_hardware_policy(provenance):
    verifiers = {"snp": Boaster(provenance)}
    policy = Policy.parse(f'name = "x"\ninit_data = ["{init_data().digest.hex()}"]\n[snp]\n', verifiers)
    with pytest.raises(EvidenceRefused, match=r"snp\.init-data"):
        judge(
            Evidence("snp", {}), binding=BINDING, endorsements=Endorsements(), policy=policy, now=AMD_NOW,
            verifiers=verifiers,
        )  # fmt: skip
