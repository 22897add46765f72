"""A keeper whose configuration names devices: their evidence travels beside the CPU's, or nothing does."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker.trustee_double import trustee_running
from doubles.models import Author, sealed_toy
from doubles.nvidia_device import PretendNvidia
from doubles.tee_devices import PretendNvml
from strongroom.attest.nvidia import NvidiaAttester
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.encoding import b64, unb64
from strongroom.errors import AttesterUnavailable, ConfigurationInvalid
from strongroom.evidence.nvidia_spdm import SpdmReport
from strongroom.evidence.types import Evidence
from strongroom.keeper.process import hold
from strongroom.launch.admission import Gate
from strongroom.launch.config import Configuration
from strongroom.plugins import Plugins


class Cpu:
    """Evidence that the double of a broker believes: its report data is the digest."""

    tee = "sample"

    def evidence(self, report_data):
        return Evidence(self.tee, {"svn": "1", "report_data": b64(report_data)})


class Guest(Plugins):
    """A guest with these GPUs."""

    def __init__(self, library: PretendNvml) -> None:
        super().__init__()
        self._library = library

    def attester(self, tee):
        return NvidiaAttester(load=lambda: self._library) if tee == "nvidia" else super().attester(tee)


@pytest.fixture(scope="module")
def gpu() -> PretendNvidia:
    return PretendNvidia()


def configuration(folder: Path, url: str, devices: str) -> Configuration:
    path = folder / "strongroom.toml"
    path.write_text(
        f'[admission]\nauthors = ["author.pub"]\n[broker]\nurl = "{url}"\n'
        f'[attestation]\ntee = "sample"\ndevices = {devices}\n'
    )
    return Configuration.load(path)


def held(folder: Path, url: str, library: PretendNvml, devices: str = '["nvidia"]'):
    """(model, sealed) of a keeper that has not asked yet."""
    author = Author.make(folder)
    sealed = sealed_toy(folder, author)
    settings = configuration(folder, url, devices)
    fronts = folder / "fronts"
    fronts.mkdir()
    admitted = Gate(settings.admission).admit({"toy": sealed.path}, fronts)
    return hold(admitted, settings, Cpu(), Guest(library))[0], sealed


def registered(trustee, sealed) -> None:
    name = model_key_name("default", "toy", 1, sealed.digest)
    trustee.resources["/".join(name)] = ModelKeyDocument(sealed.digest, sealed.key, version=1).serialise()


def test_every_gpu_of_the_guest_attests_over_the_same_challenge_before_the_cpu(tmp_path, gpu):
    with trustee_running() as trustee:
        model, sealed = held(tmp_path, trustee.url, PretendNvml([gpu, gpu]))
        registered(trustee, sealed)
        model.start()
        model.wait(20)
        try:
            assert model.status()["state"] == "open", model.status()
        finally:
            model.close()
        (seen,) = trustee.seen
    devices = seen["nvidia"]["device_evidence_list"]
    nonces = {SpdmReport.parse(unb64(each["evidence"])).nonce for each in devices}
    assert (len(devices), len(nonces)) == (2, 1)


@pytest.mark.parametrize(
    "library", [{"confidential": 0}, {"devtools": 1}, {"gpus": []}, {"codes": {"nvmlInit_v2": 9}}], ids=repr
)
def test_a_gpu_that_does_not_attest_means_that_no_key_is_asked_for(tmp_path, gpu, library):
    with trustee_running() as trustee:
        model, sealed = held(tmp_path, trustee.url, PretendNvml(**({"gpus": [gpu]} | library)))
        registered(trustee, sealed)
        model.start()
        model.wait(20)
        status = model.status()
        model.close()
        assert trustee.seen == []
    assert status["state"] == "waiting"
    assert f"could not be asked: {AttesterUnavailable.__name__}: " in status["reason"]
    assert status["hint"]


@pytest.mark.parametrize("devices", ['["nvidia", "nvidia"]', '["sample"]', '"nvidia"', "[1]"])
def test_devices_that_cannot_be_meant_are_an_error(tmp_path, devices):
    with pytest.raises(ConfigurationInvalid):
        configuration(tmp_path, "http://127.0.0.1:1", devices)


def test_a_device_that_nobody_knows_is_an_error_before_anything_starts(tmp_path, gpu):
    with pytest.raises(AttesterUnavailable, match="abacus"):
        held(tmp_path, "http://127.0.0.1:1", PretendNvml([gpu]), devices='["abacus"]')
