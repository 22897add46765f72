"""No key under a shipped policy where a revocation list is missing or stale: real broker, chips with real formats.

The appraisal policy asks for nothing here, so what refuses a missing list is the release policy.
"""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from broker.broker_in_a_room import broker_room
from broker.test_composite import APPRAISAL, ARCHIVE, KEY, NAME, Gpu, fetch
from doubles.amd_keys import amd_keys
from doubles.nvidia_device import NOW, PretendNvidia
from strongroom.broker.document import ModelKeyDocument
from strongroom.broker.rego import ReleasePolicy
from strongroom.errors import AttestationFailed, ReleaseDenied
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.policy import Policy
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.types import Endorsements
from strongroom.hookspecs import VerifierOffer
from strongroom.plugins import Plugins, Verifiers

TEMPLATES = ["hardware-only", "measured", "measured-cpu-and-gpu"]
OWN = 'package policy\n\nimport rego.v1\n\nallow if input.submods.cpu0["ear.status"] == "affirming"\n'


class House:
    """A running broker whose endorsements a test changes: `given` maps a TEE to what the broker has for it."""

    def __init__(self, room, nvidia, given):
        self.room, self.nvidia, self.given = room, nvidia, given

    def fetch(self, template):
        policy = ReleasePolicy.template(template) if template else ReleasePolicy.parse(OWN)
        self.room.broker.set_release_policy(policy, by="a test")
        return fetch(self.room, Gpu(self.nvidia))

    def demand(self, text):
        broker = self.room.broker
        broker.set_appraisal_policy(Policy.parse(text, broker.plugins.verifiers()), text, by="a test")

    def last(self):
        return json.loads(self.room.broker.audit.entries()[-1])


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    nvidia, given = PretendNvidia(), {}
    plugins = Plugins.load()
    snp = SnpVerifier(issuers=amd_keys("Milan").issuers)
    gpu = NvidiaVerifier(device_root=nvidia.root.certificate, rim_root=nvidia.rim_root.certificate)
    plugins._verifiers = Verifiers(
        {"snp": VerifierOffer("snp", lambda: snp), "nvidia": VerifierOffer("nvidia", lambda: gpu)}
    )
    with broker_room(
        tmp_path_factory.mktemp("lists"),
        appraisal=APPRAISAL,
        rego="measured",
        plugins=plugins,
        endorsements=lambda evidence, policy: Endorsements(given[evidence.tee]),
        clock=NOW.timestamp,
    ) as room:
        document = ModelKeyDocument(ARCHIVE, KEY, version=1)
        room.broker.store.put_resource(NAME, document.serialise(), at=0, archive=str(ARCHIVE), version=1)
        yield House(room, nvidia, given)


@pytest.fixture
def house(running):
    """Every list and answer is at hand and current."""
    rims = {"driver_rim": running.nvidia.rim("driver"), "vbios_rim": running.nvidia.rim("vbios")}
    running.given["snp"] = {"crl": amd_keys("Milan").ark.crl(at=NOW)}
    running.given["nvidia"] = rims | running.nvidia.answers()
    return running


@pytest.mark.parametrize("template", TEMPLATES)
def test_current_lists_release_the_key(house, template):
    released = house.fetch(template)
    assert released.key.reveal() == KEY.reveal()
    assert {each["strongroom.revocation"] for each in released.claims["submods"].values()} == {"judged"}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("tee", "role", "device"),
    [("snp", "crl", "cpu0"), ("nvidia", "ocsp:identity", "gpu0"), ("nvidia", "ocsp:rim-ca", "gpu0")],
)
def test_a_missing_list_keeps_the_key_and_says_whose_it_is(house, template, tee, role, device):
    del house.given[tee][role]
    with pytest.raises(ReleaseDenied, match=f"without a current revocation list for {device}$"):
        house.fetch(template)
    entry = house.last()
    assert entry["decision"] == "refused"
    assert entry["reason"].endswith(f"no current revocation list was at hand for {device}")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_stale_list_keeps_the_key_and_says_why(house, template):
    house.given["snp"]["crl"] = amd_keys("Milan").ark.crl(at=NOW - timedelta(days=60))
    with pytest.raises(AttestationFailed):
        house.fetch(template)
    assert {(each["name"], each["word"]) for each in house.last()["checks"]} == {
        ("snp.vcek.crl-validity", "validity-period")
    }


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_revoked_chip_gets_no_key(house, template):
    line = amd_keys("Milan")
    house.given["snp"]["crl"] = line.ark.crl(line.ask.certificate, at=NOW)
    with pytest.raises(AttestationFailed):
        house.fetch(template)
    assert {each["name"] for each in house.last()["checks"]} == {"snp.vcek.revoked"}


def test_a_policy_of_ones_own_may_leave_the_lists_out(house):
    del house.given["snp"]["crl"]
    assert house.fetch(None).key.reveal() == KEY.reveal()


def test_an_appraisal_policy_that_demands_status_refuses_before_any_release_policy(house):
    """Where both ask, the evidence is refused with the check's name and its next step."""
    del house.given["snp"]["crl"]
    house.demand(APPRAISAL.replace("[nvidia]", "require_revocation_status = true\n[nvidia]"))
    try:
        with pytest.raises(AttestationFailed):
            house.fetch("measured")
        [failed] = house.last()["checks"]
    finally:
        house.demand(APPRAISAL)
    assert failed["name"] == "snp.vcek.revoked" and "no fresh answer for CN=SEV-Milan" in failed["found"]
