"""Commands on pages are run, and their output is the page's; links lead somewhere; what a page names exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.models import plain_archive
from doubles.pages import Step, console_commands, console_steps, named_files, python_of
from doubles.real_switch import real_switch
from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey
from strongroom.encoding import b64url

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "model_store" / "README.md"])
RUN = [*sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "docs" / "attestation" / "index.md"]
PYTHON = ROOT / "docs" / "guides" / "python.md"

ANSWERS_NO = re.compile(r"strongroom (doctor|explain|policy test)\b")
"""What exits with 1 where the answer is no, which is no failure of the page; an error is one."""

SHELL = """
strongroom() { "$PYTHON" -P -m strongroom.cli "$@"; }
export -f strongroom
exec 2>&1
"""


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a guide's reader stands: with an ordinary digits.mar, and no file of earlier readers."""
    files = {"digits.py": b"def handle(data, context):\n    return data\n", "digits.pt": bytes(range(256)) * 40}
    plain_archive(tmp_path / "digits.mar", files, name="digits", handler="digits.py")
    monkeypatch.setenv("STRONGROOM_COLLATERAL", str(tmp_path / "collateral"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def sources(folder: Path) -> None:
    """A model before it is packaged."""
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    (folder / "weights.pt").write_bytes(bytes(range(256)) * 40)


def broker_owner(folder: Path) -> None:
    """A passphrase, and a token of a guest whose software is not approved."""
    (folder / "pass.txt").write_text("correct horse\n")
    (folder / "pass.txt").chmod(0o600)
    vector = {"hardware": 2, "executables": 33}
    device = {"ear.status": "warning", "ear.trustworthiness-vector": vector, "strongroom.revocation": "judged"}
    claims = {"submods": {"cpu0": device}}
    (folder / "token.jwt").write_text(".".join(b64url(part) for part in (b"{}", json.dumps(claims).encode(), b"s")))


def operator(folder: Path) -> None:
    """A sealed archive in the model store, the author's public key, a broker's certificate."""
    author = AuthorKey.generate()
    author.public.save(folder / "author.pub")
    (folder / "model_store").mkdir()
    seal_archive(folder / "digits.mar", folder / "model_store" / "digits.mar", author=author)
    (folder / "broker-ca.pem").write_text("the broker's certificate\n")
    (folder / "config.properties").write_text("default_workers_per_model=1\n")


def fetched_before(folder: Path, shared_evidence: Path) -> None:
    """A store with an endorsement that holds, which a bundle is made of."""
    evidence, files = real_switch(shared_evidence, folder)
    command = ["collateral", "fetch", str(evidence), "--offline", "--folder", str(files)]
    subprocess.run([sys.executable, "-m", "strongroom.cli", *command], check=True, capture_output=True, timeout=60)


STANDS = {"seal.md": sources, "broker.md": broker_owner, "operate.md": operator}


@pytest.mark.parametrize("page", [page for page in RUN if console_commands(page.read_text())], ids=page_id)
def test_the_commands_of_a_guide_work_in_their_order_and_print_what_it_shows(page, folder, request):
    text = page.read_text()
    if page.name == "collateral.md":
        fetched_before(folder, request.getfixturevalue("shared_evidence"))
    STANDS.get(page.name, lambda folder: None)(folder)
    for name, content in named_files(text).items():
        (folder / name).write_text(content)
    for step in console_steps(text):
        done = subprocess.run(
            ["bash", "-c", SHELL + step.command], cwd=folder, stdout=subprocess.PIPE, text=True, timeout=120,
            env={**os.environ, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}, check=False,
        )  # fmt: skip
        no = done.returncode == 1 and ANSWERS_NO.match(step.command) and "strongroom: error:" not in done.stdout
        assert done.returncode == 0 or no, f"{page.name}: {step.command}\n{done.stdout[-2000:]}"
        assert step.agrees(done.stdout), f"{page.name}: {step.command}\n{done.stdout}"
    if page == PYTHON:  # in a process of its own: it imports torch
        (folder / "page.py").write_text(python_of(text))
        command = [sys.executable, "page.py"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("shown", "output", "agrees"),
    [
        (["a 1", "b"], "a 1\nb\n", True),
        (["a …", "b"], "a 1\nb\n", True),
        (["a …", "b"], "a 1\n", False),
        (["a", "…", "d"], "a\nb\nc\nd\n", True),
        (["a", "…"], "a\n", True),
        (["b"], "a\nb\n", False),
        ([], "anything\n", True),
    ],
)
def test_output_agrees_with_a_page_line_by_line(shown, output, agrees):
    assert Step("", tuple(shown)).agrees(output) is agrees


def test_the_readmes_two_commands_are_targets_of_the_makefile():
    commands = [command.split("#")[0].split() for command in console_commands((ROOT / "README.md").read_text())]
    assert commands == [["make", "demo"], ["make", "test"]]
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "test-long", "bench"} <= targets


def test_ci_runs_the_readmes_test_command():
    assert re.search(r"^STRONGROOM_SKIP_IS_FAILURE=1 make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_programs_that_tests_skip_without_are_in_cis_list_of_packages():
    packages = (ROOT / ".ci" / "apt.txt").read_text().splitlines()
    homes = {"node": "nodejs", "softhsm2-util": "softhsm2"}
    programs = {
        program
        for path in (ROOT / "tests").rglob("*.py")
        for program in re.findall(r"which\(\"([\w-]+)\"\)", path.read_text())
    }
    assert {homes.get(each, each) for each in programs} - {"schemathesis"} <= set(packages)  # that comes by pip


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
