"""`strongroom measure --ovmf` on a small firmware made here, against sev-snp-measure's own command as the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli.test_evidence_verbs import strongroom
from doubles.firmware import SECTIONS, ovmf


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    files = {"ovmf": ovmf(), "kernel": b"kernel" * 100, "initrd": b"initrd" * 100}
    for name, octets in files.items():
        (folder / name).write_bytes(octets)
    return {name: folder / name for name in files}


def theirs(inputs: dict[str, Path], *more: object) -> str:
    """What the package's own command computes."""
    command = [sys.executable, "-c", "from sevsnpmeasure.cli import main; raise SystemExit(main())", "--mode", "snp"]
    command += ["--ovmf", str(inputs["ovmf"]), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def ours(inputs: dict[str, Path], *more: object) -> str:
    done = strongroom("measure", "--ovmf", inputs["ovmf"], *more, "--json")
    assert done.returncode == 0, done.stderr
    (measurement,) = json.loads(done.stdout)["values"]["measurements"]
    return measurement


def launches(inputs: dict[str, Path]) -> list[list[object]]:
    """Options that both commands take alike, each launch of which starts another guest."""
    direct = ["--kernel", inputs["kernel"]]
    return [
        ["--vcpus", 1, "--vcpu-type", "EPYC-v4"],
        ["--vcpus", 4, "--vcpu-type", "EPYC-v4"],
        ["--vcpus", 4, "--vcpu-type", "EPYC-Genoa"],
        ["--vcpus", 4, "--vcpu-type", "EPYC-v4", "--guest-features", "0x21"],
        ["--vcpus", 4, "--vcpu-type", "EPYC-v4", *direct],
        ["--vcpus", 4, "--vcpu-type", "EPYC-v4", *direct, "--initrd", inputs["initrd"]],
        ["--vcpus", 4, "--vcpu-type", "EPYC-v4", *direct, "--append", "quiet"],
        ["--vcpus", 4, "--vcpu-type", "EPYC-v4", *direct, "--initrd", inputs["initrd"], "--append", "quiet"],
    ]


def test_every_launch_is_measured_as_sev_snp_measure_does_and_no_two_alike(inputs):
    found = [ours(inputs, *each) for each in launches(inputs)]
    assert found == [theirs(inputs, *each) for each in launches(inputs)]
    assert len(set(found)) == len(found)
    assert {len(each) for each in found} == {96}


def test_the_defaults_are_the_packages(inputs):
    assert ours(inputs) == theirs(inputs, "--vcpus", 1, "--vcpu-type", "EPYC-v4")


@pytest.mark.parametrize("vmm", ["ec2", "gce"])
def test_other_hypervisors_start_processors_in_another_state(inputs, vmm):
    asked = ("--vcpus", 2, "--vcpu-type", "EPYC-v4")
    found = ours(inputs, *asked, "--vmm", vmm)
    assert found == theirs(inputs, *asked, "--vmm-type", vmm)
    assert found != ours(inputs, *asked)


def test_the_firmware_alone_decides_too(inputs, tmp_path):
    (tmp_path / "other").write_bytes(ovmf(SECTIONS[:-1]))
    assert ours(inputs) != ours({"ovmf": tmp_path / "other"})


def test_what_is_printed_is_a_policy_that_knows_the_guest(inputs):
    from strongroom.evidence.policy import Policy
    from strongroom.plugins import Plugins

    done = strongroom("measure", "--ovmf", inputs["ovmf"], "--name", "built")
    policy = Policy.parse(done.stdout, Plugins().verifiers())
    assert policy.tees["snp"].measurements == {ours(inputs)}
    assert "no machine was asked" in done.stderr


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--vcpu-type", "Z80"), 1, "vcpu type"),
        (("--append", "quiet"), 2, "only with a kernel"),
        (("--initrd", "/etc/hostname"), 2, "only with a kernel"),
        (("--guest-features", "many"), 2, "not hexadecimal"),
        (("--kernel", "/no/such/kernel"), 1, "no such file"),
        (("--vmm", "bochs"), 1, "hypervisor"),
    ],
)
def test_launch_inputs_that_make_no_guest_are_refused(inputs, options, status, said):
    done = strongroom("measure", "--ovmf", inputs["ovmf"], *options)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


@pytest.mark.parametrize("octets", [b"", b"x", b"x" * 50, b"x" * 4096, ovmf()[:-64], ovmf()[:0x9000] + bytes(0x7000)])
def test_a_file_that_is_no_firmware_for_sev_says_what_is_needed(tmp_path, octets):
    (tmp_path / "OVMF.fd").write_bytes(octets)
    done = strongroom("measure", "--ovmf", tmp_path / "OVMF.fd")
    assert (done.returncode, done.stdout) == (1, "")
    assert "built for SEV" in done.stderr


def test_a_kernel_needs_a_firmware_that_measures_it(inputs, tmp_path):
    (tmp_path / "OVMF.fd").write_bytes(ovmf(SECTIONS[:-1]))
    done = strongroom("measure", "--ovmf", tmp_path / "OVMF.fd", "--kernel", inputs["kernel"])
    assert done.returncode == 1
    assert "SNP_KERNEL_HASHES" in done.stderr


def test_a_missing_library_says_what_to_install(monkeypatch, inputs):
    monkeypatch.setitem(sys.modules, "sevsnpmeasure.guest", None)
    assert "pip install sev-snp-measure" in strongroom("measure", "--ovmf", inputs["ovmf"]).stderr
