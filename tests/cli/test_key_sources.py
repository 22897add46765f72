"""How a key gets to a keeper without a broker, and what the operator's commands say about it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from doubles.models import plain_archive
from doubles.soft_token import PIN, soft_token
from strongroom.cli import admit, doctor, key, keygen, seal
from typer.testing import CliRunner


@pytest.fixture
def folder(tmp_path):
    files = {"digits.py": b"def handle(data, context):\n    return data\n", "digits.pt": bytes(range(256)) * 40}
    plain_archive(tmp_path / "digits.mar", files, name="digits", handler="digits.py")
    (tmp_path / "model_store").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    for verb in (keygen, seal, key, admit, doctor):
        verb.register(app)
    return app


@pytest.fixture
def run(app, folder, monkeypatch):
    """The command as it is typed, in this process; `status` 1 wants an error of ours, or doctor's no."""
    monkeypatch.chdir(folder)

    def run(*words, status=0):
        result = CliRunner().invoke(app, list(words))
        if status == 0 and result.exit_code != 0:
            raise result.exception
        assert result.exit_code == status
        result.said = f"{result.exception} {getattr(result.exception, 'hint', '')}"
        return result

    run("keygen", "author", "author")
    return run


@pytest.fixture
def sealed(run, folder):
    def sealed(*more):
        words = ["--author", "author.key", "--key-out", "keys", "-o", "model_store/digits.mar", "--json", *more]
        (folder / "keys").mkdir(mode=0o700)
        return json.loads(run("seal", "digits.mar", *words).stdout)["digest"]

    return sealed


def configure(folder, keys):
    (folder / "strongroom.toml").write_text(
        f'[admission]\nauthors = ["author.pub"]\n[attestation]\ntee = "simulated"\n{keys}\n'
    )


SERVER = ["--", "torchserve", "--start", "--model-store", "model_store", "--models", "digits=digits.mar"]
FILES = '[keys]\nprovider = "file"\nfolder = "keys"'


def test_a_key_in_a_folder_is_named_after_its_archive(sealed, folder):
    digest = sealed()
    [key] = (folder / "keys").iterdir()
    assert key.name == f"{digest}.key" and key.stat().st_mode & 0o777 == 0o600


def test_a_key_is_wrapped_for_a_token_and_unwrapped_by_nothing_else(run, sealed, folder):
    digest = sealed()
    token = soft_token()
    (folder / "pin.txt").write_text(f"{PIN}\n")
    (folder / "pin.txt").chmod(0o600)
    words = ["model_store/digits.mar", "--key", f"keys/{digest}.key", "--into", "wrapped"]
    words += ["--module", token["module"], "--token", token["token"], "--pin-file", "pin.txt"]
    assert "wrapped by token" in run("key", "wrap", *words).stdout
    assert [each.name for each in (folder / "wrapped").iterdir()] == [f"{digest}.p11"]
    assert "exists already" in run("key", "wrap", *words, status=1).said
    settings = "\n".join(f'{name} = "{value}"' for name, value in (token | {"pin_file": "pin.txt"}).items())
    configure(folder, f'[keys]\nprovider = "pkcs11"\nfolder = "wrapped"\n{settings}')
    assert "unwrapped by the token 'strongroom'" in run("admit", "--config", "strongroom.toml", *SERVER).stderr
    told = json.loads(run("doctor", "--config", "strongroom.toml", "--json", status=1).stdout)["keys"]
    assert (told["provider"], told["missing"]) == ("pkcs11", "")


def test_the_key_of_another_archive_is_not_wrapped(run, sealed, folder):
    digest = sealed()
    run("seal", "digits.mar", "--author", "author.key", "--key-out", "other.key", "-o", "other.mar")
    words = ["other.mar", "--key", f"keys/{digest}.key", "--into", "wrapped", "--module", "m", "--token", "t"]
    assert "is the key of archive" in run("key", "wrap", *words, "--pin-file", "p", status=1).said


def test_admit_says_where_keys_would_come_from_and_warns_of_files(run, sealed, folder):
    sealed()
    configure(folder, FILES)
    said = run("admit", "--config", "strongroom.toml", *SERVER).stderr
    assert "model keys would come from files in keys" in said
    assert "warning: keys of models come from files" in said
    configure(folder, '[broker]\nurl = "https://keys.example"')
    said = run("admit", "--config", "strongroom.toml", *SERVER).stderr
    assert "the key broker at https://keys.example" in said and "files" not in said


def test_admit_refuses_a_configuration_from_which_no_key_could_come(run, sealed, folder):
    sealed()
    configure(folder, "")
    said = run("admit", "--config", "strongroom.toml", *SERVER, status=1).said
    assert "no model key can come" in said and "[keys] provider" in said


def test_admit_refuses_an_archive_that_demands_a_lease_where_none_can_come(run, sealed, folder):
    sealed("--lease-required")
    configure(folder, FILES)
    said = run("admit", "--config", "strongroom.toml", *SERVER, status=1).said
    assert "only under a lease" in said and "--lease-required" in said


def test_a_keeper_of_its_own_refuses_it_too(run, sealed, folder):
    sealed("--lease-required")
    configure(folder, FILES)
    words = ["keeper", "--config", "strongroom.toml", "--socket", "keeper.sock", "digits=model_store/digits.mar"]
    command = [sys.executable, "-m", "strongroom.cli", *words]  # a process of its own: a keeper hardens itself
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "only under a lease" in done.stderr


def test_a_keeper_of_its_own_says_where_it_listens_and_that_it_stopped(run, sealed, folder):
    sealed()
    configure(folder, FILES)
    words = ["keeper", "--config", "strongroom.toml", "--socket", "keeper.sock", "digits=model_store/digits.mar"]
    command = [sys.executable, "-m", "strongroom.cli", *words, "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as keeper:
        told = json.loads(keeper.stdout.readline())
        keeper.terminate()
        _, said = keeper.communicate(timeout=60)
    assert (told["socket"], list(told["archives"]), keeper.returncode) == ("keeper.sock", ["digits"], 0)
    assert said.endswith("strongroom: stopped\n")


def test_doctor_looks_at_the_configured_source(run, folder):
    configure(folder, FILES)
    said = run("doctor", "--config", "strongroom.toml", status=1).stdout
    assert "model keys come from files in keys: there is no folder" in " ".join(said.split())
    (folder / "keys").mkdir()
    assert json.loads(run("doctor", "--config", "strongroom.toml", "--json", status=1).stdout)["keys"]["missing"] == ""
