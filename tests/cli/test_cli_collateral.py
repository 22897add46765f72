"""`strongroom collateral` as people run it: real evidence, a folder of real vendor files, no network."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from doubles.paper_tpm import Maker, PaperTpm, der, rsa_key
from doubles.real_switch import real_switch
from strongroom.collateral.trusted import Trusted
from strongroom.collateral.wanted import wanted_for
from strongroom.evidence.policy import Policy
from strongroom.evidence.tpm import TpmVerifier


def run(*arguments, store: Path):
    command = [sys.executable, "-m", "strongroom.cli", "collateral", *map(str, arguments), "--store", str(store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def switch(shared_evidence, tmp_path) -> tuple[Path, Path]:
    return real_switch(shared_evidence, tmp_path)


def test_fetch_bundle_import_and_show_tell_one_story(switch, tmp_path):
    evidence, files = switch
    fetched = run("fetch", evidence, "--offline", "--folder", files, store=tmp_path / "store")
    assert fetched.returncode == 0, fetched.stderr
    assert "rim/NV_SWITCH_BIOS_5612_0002_890_9610550001  until 2027-11-02" in fetched.stdout
    assert "only needed where a policy demands revocation status" in fetched.stderr
    bundle = tmp_path / "all.json"
    assert "1 endorsements written, 0 left out" in run("bundle", bundle, store=tmp_path / "store").stdout
    assert "1 endorsements taken in" in run("bundle", bundle, "--import", store=tmp_path / "air-gapped").stdout
    shown = run("show", "--json", store=tmp_path / "air-gapped")
    [row] = json.loads(shown.stdout)
    assert row["until"].startswith("2027-11-02") and row["trouble"] == ""


def test_only_an_earlier_bundle_is_replaced_by_one(switch, tmp_path):
    evidence, files = switch
    run("fetch", evidence, "--offline", "--folder", files, store=tmp_path / "store")
    key = tmp_path / "author.key"
    key.write_text("a secret")
    refused = run("bundle", key, store=tmp_path / "store")
    assert refused.returncode == 1 and "is no collateral bundle: it is not replaced" in refused.stderr
    assert key.read_text() == "a secret"
    for _ in range(2):
        assert run("bundle", tmp_path / "all.json", store=tmp_path / "store").returncode == 0
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_that_was_carried_here_is_not_replaced_by_an_empty_one(switch, tmp_path):
    evidence, files = switch
    run("fetch", evidence, "--offline", "--folder", files, store=tmp_path / "store")
    carried = tmp_path / "all.json"
    run("bundle", carried, store=tmp_path / "store")
    before = carried.read_bytes()
    forgotten = run("bundle", carried, store=tmp_path / "air-gapped")
    assert forgotten.returncode == 1 and "--import" in forgotten.stderr
    assert carried.read_bytes() == before


def test_what_cannot_be_had_is_an_error_with_a_next_step(switch, tmp_path):
    evidence, _ = switch
    refused = run("fetch", evidence, "--offline", store=tmp_path / "store")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "strongroom: hint:" in refused.stderr and "bundle" in refused.stderr


def test_stale_collateral_is_refused_by_its_date(shared_evidence, tmp_path):
    case = shared_evidence / "tdx" / "v4-b0c06f-uptodate"
    path = tmp_path / "files" / "dcap" / "tdx" / "B0C06F000000" / "platform.json"
    path.parent.mkdir(parents=True)
    path.write_bytes((case / "collateral.json").read_bytes())
    refused = run("fetch", case / "quote.bin", "--offline", "--folder", tmp_path / "files", store=tmp_path / "store")
    assert refused.returncode == 1
    assert "2025-07-19" in refused.stderr


def test_with_a_policy_the_lists_of_the_makers_that_it_names_are_kept_too(tmp_path):
    ours, now = Maker("Maker of TPMs"), datetime.now(UTC)
    evidence = PaperTpm().evidence(ek_cert=der(ours.certificate(rsa_key(2048, 9), endorsement=True)))
    (tmp_path / "evidence.json").write_text(json.dumps({"tee": "tpm", "evidence": evidence.body}))
    text = f'name = "ours"\n[tpm]\nek_roots = """\n{ours.pem}"""\n'
    (tmp_path / "policy.toml").write_text(text)
    policy = Policy.parse(text, {"tpm": TpmVerifier()})
    (tmp_path / "files" / "crl").mkdir(parents=True)
    for by, wanted in zip((1, 0), wanted_for(evidence, Trusted().under(policy)), strict=True):
        (tmp_path / "files" / f"{wanted.name}.crl").write_bytes(ours.crl(by=by, at=now))
    common = ("fetch", tmp_path / "evidence.json", "--offline", "--folder", tmp_path / "files", "--json")
    fetched = run(*common, "--policy", tmp_path / "policy.toml", store=tmp_path / "store")
    assert len(json.loads(fetched.stdout)) == 2, fetched.stderr
    assert json.loads(run(*common, store=tmp_path / "other").stdout) == []
