"""The page of every TEE says what the code does: policy keys, check names, examples, and where its answer ends."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from strongroom.evidence.azure import AzurePolicy
from strongroom.evidence.cca import CcaPolicy
from strongroom.evidence.dcap_policy import TcbPolicy
from strongroom.evidence.ear import EarPolicy
from strongroom.evidence.nitro import NitroPolicy
from strongroom.evidence.nvidia_policy import NvidiaPolicy
from strongroom.evidence.policy import Policy
from strongroom.evidence.sgx import SgxPolicy
from strongroom.evidence.simulated import SimulatedPolicy
from strongroom.evidence.snp_policy import SnpPolicy
from strongroom.evidence.tdx import TdxPolicy
from strongroom.evidence.tpm_policy import TpmPolicy
from strongroom.plugins import Plugins

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "attestation"
ROOM = ROOT / "plugin" / "strongroom" / "evidence"
VERIFIERS = Plugins().verifiers()
POLICIES = {
    "sev-snp": [SnpPolicy],
    "tdx": [TdxPolicy, TcbPolicy],
    "sgx": [SgxPolicy, TcbPolicy],
    "azure": [AzurePolicy],
    "nvidia": [NvidiaPolicy],
    "cca": [CcaPolicy],
    "tpm": [TpmPolicy],
    "nitro": [NitroPolicy],
    "ear": [EarPolicy],
    "simulated": [SimulatedPolicy],
}
SPELLED = {  # a field whose key in the table is another, or several
    "allowed_statuses": "allowed_tcb_statuses",
    "min_evaluation_number": "min_tcb_evaluation_data_number",
    "azure": "profile",
    "certificates": "trusted_certificates",
    "keys": "trusted_keys",
}
NOT_A_KEY = {"hardware", "tcb"}  # the tables that another page or class describes
HARDWARE = sorted(set(POLICIES) - {"ear", "simulated"})
PREFIXES = {"sev-snp": "snp"}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def test_every_page_is_known_here_and_every_verifier_has_one():
    assert {path.stem for path in PAGES.glob("*.md")} - {"index", "init-data"} == set(POLICIES)
    text = page("index")
    assert {tee for tee in VERIFIERS if f"`{tee}`" not in text} == set()


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_key_stands_on_its_page(name):
    keys = {SPELLED.get(each.name, each.name) for policy in POLICIES[name] for each in fields(policy)} - NOT_A_KEY
    text = re.sub(r"`rem0` … `rem3`|`rtmr0` … `rtmr3`", lambda found: registers(found[0]), page(name))
    assert {key for key in keys if f"`{key}`" not in text} == set()


def registers(spelled: str) -> str:
    """`rem0` … `rem3`, written out."""
    name = spelled[1 : spelled.index("0")]
    return " ".join(f"`{name}{number}`" for number in range(4))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_check_that_a_page_names_is_made(name):
    code = "".join(path.read_text() for path in ROOM.glob("*.py"))
    prefix = PREFIXES.get(name, name)
    named = set(re.findall(rf"`{prefix}\.([a-z0-9-]+)`", page(name)))
    made = set(re.findall(rf'"{prefix}\.([a-z0-9-]+)"', code)) | set(re.findall(r'f"\{name\}\.([a-z0-9-]+)"', code))
    made |= {"binding", "launch", "tdreport", "report", "runtime-data", "status"}
    assert named - made == set()


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_toml_example_is_a_policy(name):
    for text in re.findall(r"```toml\n(.*?)```", page(name), re.S):
        tables = tomllib.loads(text)
        assert set(tables) - {"name", "devices"} <= set(VERIFIERS)
        if "…" not in text:  # a value that is cut short is for people
            whole = text if "name" in tables else f'name = "example"\n{text}'
            assert Policy.parse(whole, VERIFIERS).tees


@pytest.mark.parametrize("name", HARDWARE)
def test_a_page_says_what_is_checked_and_what_is_not_where_values_come_from_and_which_attacks_are_known(name):
    headings = re.findall(r"^## (.*)$", page(name), re.M)
    for wanted in ("What is verified", "Policy", "Reference values", "Known attacks", "What this does not say"):
        assert any(heading.startswith(wanted) for heading in headings), wanted


@pytest.mark.parametrize("name", sorted({*HARDWARE} - {"azure"}))
def test_known_attacks_have_dates(name):
    table = page(name).split("## Known attacks")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 3, row
        assert re.search(r"\b20\d\d\b", cells[1]) or cells[1] in ("—", "always"), row
