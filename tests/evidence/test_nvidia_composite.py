"""A CPU and four GPUs under one nonce: four real H100 reports of one machine beside a pretend platform's TD."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from doubles.dcap_platform import NOW as MADE
from doubles.dcap_platform import PretendIntel, trust_domain
from strongroom.encoding import b64
from strongroom.errors import EvidenceRefused
from strongroom.evidence.judge import Presented, judge_composite
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.policy import Policy
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.types import Endorsements, Evidence

NONCE = bytes.fromhex("e97b23a1718095a0e9e35edca810768c70a6a5a389b705e753b197912bc11576")
BINDING = bytes(range(48))


@pytest.fixture(scope="module")
def intel() -> PretendIntel:
    return PretendIntel()


@pytest.fixture(scope="module")
def gpus(shared_evidence) -> list[dict]:
    folders = [shared_evidence / "nvidia" / "h100x4-590.12" / f"gpu{number}" for number in range(4)]
    return [
        {
            "arch": "HOPPER",
            "uuid": f"GPU-{number}",
            "evidence": b64((folder / "evidence.bin").read_bytes()),
            "certificate": b64((folder / "cert_chain.pem").read_bytes()),
        }
        for number, folder in enumerate(folders)
    ]


def judged(intel, gpus, *, wanted=4, device_binding=NONCE, nvidia=True, primary=None):
    verifiers = {"tdx": TdxVerifier(intel_root=intel.root.certificate), "nvidia": NvidiaVerifier()}
    text = (
        'name = "gpus"\n[tdx]\n' + ("[nvidia]\nrequired_rims = []\n" if nvidia else "") + f"[devices]\ngpu = {wanted}\n"
    )
    policy = Policy.parse(text, verifiers)
    quote = intel.quote(trust_domain(report_data=BINDING.ljust(64, b"\0")))
    td = Evidence("tdx", {"quote": b64(quote), "cc_eventlog": None})
    cpu = Presented(primary or td, Endorsements({"collateral": intel.collateral(tdx=True)}))
    devices = [Presented(Evidence("nvidia", {"device_evidence_list": gpus}))] if gpus else []
    return judge_composite(
        cpu, devices, binding=BINDING, device_binding=device_binding, policy=policy, now=MADE + timedelta(hours=1),
        verifiers=verifiers,
    )  # fmt: skip


def words(refused) -> set[str]:
    return {str(check.word) for check in refused.value.checks if not check.ok}


def test_four_distinct_gpus_and_a_cpu_are_one_verdict(intel, gpus):
    verdict = judged(intel, gpus)
    assert set(verdict.submodules) == {"cpu0", "gpu0", "gpu1", "gpu2", "gpu3"}
    assert len({each.claims.device_id for each in verdict.submodules.values()}) == 5
    assert verdict.submodules["gpu3"].claims["driver_version"] == "590.12"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_gpus_are_refused(intel, gpus, count):
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, gpus[:count])
    assert words(refused) == {"device-count"}


def test_too_many_gpus_are_refused(intel, gpus):
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, gpus, wanted=3)
    assert words(refused) == {"device-count"}


def test_the_same_gpu_twice_is_refused(intel, gpus):
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, [*gpus[:3], {**gpus[0], "uuid": "GPU-3"}])
    assert words(refused) == {"device-count"}


def test_a_gpu_under_another_nonce_is_refused(intel, gpus, shared_evidence):
    other = shared_evidence / "nvidia" / "h100-550.90.07"
    stranger = {
        "evidence": b64((other / "evidence.bin").read_bytes()),
        "certificate": b64((other / "cert_chain.pem").read_bytes()),
    }
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, [*gpus[:3], stranger])
    assert words(refused) == {"nonce"}
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, gpus, device_binding=bytes(48))
    assert words(refused) == {"nonce"}


def test_gpus_are_refused_where_the_policy_does_not_name_them(intel, gpus):
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, gpus, nvidia=False)
    assert "tee" in words(refused)


def test_a_gpu_never_stands_in_for_the_cpu(intel, gpus):
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, gpus, primary=Evidence("nvidia", {"device_evidence_list": gpus[:1]}))
    assert "tee" in words(refused)


def test_a_cut_list_is_refused_as_unreadable(intel, gpus):
    with pytest.raises(EvidenceRefused) as refused:
        judged(intel, [*gpus[:3], {**gpus[3], "evidence": gpus[3]["evidence"][:400]}])
    assert "format" in words(refused)
    assert dataclasses.is_dataclass(refused.value.checks[0])
