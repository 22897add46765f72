"""The pages of SEV-SNP, Azure and TPM say what the code does: policy keys, check names, examples."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from strongroom.evidence.azure import AzurePolicy, AzureSnpVerifier, AzureTdxVerifier
from strongroom.evidence.policy import Policy
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.snp_policy import SnpPolicy
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.tpm_policy import TpmPolicy

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "attestation"
ROOM = ROOT / "plugin" / "strongroom" / "evidence"
VERIFIERS = {
    "snp": SnpVerifier(), "tpm": TpmVerifier(), "az-snp-vtpm": AzureSnpVerifier(), "az-tdx-vtpm": AzureTdxVerifier(),
}  # fmt: skip


def page(name: str) -> str:
    return (PAGES / name).read_text()


@pytest.mark.parametrize(
    ("name", "policy", "elsewhere"),
    [("sev-snp.md", SnpPolicy, set()), ("tpm.md", TpmPolicy, set()), ("azure.md", AzurePolicy, {"hardware"})],
)
def test_every_policy_key_stands_on_its_page(name, policy, elsewhere):
    text = page(name)
    keys = {each.name for each in fields(policy)} - elsewhere
    assert {key for key in keys if f"`{key}`" not in text} == set()


@pytest.mark.parametrize(("name", "prefix"), [("sev-snp.md", "snp"), ("azure.md", "azure"), ("tpm.md", "tpm")])
def test_every_check_that_a_page_names_is_made(name, prefix):
    code = "".join(path.read_text() for path in ROOM.glob("*.py"))
    named = set(re.findall(rf"`{prefix}\.([a-z0-9-]+)`", page(name)))
    made = set(re.findall(rf'"{prefix}\.([a-z0-9-]+)"', code)) | set(re.findall(r'f"\{name\}\.([a-z0-9-]+)"', code))
    made |= {"binding", "launch", "tdreport", "report", "runtime-data"}
    assert named
    assert named - made == set()


@pytest.mark.parametrize("name", ["sev-snp.md", "azure.md", "tpm.md"])
def test_every_toml_example_is_a_policy(name):
    for text in re.findall(r"```toml\n(.*?)```", page(name), re.S):
        tomllib.loads(text)
        assert Policy.parse(text, VERIFIERS).tees


@pytest.mark.parametrize("name", ["sev-snp.md", "azure.md", "tpm.md"])
def test_a_page_says_where_its_answer_ends(name):
    assert "## What a yes does not say" in page(name)
