"""Commands on pages are run; links lead somewhere; what a page names exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.models import plain_archive
from doubles.pages import console_commands

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "model_store" / "README.md"])
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path):
    """Where a guide's reader stands: with an ordinary digits.mar."""
    files = {"digits.py": b"def handle(data, context):\n    return data\n", "digits.pt": bytes(range(256)) * 40}
    plain_archive(tmp_path / "digits.mar", files, name="digits", handler="digits.py")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in GUIDES if console_commands(page.read_text())], ids=page_id)
def test_the_commands_of_a_guide_work_in_their_order(page, folder):
    for command in console_commands(page.read_text()):
        words = shlex.split(command, comments=True)
        if words[0] == "strongroom":
            words = [sys.executable, "-m", "strongroom.cli", *words[1:]]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ)
        assert done.returncode == 0, f"{page.name}: {command}\n{done.stderr[-2000:]}"


def test_the_readmes_two_commands_are_targets_of_the_makefile():
    commands = [command.split("#")[0].split() for command in console_commands((ROOT / "README.md").read_text())]
    assert commands == [["make", "demo"], ["make", "test"]]
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "test-long", "bench"} <= targets


def test_ci_runs_the_readmes_test_command():
    assert re.search(r"^STRONGROOM_SKIP_IS_FAILURE=1 make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page_id(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_verbs_that_a_page_names_exist(page):
    from strongroom.cli.main import VERBS

    named = set(re.findall(r"(?<!label )`strongroom ([a-z][a-z-]+)[ `]", page.read_text()))
    named |= set(re.findall(r"^(?:\$ |    )strongroom ([a-z][a-z-]+)", page.read_text(), re.MULTILINE))
    assert {name.replace("-", "_") for name in named} <= set(VERBS)


@pytest.mark.parametrize("page", ["threat-model.md", "reliability.md"])
def test_every_test_that_a_page_of_promises_names_exists(page):
    text = (ROOT / "docs" / page).read_text()
    named = re.findall(r"\btests/[\w/]+\.py(?:::\w+)?", text)
    assert len(named) > 10
    for each in named:
        file, _, function = each.partition("::")
        assert (ROOT / file).is_file(), each
        if function:
            assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE), each


def test_every_attack_in_the_threat_model_names_the_test_that_holds_it():
    text = (ROOT / "docs" / "threat-model.md").read_text()
    section = text.partition("## 4. ")[2].partition("## 5. ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|") and not set(line) <= set("|- ")]
    attacks = [row for row in rows if not re.search(r"\| (test|refused in) \|$", row)]
    assert len(attacks) > 30
    for row in attacks:
        assert re.search(r"tests/[\w/]+\.py(::\w+)? \|$", row), row


def test_every_fault_on_the_page_of_reliability_names_the_test_that_throws_it():
    text = (ROOT / "docs" / "reliability.md").read_text()
    section = text.partition("## What is full")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|") and not set(line) <= set("|- ")]
    assert len(rows) > 20
    for row in rows[1:]:
        assert re.search(r"tests/[\w/]+\.py::\w+ \|$", row), row


def test_python_in_guides_parses():
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(block, page_id(page), "exec")
