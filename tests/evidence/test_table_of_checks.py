"""The table 'TEE by check' of docs/attestation/index.md, cell by cell against what verifiers do."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from evidence import test_ear
from evidence import test_trustworthiness as pieces
from strongroom.evidence.types import Word

ROOT = Path(__file__).parent.parent.parent
ROOM = ROOT / "plugin" / "strongroom" / "evidence"
DCAP = ("dcap", "dcap_policy", "dcap_endorsement")
SNP = ("snp", "snp_policy", "snp_certificate")
MODULES = {
    "snp": SNP,
    "tdx": ("tdx", *DCAP),
    "sgx": ("sgx", *DCAP),
    "azure": ("azure", "tpm_quote", *SNP, "tdx", *DCAP),
    "nvidia": ("nvidia", "nvidia_policy"),
    "cca": ("cca",),
    "tpm": ("tpm", "tpm_key", "tpm_policy", "tpm_quote"),
    "nitro": ("nitro",),
    "ear": ("ear",),
    "simulated": ("simulated",),
}
MAKERS = {
    "snp": (pieces.snp, {}), "tdx": (pieces.tdx, {}), "sgx": (pieces.sgx, {}), "azure": (pieces.azure, {}),
    "nvidia": (pieces.gpu, {}), "cca": (pieces.cca, {}), "tpm": (pieces.tpm, pieces.PIN), "nitro": (pieces.nitro, {}),
    "simulated": (pieces.simulated, pieces.SIMULATION | {"any_measurement": True}),
}  # fmt: skip
EVERYWHERE = {"format", "binding"}
"""Rows that are the same for all: a parser raises, and the judge compares the binding."""
ONLY_ON_FAILURE = {"algorithm"}
"""A weak certificate is recorded only where there is one."""


def rows() -> list[tuple[str, str, str]]:
    """(word, column, cell) of the page's table."""
    text = (ROOT / "docs" / "attestation" / "index.md").read_text().split("## TEE by check")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    columns = lines[0][1:]
    assert columns == list(MODULES)
    return [
        (re.match(r"`([a-z-]+)`", line[0])[1], column, cell)
        for line in lines[2:]
        for column, cell in zip(columns, line[1:], strict=True)
    ]


@cache
def always(column: str) -> frozenset[str]:
    """The words of the checks that an accepted piece of evidence meets under the emptiest policy."""
    found = test_ear.judged(test_ear.chained()) if column == "ear" else pieces.submodule(*MAKERS[column])
    return frozenset(str(check.word) for check in found.checks)


@cache
def known(column: str) -> frozenset[str]:
    """The words that the TEE's modules can use at all."""
    text = "".join((ROOM / f"{name}.py").read_text() for name in MODULES[column])
    found = {str(Word[name]) for name in re.findall(r"\bWord\.([A-Z_]+)\b", text) if name in Word.__members__}
    if "verify_chain(" in text:
        found |= {"chain", "validity-period", "algorithm"}
    if "check_status(" in text or "check_crl(" in text:
        found.add("revocation")
    if column == "azure" and "event_log" not in (ROOM / "azure.py").read_text():
        found.discard("event-log")  # of a TD quote that came with a log, which Azure's evidence does not
    return frozenset(found)


@pytest.mark.parametrize(("word", "column", "cell"), rows(), ids=lambda value: str(value).split(" ")[0])
def test_the_cell_says_what_the_verifier_does(word, column, cell):
    assert cell[0] in "●○—", cell
    if word in EVERYWHERE:
        assert cell == "●"
    elif cell[0] == "●":
        assert word in (known(column) if word in ONLY_ON_FAILURE else always(column))
    elif cell[0] == "○":
        assert word in known(column)
        assert word not in always(column)
    else:
        assert word not in known(column)


def test_every_word_that_a_verifier_uses_has_a_row():
    in_the_table = {word for word, _, _ in rows()} | {"nonce", "collateral-missing", "evidence-missing", "device-count"}
    assert set().union(*map(known, MODULES)) - in_the_table == set()
