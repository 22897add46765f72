"""A whole journey with a TPM 2.0 in software: author, broker, stock TorchServe and client, and nothing simulated.

The TPM is real (Debian's swtpm with an EK certificate of its own): a restricted key, a credential that the broker
makes and only this TPM opens, quotes, and the events that `launch` extends before it starts anything. Broker and
client demand these events; each is tried once with a configuration that was not launched.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import pytest
import requests
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from doubles.software_tpm import SoftwareTpm
from leaks.hunt import canary
from strongroom.broker.client import BrokerAdmin
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import COMMAND, Stage, run
from strongroom.errors import ServerRefused

pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
from strongroom.attest.tpm import launch_log_of, read_launch_log
from strongroom.attest.tpm_connection import TCTI_VARIABLE

pytestmark = pytest.mark.journey

HANDLER = b"""
def handle(data, context):
    return data and [b"sealed: " + bytes(row.get("body") or b"") for row in data]
"""
EVENTS = ("configuration", "trust-roots", "admitted", "distributions")
WRONG = "11" * 32


@dataclass
class House:
    """The parties, the machine's TPM, and what its owner measured on it."""

    stage: Stage
    tpm: SoftwareTpm
    measured: dict[str, object]  # by `strongroom measure`
    launch: dict[str, str]  # by `strongroom admit`

    def table(self, trust: str, **changed: str) -> str:
        """The [tpm] table for this machine and launch, `changed` where a test wants another digest."""
        events = ", ".join(f'{name} = ["{digest}"]' for name, digest in {**self.launch, **changed}.items())
        registers = ", ".join(f'"{index}" = {json.dumps(value)}' for index, value in self.measured["pcrs"].items())
        return (
            f"[tpm]\n{trust}\nlaunch = {{ {events} }}\npcrs = {{ {registers} }}\nek_roots = '''\n{self.tpm.roots}'''\n"
        )

    @property
    def owner(self) -> BrokerAdmin:
        """The key owner at their broker."""
        return BrokerAdmin(self.stage.broker_url, self.stage.owner / "broker" / "admin.key")

    def demand(self, **changed: str) -> None:
        """Put the broker's appraisal policy in force: this EK's maker, this boot, this launch."""
        self.owner.set_appraisal_policy('name = "machines"\n' + self.table('ak_trust = "activated"', **changed))

    def client(self, **changed: str) -> requests.Session:
        """A client that pins the machine's key, its author and the launch."""
        path = self.stage.owner / "client.toml"
        trust = f'ak_trust = "pinned"\npinned_aks = {json.dumps(self.measured["pinned_aks"])}'
        admitted = (
            f'[admitted]\nauthors = ["{self.stage.author_id}"]\nconfiguration = ["{self.launch["configuration"]}"]'
        )
        path.write_text(f'name = "client"\n{self.table(trust, **changed)}\n{admitted}\n')
        session = requests.Session()
        session.mount(self.stage.url, SealedAdapter(policy=path))
        return session

    def audited(self) -> list[dict]:
        """The broker's audit log."""
        return [json.loads(entry) for entry in self.owner.audit_entries(0, self.owner.status()["audit_entries"])]

    def log_says(self, words: str) -> str:
        """The host's log, once these words are in it."""
        deadline = time.monotonic() + 60
        while words not in self.stage.log():
            assert time.monotonic() < deadline and self.stage.launcher.poll() is None, self.stage.log_tail()
            time.sleep(0.1)
        return self.stage.log()


def host_command(stage: Stage, verb: str, config: str) -> subprocess.CompletedProcess[str]:
    """`strongroom admit` or `launch` as the operator types it."""
    server = ["torchserve", "--start", "--model-store", "model_store", "--models", "toy=toy.mar"]
    return subprocess.run(
        [*COMMAND, verb, "--config", config, "--", *server], cwd=stage.host, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tpm(tmp_path_factory) -> Iterator[SoftwareTpm]:
    """A machine's TPM, just booted; the environment names it, as for tpm2-tools."""
    patch = pytest.MonkeyPatch()
    with SoftwareTpm(tmp_path_factory.mktemp("tpm") / "machine") as machine:
        log = launch_log_of(machine.tcti)
        log.unlink(missing_ok=True)  # of an earlier software TPM behind the same port
        patch.setenv(TCTI_VARIABLE, machine.tcti)
        yield machine
        patch.undo()
        log.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def house(tpm, tmp_path_factory) -> Iterator[House]:
    """Everything up to a launched server, to which the broker has given no key yet."""
    plain = plain_archive(tmp_path_factory.mktemp("plain") / "toy.mar", {"toy.py": HANDLER}, name="toy")
    stage = HuntedStage.make()
    try:
        with ThreadPoolExecutor(1) as beside:  # the host's owner and the author do not wait for each other
            measuring = beside.submit(run, "measure", "--tee", "tpm", folder=stage.host)
            stage.make_author()
            stage.serve_broker("--rego", "measured")
            stage.seal(plain)
            measured = measuring.result()["values"]
        stage.configure(tee="tpm")
        admitted = host_command(stage, "admit", "strongroom.toml")
        assert admitted.returncode == 0, admitted.stderr
        lines = [line.split() for line in admitted.stdout.splitlines() if line.startswith("launch.")]
        house = House(stage, tpm, measured, {name.removeprefix("launch."): digest for name, digest in lines})
        house.demand(configuration=WRONG)
        stage.launch(("toy=toy.mar",), properties="default_workers_per_model=1\n")
        yield house
    finally:
        stage.close()


@pytest.fixture(scope="module")
def refused(house) -> tuple[str, list[dict]]:
    """Host's log and broker's audit log while the broker demands another configuration than the launched one."""
    said, audited = house.log_says("AttestationFailed"), house.audited()
    house.demand()  # the right one, before the keeper asks many times in vain and waits long in between
    return said, audited


@pytest.fixture(scope="module")
def open_house(house, refused) -> House:
    """The same server, once the broker's policy names what was launched."""
    house.stage.wait_until_ready(1, model="toy")
    return house


def test_the_launch_is_measured_before_anything_starts(house, tpm):
    log = house.log_says("launch.distributions")
    assert "strongroom keeper:" not in log.partition("launch.distributions")[0]
    events = read_launch_log(launch_log_of(tpm.tcti))
    assert {each.event: each.digest.hex() for each in events} == house.launch
    assert sorted(house.launch) == sorted(EVENTS)
    assert house.launch["configuration"] == sha256((house.stage.host / "strongroom.toml").read_bytes()).hexdigest()


def test_the_broker_refuses_a_configuration_that_its_policy_does_not_name(house, refused):
    said, audited = refused
    assert "toy is not open: AttestationFailed" in said
    failed = [each for entry in audited for each in entry.get("checks", ())]
    assert {(each["name"], each["expected"], each["found"]) for each in failed} == {
        ("tpm.launch-configuration", WRONG, house.launch["configuration"])
    }


def test_the_key_is_released_to_the_activated_tpm_and_requests_are_answered(open_house):
    hello = canary("hello").encode()
    answer = open_house.client().post(f"{open_house.stage.url}/predictions/toy", data=hello, timeout=60)
    assert (answer.status_code, answer.content) == (200, b"sealed: " + hello)
    granted = [
        entry for entry in open_house.audited() if entry["event"] == "release" and entry["decision"] == "granted"
    ]
    assert granted and {entry["tee"] for entry in granted} == {"tpm"}


def test_a_client_verifies_the_tpms_evidence_behind_the_keys(open_house):
    url = f"{open_house.stage.url}/predictions/toy"
    verdict = open_house.client().get_adapter(url).verify_server(url, timeout=60).verdict
    assert verdict.claims.tee == "tpm"
    for event in EVENTS:
        claim = verdict.claims.values[f"launch.{event}"]
        assert (claim.value, str(claim.provenance)) == (open_house.launch[event], "event-log")
    held = {check.name for check in verdict.checks}
    assert held >= {
        "tpm.pinned",
        "tpm.signature",
        "tpm.pcr-digest",
        "tpm.ek-certificate.chain",
        "tpm.binding",
        "tpm.pcr0",
    }


@pytest.mark.parametrize("event", EVENTS)
def test_a_client_that_demands_another_launch_sends_nothing_and_says_why(open_house, event):
    session = open_house.client(**{event: WRONG})
    with pytest.raises(ServerRefused, match=rf"tpm.launch-{event}: expected {WRONG}"):
        session.post(f"{open_house.stage.url}/predictions/toy", data=b"hello", timeout=60)


def test_another_configuration_in_the_same_boot_is_not_launched(open_house):
    """The register cannot forget: whoever changes the file has to reboot the machine."""
    stage = open_house.stage
    changed = stage.host / "changed.toml"
    changed.write_text((stage.host / "strongroom.toml").read_text() + '\n[worker]\nnetwork = "allow"\n')
    done = host_command(stage, "launch", "changed.toml")
    assert done.returncode == 1
    assert "another configuration was launched and measured already" in done.stderr
    assert "reboot the guest" in done.stderr


def test_nothing_was_simulated(open_house):
    assert "SIMULATED" not in open_house.stage.log().upper()
