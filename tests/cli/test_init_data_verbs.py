"""`admit --write-init-data` and `measure --init-data`: from a configuration to a hypervisor's and a policy's values."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys

import pytest
from strongroom.evidence.policy import Policy
from strongroom.evidence.simulated import SimulatedVerifier

CONFIG = '[admission]\nauthors = ["author.pub"]\n[attestation]\ntee = "tdx"\n'


def strongroom(*arguments, folder):
    command = [sys.executable, "-P", "-m", "strongroom.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def owner(tmp_path):
    (tmp_path / "strongroom.toml").write_text(CONFIG)
    (tmp_path / "author.pub").write_text("strongroom-author-1 …\n")
    return tmp_path


@pytest.fixture
def packed(owner):
    done = strongroom("admit", "--config", "strongroom.toml", "--write-init-data", "init.toml", folder=owner)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256((owner / "init.toml").read_bytes()).hexdigest()
    assert done.stdout == f"init.toml: sha256 {digest}\n"
    return owner, digest


def test_what_is_printed_is_a_line_for_a_policy_and_a_field_for_each_tee(packed):
    owner, digest = packed
    done = strongroom("measure", "--init-data", "init.toml", folder=owner)
    lines = done.stdout.splitlines()
    assert lines[0] == f'init_data = ["{digest}"]'
    assert f"# snp: HOST_DATA {digest} (base64 {base64.b64encode(bytes.fromhex(digest)).decode()})" in lines
    assert f"# tdx: MRCONFIGID {digest}{'00' * 16}" in done.stdout
    pcr = hashlib.sha256(bytes(32) + bytes.fromhex(digest)).hexdigest()
    assert f"# tpm: PCR 8 {pcr}" in done.stdout
    text = f'name = "x"\n{done.stdout}[simulated]\nprotects_nothing = true\nany_measurement = true\n'
    assert Policy.parse(text, {"simulated": SimulatedVerifier()}).init_data == {digest}


def test_json_has_the_same_for_programs_and_for_one_tee_alone(packed):
    owner, digest = packed
    told = json.loads(strongroom("measure", "--init-data", "init.toml", "--tee", "snp", "--json", folder=owner).stdout)
    encoded = base64.b64encode(bytes.fromhex(digest)).decode()
    fields = {"snp": {"hex": digest, "base64": encoded}}
    assert told == {"digest": digest, "algorithm": "sha256", "fields": fields}


def test_a_digest_that_a_tpm_cannot_hold_is_said(owner):
    strongroom(
        "admit", "--config", "strongroom.toml", "--write-init-data", "i.toml", "--algorithm", "sha384", folder=owner
    )
    told = strongroom("measure", "--init-data", "i.toml", folder=owner).stdout
    assert "# tpm: none; behind a TPM the algorithm has to be sha256" in told


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("measure", "--init-data", "absent.toml"), 1),
        (("measure", "--init-data", "strongroom.toml"), 1),
        (("measure", "--init-data", "init.toml", "--tee", "aws-nitro"), 2),
        (("launch", "--init-data", "strongroom.toml", "--", "torchserve", "--start"), 1),
        (("launch", "--init-data", "init.toml", "--config", "strongroom.toml", "--", "torchserve", "--start"), 2),
        (("launch", "--", "torchserve", "--start"), 2),
    ],
)
def test_what_cannot_be_used_is_one_clear_line_with_a_next_step(packed, arguments, status):
    done = strongroom(*arguments, folder=packed[0])
    assert done.returncode == status
    assert done.stderr.startswith("strongroom: error: ")
    assert "strongroom: hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flags", [("--write-init-data", "x"), ("--config", "c", "--write-init-data", "x", "--algorithm", "md5")]
)
def test_wrong_use_is_status_2(owner, flags):
    assert strongroom("admit", *flags, folder=owner).returncode == 2
    assert not (owner / "x").exists()


def test_what_is_no_init_data_is_not_replaced_by_it(packed):
    owner, digest = packed
    for name in ("author.pub", "strongroom.toml", "folder"):
        if name == "folder":
            (owner / name).mkdir()
        done = strongroom("admit", "--config", "strongroom.toml", "--write-init-data", name, folder=owner)
        assert done.returncode == 1
        assert "is no init-data file: it is not replaced" in done.stderr
    assert (owner / "strongroom.toml").read_text() == CONFIG
    words = ("admit", "--config", "strongroom.toml", "--write-init-data", "init.toml")
    assert digest in strongroom(*words, folder=owner).stdout
    assert not [each.name for each in owner.iterdir() if each.name.startswith(".")]


def test_init_data_that_cannot_be_packed_leaves_the_old_ones(packed):
    owner, _ = packed
    before = (owner / "init.toml").read_bytes()
    (owner / "author.pub").unlink()
    words = ("admit", "--config", "strongroom.toml", "--write-init-data", "init.toml")

    assert strongroom(*words, folder=owner).returncode == 1
    assert (owner / "init.toml").read_bytes() == before


def test_what_is_no_list_of_distributions_is_not_replaced_by_one(owner):
    done = strongroom("admit", "--write-expected", "author.pub", folder=owner)
    assert "is no list of distributions: it is not replaced" in done.stderr
    for _ in range(2):
        assert strongroom("admit", "--write-expected", "installed.json", folder=owner).returncode == 0
