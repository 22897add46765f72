"""What every verb has in common: an example in its help, `--json`, and exit status 2 for wrong use."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import typer
from strongroom.archive.signature import AuthorKey
from strongroom.cli.main import EXTRAS, VERBS
from strongroom.errors import WrongUse
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb and subverb that does something, by the words that are typed for it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for word, each in below.items():
        yield from commands(each, f"{name} {word}".strip())


APP = typer.Typer()
for verb in VERBS:
    importlib.import_module(f"strongroom.cli.{verb}").register(APP)
COMMANDS = dict(commands(typer.main.get_command(APP)))


WITHOUT = """
import sys
from importlib.machinery import PathFinder

find, absent = PathFinder.find_spec, sys.argv.pop(1)
PathFinder.find_spec = staticmethod(lambda name, *rest: None if name == absent else find(name, *rest))
from strongroom.cli.main import main
main()
"""


def strongroom(*words: str | Path, cwd: Path, without: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as if the module `without` were not installed."""
    command = [sys.executable, "-c", WITHOUT, without, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_has_an_example_of_itself_and_prints_json(name):
    command = COMMANDS[name]

    assert "Example" in command.help
    assert f"`strongroom {name}" in command.help
    # Those that serve until they are stopped print one JSON line when they are ready.
    assert "--json" in [option for each in command.params for option in each.opts]


CONFIGURATION = """
admission = { authors = ["author.pub"] }
keys = { provider = "file", folder = "." }
attestation = { tee = "simulated" }
"""
POLICY = """
name = "anybody"
simulated = { protects_nothing = true, any_measurement = true }
"""
AT = ("--broker", "http://127.0.0.1:9", "--admin-key", "admin.key")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seal", "m.mar", "--author", "a.key", "--broker", "http://127.0.0.1:9"], "--admin-key belong together"),
        (["seal", "m.mar", "--author", "a.key"], "nobody would keep the key"),
        (["seal", "m.mar", "--author", "a.key", "--key-out", "k", "--lease", "9"], "--lease is about the key"),
        (["seal", "m.mar", "--author", "author.key", "--key-out", "k", "--expires", "soon"], "is no date"),
        (["rewrap", "m.mar", "--add", "a.recipient"], "nothing is named that opens it"),
        (["verify", "m.mar", "--author", "a.pub", "--key", "k", "--identity", "i"], "give one of them"),
        (["verify", "m.mar", "--author", "a.pub", "--demand", "foo"], "one of ed25519, hybrid"),
        (["broker", "init", "b", "--setting", "pcrs"], "is not NAME=VALUE"),
        (["broker", "administrator", "b"], "one thing at a time"),
        (["policy", "get", "both", *AT], "no policy is called"),
        (["key", "list", "--role", "king", *AT], "nobody has such a role"),
        (["release", "revoke", "model", "m", *AT], "nothing of the kind"),
        (["release", "limit", "a/b", *AT], "nothing to change"),
        (["audit", "prove", "log", "--key", "k"], "--entry N, or --since FILE"),
        (["audit", "prove", "log", "--key", "k", "--entry", "1", "--since", "c"], "--entry N, or --since FILE"),
        (["launch", "torchserve"], "--config FILE, or --init-data FILE"),
        (["keeper", "--config", "strongroom.toml"], "no archive is named"),
        (["request", "http://h/m", "--policy", "policy.toml", "-H", "x"], "is not a header field"),
        (["request", "http://h/m", "--policy", "policy.toml", "-H", "x: \udcff"], "is not a header field"),
        (["request", "http://h/m", "--policy", "policy.toml", "-X", "\udcff"], "is no method"),
        (["request", "http://h/m", "--policy", "policy.toml", "--json", "-o", "x"], "nothing to write"),
        (["request", "http://h/m", "--policy", "policy.toml", "--token", "\udcff"], "printable ASCII"),
        (["request", "http://h/m", "--policy", "policy.toml", "--token", "a\nb"], "printable ASCII"),
        (["request", "ftp://h/m", "--policy", "policy.toml"], "is no http or https URL"),
        (["request", "http://[::1", "--policy", "policy.toml"], "is no http or https URL"),
        (["request", "http://a..b/m", "--policy", "policy.toml"], "is no http or https URL"),
        (["verify-server", "http://h:99999/m", "--policy", "policy.toml"], "is no http or https URL"),
        (["proxy", "http://[::1", "--policy", "policy.toml"], "is no http or https URL"),
        (["proxy", "http://h", "--policy", "p", "--kem", "rsa"], "no KEM is called"),
        (["proxy", "http://h", "--policy", "p", "--padding", "much"], "is not a padding policy"),
        (["measure", "--ovmf", "f", "--guest-features", "all"], "not hexadecimal"),
    ],
)
def test_options_that_are_missing_or_do_not_go_together_are_wrong_use(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AuthorKey.generate().save(tmp_path / "author.key")
    (tmp_path / "strongroom.toml").write_text(CONFIGURATION)
    (tmp_path / "policy.toml").write_text(POLICY)
    error = CliRunner().invoke(APP, words).exception

    assert isinstance(error, WrongUse), error
    assert said in f"{error} {error.hint}"
    assert error.hint


@pytest.mark.parametrize(
    "words",
    [
        *(["request", "http://h/m", "--timeout", each] for each in ("-1", "0", "nan", "inf")),
        ["verify-server", "http://h/m", "--timeout", "nan"],
        ["proxy", "http://h", "--port", "99999"],
        ["proxy", "http://h", "--port", "-1"],
    ],
)
def test_a_number_that_no_socket_takes_is_wrong_use(words):
    assert CliRunner().invoke(APP, [*words, "--policy", "policy.toml"]).exit_code == 2


def test_wrong_use_exits_with_2_and_a_failure_with_1(tmp_path):
    wrong = strongroom("audit", "prove", "log", "--key", "k", cwd=tmp_path)
    failed = strongroom("audit", "prove", "log", "--key", "k", "--entry", "1", cwd=tmp_path)

    assert (wrong.returncode, failed.returncode) == (2, 1)
    assert wrong.stderr == (
        "strongroom: error: one thing is proved at a time\n"
        "strongroom: hint: give --entry N, or --since FILE [--until FILE]\n"
    )


def test_bytes_that_are_no_text_are_wrong_use_where_text_is_meant(tmp_path):
    assert strongroom("broker", "init", "b", cwd=tmp_path).returncode == 0
    done = strongroom("broker", "administrator", "b", "--remove", "\udcff", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("strongroom: error: an argument has bytes that are no text\n")


# -- packages that a plain install lacks --------------------------------------------------


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (["broker", "init", "b"], "joserfc", "broker"),
        (["broker", "serve", "b"], "uvicorn", "broker"),
        (["broker", "serve", "b"], "starlette", "broker"),
        (["policy", "test", "measured", "claims.json", "--offline"], "regopy", "broker"),
        (["archive", "--model-name", "m", "-v", "1", "--handler", "h.py", "--author", "a", "--key-out", "k"],
         "model_archiver", "torchserve"),
        (["demo"], "sklearn", "demo"),
    ],
)  # fmt: skip
def test_a_verb_whose_package_is_not_installed_names_the_extra(words, module, extra, tmp_path):
    (tmp_path / "claims.json").write_text('{"submods": {"cpu0": {"ear.status": "affirming"}}}')
    done = strongroom(*words, cwd=tmp_path, without=module)

    assert (done.returncode, "Traceback" in done.stderr, done.stdout) == (1, False, "")
    assert f"strongroom: hint: pip install 'strongroom[{extra}]'\n" in done.stderr


def test_a_module_that_no_extra_brings_is_a_bug_and_stays_visible(tmp_path):
    done = strongroom("inspect", "m.mar", cwd=tmp_path, without="strongroom.archive.unseal")

    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_every_package_of_an_extra_is_known_to_the_command():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for each in distributions:
            modules.setdefault(each.lower().replace("_", "-"), set()).add(module)
    for extra in set(extras) - {"test", "fuzz"}:
        for requirement in extras[extra]:
            name = re.split(r"[\[<>=]", requirement)[0]
            if name != "strongroom" and name in modules:  # tpm2-pytss is not everywhere
                assert extra in {EXTRAS.get(module) for module in modules[name]}, requirement
