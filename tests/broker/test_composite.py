"""A CPU and a GPU in one handshake with a real broker: both under one nonce, and the policy that asks for both.

The chips are doubles with real formats and signatures; the verifiers are the real ones, with the doubles' roots.
"""

from __future__ import annotations

import json

import pytest
from broker.broker_in_a_room import Room, broker_room
from doubles.amd_keys import amd_keys
from doubles.nvidia_device import NOW, PretendNvidia
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.encoding import b64
from strongroom.errors import AttestationFailed, ReleaseDenied
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.snp_report import to_serde
from strongroom.evidence.types import Endorsements, Evidence
from strongroom.hookspecs import VerifierOffer
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest, ModelKey
from strongroom.plugins import Plugins, Verifiers

APPRAISAL = f"""
name = "snp guests with a GPU"
[snp]
measurements = ["{"22" * 48}"]
[nvidia]
"""
ARCHIVE, KEY = ArchiveDigest(b"\1" * 32), ModelKey(b"\2" * 32)
NAME = model_key_name("acme", "digits", 1, ARCHIVE)


class Cpu:
    """An SEV-SNP guest."""

    tee = "snp"

    def __init__(self):
        self.chip = amd_keys("Milan").chip()
        self.certificate = self.chip.certificate()

    def evidence(self, report_data):
        report = self.chip.report(report_data=report_data.ljust(64, b"\0"))
        chain = [{"cert_type": "VCEK", "data": list(self.certificate)}]
        return Evidence("snp", {"attestation_report": to_serde(report), "cert_chain": chain})


class Gpu:
    """A GPU that quotes 32 bytes of nonce; `forger` is what it is given instead of what it is asked for."""

    tee = "nvidia"

    def __init__(self, nvidia, forger=lambda nonce: nonce):
        self.nvidia, self.forger = nvidia, forger

    def evidence(self, report_data):
        report = self.nvidia.report(self.forger(report_data[:32]))
        device = {"arch": "HOPPER", "uuid": "GPU-0", "evidence": b64(report), "certificate": b64(self.nvidia.chain)}
        return Evidence("nvidia", {"device_evidence_list": [device]})


@pytest.fixture(scope="module")
def nvidia():
    return PretendNvidia()


@pytest.fixture(scope="module")
def room(tmp_path_factory, nvidia):
    plugins = Plugins.load()
    snp = SnpVerifier(issuers=amd_keys("Milan").issuers)
    gpu = NvidiaVerifier(device_root=nvidia.root.certificate, rim_root=nvidia.rim_root.certificate)
    plugins._verifiers = Verifiers(
        {"snp": VerifierOffer("snp", lambda: snp), "nvidia": VerifierOffer("nvidia", lambda: gpu)}
    )
    rims = {"driver_rim": nvidia.rim("driver"), "vbios_rim": nvidia.rim("vbios")}
    given = {"snp": {"crl": amd_keys("Milan").ark.crl(at=NOW)}, "nvidia": rims | nvidia.answers()}
    with broker_room(
        tmp_path_factory.mktemp("composite"),
        appraisal=APPRAISAL,
        rego="measured-cpu-and-gpu",
        plugins=plugins,
        endorsements=lambda evidence, policy: Endorsements(given[evidence.tee]),
        clock=NOW.timestamp,
    ) as room:
        document = ModelKeyDocument(ARCHIVE, KEY, version=1)
        room.broker.store.put_resource(NAME, document.serialise(), at=0, archive=str(ARCHIVE), version=1)
        yield room


def fetch(room: Room, *devices):
    return ReleaseClient(room.url, attester=Cpu(), additional=devices, pause_s=0.01).fetch(tuple(NAME), ARCHIVE)


def test_a_cpu_and_a_gpu_under_one_nonce_open_what_asks_for_both(room, nvidia):
    released = fetch(room, Gpu(nvidia))
    assert released.key.reveal() == KEY.reveal()
    submods = released.claims["submods"]
    assert set(submods) == {"cpu0", "gpu0"}
    assert {each["ear.status"] for each in submods.values()} == {"affirming"}
    for each in submods.values():
        assert set(each["ear.veraison.annotated-evidence"]["runtime_data_claims"]) == {"nonce", "tee-pubkey"}
    entry = json.loads(room.broker.audit.entries()[-1])
    assert entry["submodules"] == {"cpu0": "affirming", "gpu0": "affirming"}


def test_a_cpu_alone_is_judged_and_denied(room):
    """An empty list of devices is valid to the protocol: the policy has to ask for the GPU."""
    with pytest.raises(ReleaseDenied, match="cpu0: affirming"):
        fetch(room)


def test_a_gpus_old_quote_refuses_the_whole(room, nvidia):
    with pytest.raises(AttestationFailed):
        fetch(room, Gpu(nvidia, forger=lambda nonce: bytes(32)))
    [failed] = json.loads(room.broker.audit.entries()[-1])["checks"]
    assert failed["word"] == "nonce"


def test_a_gpu_of_another_vendor_refuses_the_whole(room):
    with pytest.raises(AttestationFailed):
        fetch(room, Gpu(PretendNvidia()))


def test_a_gpu_that_is_swapped_on_the_way_refuses_the_whole(room, nvidia):
    """The CPU's evidence commits to the text of the devices' evidence."""

    class Swapping(ReleaseClient):
        def _attestation(self, challenge, hash_name, keys):
            from dataclasses import replace

            from strongroom.broker.protocol import device_document, document_digest

            honest = super()._attestation(challenge, hash_name, keys)
            again = Gpu(nvidia).evidence(document_digest(device_document(challenge.nonce, keys.public), hash_name))
            return replace(honest, additional=json.dumps({"nvidia": dict(again.body)}))

    with pytest.raises(AttestationFailed):
        Swapping(room.url, attester=Cpu(), additional=[Gpu(nvidia)], pause_s=0.01).fetch(tuple(NAME), ARCHIVE)
