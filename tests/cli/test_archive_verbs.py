"""keygen, seal, archive, inspect, verify and rewrap as a user types them."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from archive.makings import MANIFEST, model_files, write_folder, write_mar
from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey
from strongroom.archive.slots import Generation
from strongroom.archive.unseal import SealedArchive
from strongroom.cli import keygen
from strongroom.cli.archive import gather
from strongroom.cli.sealing import holder
from strongroom.errors import ReleaseError, SealRefused
from typer.testing import CliRunner


@pytest.fixture
def run(tmp_path):
    """Runs a verb in a folder of its own; raises where its exit status is another than `status`."""

    def strongroom(*words: str | Path, status: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "strongroom.cli", *map(str, words)],
            cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done

    write_mar(tmp_path / "tiny.mar", model_files())
    return strongroom


@pytest.fixture
def keyed(run):
    run("keygen", "author")
    return run


def test_a_model_is_sealed_inspected_and_verified(keyed, tmp_path):
    said = keyed("seal", "tiny.mar", "--author", "author.key", "--key-out", "tiny.modelkey").stdout
    assert said == "tiny.sealed.mar: 5 files sealed, 2 left readable for TorchServe\n"

    told = keyed("inspect", "tiny.sealed.mar").stderr
    assert told.startswith("tiny.sealed.mar: what everybody can read;")
    shown = json.loads(keyed("inspect", "--json", "tiny.sealed.mar").stdout)
    assert shown["resource"].startswith("default/tiny/1-")
    assert "tiny_handler" not in json.dumps(shown)
    said = keyed("verify", "tiny.sealed.mar", "--author", "author.pub", "--key", "tiny.modelkey").stdout
    assert "its 5 files open" in said
    assert (tmp_path / "tiny.modelkey").stat().st_mode & 0o777 == 0o600


def test_sealing_for_nobody_is_refused(keyed, tmp_path):
    failed = keyed("seal", "tiny.mar", "--author", "author.key", status=2)

    assert "nobody would keep the key" in failed.stderr
    assert "hint: " in failed.stderr
    assert not (tmp_path / "tiny.sealed.mar").exists()


def test_a_public_key_does_not_sign(keyed):
    failed = keyed("seal", "tiny.mar", "--author", "author.pub", "--key-out", "k", status=1)

    assert "sealing signs, so it needs the private key" in failed.stderr


def test_a_key_file_that_exists_keeps_the_archive_from_being_written(keyed, tmp_path):
    (tmp_path / "k").write_text("an older key")
    failed = keyed("seal", "tiny.mar", "--author", "author.key", "--key-out", "k", status=1)

    assert "exists already" in failed.stderr
    assert not (tmp_path / "tiny.sealed.mar").exists()


def test_an_unknown_author_is_refused_with_the_next_step(keyed):
    keyed("keygen", "author", "other")
    keyed("seal", "tiny.mar", "--author", "author.key", "--key-out", "k", "-o", "s.mar")
    failed = keyed("verify", "s.mar", "--author", "other.pub", status=1)

    assert "whom nobody here trusts" in failed.stderr
    assert "hint: if you trust this author" in failed.stderr


def test_a_tampered_archive_is_refused(keyed, tmp_path):
    keyed("seal", "tiny.mar", "--author", "author.key", "--key-out", "k", "-o", "s.mar")
    octets = bytearray((tmp_path / "s.mar").read_bytes())
    octets[-3000] ^= 1
    (tmp_path / "s.mar").write_bytes(octets)

    assert "is not the one that was signed" in keyed("verify", "s.mar", "--author", "author.pub", status=1).stderr


def test_hybrid_authors_satisfy_a_demand_for_hybrid(keyed):
    keyed("keygen", "author", "pq", "--hybrid")
    keyed("seal", "tiny.mar", "--author", "pq.key", "--key-out", "k", "-o", "s.mar")

    assert "(hybrid)" in keyed("verify", "s.mar", "--author", "pq.pub", "--demand", "hybrid").stdout


def test_recipients_come_and_go(keyed):
    keyed("keygen", "identity", "alice")
    keyed("keygen", "identity", "bob", "--classical")
    keyed("seal", "tiny.mar", "--author", "author.key", "--recipient", "alice.recipient", "-o", "s.mar")
    said = keyed("rewrap", "s.mar", "--identity", "alice.identity", "--add", "bob.recipient").stdout
    assert said == "s.mar: 2 recipients now (xwing, x25519)\n"

    keyed("rewrap", "s.mar", "--identity", "bob.identity", "--remove", "alice.recipient")
    keyed("verify", "s.mar", "--author", "author.pub", "--identity", "bob.identity")
    keyed("verify", "s.mar", "--author", "author.pub", "--identity", "alice.identity", status=1)


def test_recipients_that_a_stranger_changed_are_found_and_mended_as_the_hint_says(keyed, tmp_path):
    keyed("keygen", "identity", "alice")
    keyed(
        "seal", "tiny.mar", "--author", "author.key", "--key-out", "k", "--recipient", "alice.recipient", "-o", "s.mar"
    )
    with SealedArchive.open(tmp_path / "s.mar") as archive:
        path, at = archive.slots_place
        forged = Generation(2, archive.area.current.slots, bytes(32)).serialise(archive.core.generation)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(forged)

    failed = keyed("verify", "s.mar", "--author", "author.pub", "--key", "k", status=1)
    assert "their MAC does not hold" in failed.stderr
    assert "strongroom rewrap SEALED.mar --key KEY --replace --add FILE" in failed.stderr
    keyed("rewrap", "s.mar", "--key", "k", "--replace", "--add", "alice.recipient")
    keyed("verify", "s.mar", "--author", "author.pub", "--identity", "alice.identity")


def test_a_passphrase_is_read_from_standard_input_where_there_is_no_terminal(keyed):
    keyed("seal", "tiny.mar", "--author", "author.key", "--passphrase", "-o", "s.mar", stdin="correct horse\n")
    keyed("keygen", "identity", "alice")

    keyed("rewrap", "s.mar", "--passphrase", "--add", "alice.recipient", status=1, stdin="wrong\n")
    keyed("rewrap", "s.mar", "--passphrase", "--add", "alice.recipient", stdin="correct horse\n")


def test_an_ordinary_archive_is_not_inspected_as_a_sealed_one(keyed):
    assert "is it a sealed archive at all?" in keyed("inspect", "tiny.mar", status=1).stderr


@pytest.fixture
def sources(tmp_path) -> Path:
    """A model's files as an author has them before packaging."""
    folder = tmp_path / "sources"
    (folder / "assets/deep").mkdir(parents=True)
    (folder / "assets/__pycache__").mkdir()
    (folder / "assets/.git").mkdir()
    for name, octets in {
        "weights.pt": b"w" * 9000, "net.py": b"class Net: ...\n", "serve.py": b"def handle(d, c): ...\n",
        "labels.txt": b"a\n", "more.txt": b"b\n", "assets/vocab.json": b"{}", "assets/deep/x.bin": b"x",
        "assets/__pycache__/y.pyc": b"y", "assets/.git/z": b"z", "settings.yaml": b"minWorkers: 1\n",
    }.items():  # fmt: skip
        (folder / name).write_bytes(octets)
    return folder


def test_archive_packs_what_torch_model_archiver_packs(sources, tmp_path):
    pytest.importorskip("model_archiver", reason="SKIPPED LOUDLY: no torch-model-archiver here")
    flags = {
        "serialized_file": "weights.pt", "model_file": "net.py", "handler": "serve.py", "config_file": "settings.yaml",
    }  # fmt: skip
    flags = {name: str(sources / value) for name, value in flags.items()}
    extra = f"{sources}/labels.txt,{sources}/m*.txt,{sources}/assets"
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    archiver = [sys.executable, "-m", "model_archiver.model_packaging"]
    common = ["--model-name", "cats", "-v", "2.0", "--extra-files", extra]
    temp = tmp_path / "temp"
    temp.mkdir()
    subprocess.run(
        [*archiver, *common, *words, "--export-path", tmp_path],
        check=True, env={"TMPDIR": str(temp), "PATH": ""}, capture_output=True, timeout=60,
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "cats.mar") as packed:
        theirs = {name: packed.read(name) for name in packed.namelist()}

    source = gather("cats", "2.0", extra_files=extra, **flags)
    ours = {}
    source.read(list(source.sizes), lambda name, stream: ours.__setitem__(name, stream.read()))
    for files in (ours, theirs):
        files[MANIFEST] = json.loads(files[MANIFEST]) | {"createdOn": ""}
    assert ours == theirs


def test_a_link_in_a_circle_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(SealRefused, match="loop") as caught:
        gather("x", "1", "base_handler", serialized_file=str(tmp_path / "loop"))
    assert caught.value.hint


def test_archive_seals_without_a_plaintext_copy(keyed, sources, tmp_path):
    pytest.importorskip("model_archiver", reason="SKIPPED LOUDLY: no torch-model-archiver here")
    said = keyed(
        "archive", "--model-name", "cats", "-v", "2.0", "--handler", sources / "serve.py", "--serialized-file",
        sources / "weights.pt", "-c", sources / "settings.yaml", "--author", "author.key", "--key-out", "cats.modelkey",
    ).stdout  # fmt: skip

    assert said == "cats.mar: 4 files sealed, 2 left readable for TorchServe\n"
    assert b"w" * 64 not in (tmp_path / "cats.mar").read_bytes()
    keyed("verify", "cats.mar", "--author", "author.pub", "--key", "cats.modelkey")


def test_an_archive_is_packaged_on_the_terms_on_which_one_is_sealed(keyed, sources, tmp_path):
    pytest.importorskip("model_archiver", reason="SKIPPED LOUDLY: no torch-model-archiver here")
    words = (
        "archive", "--model-name", "cats", "-v", "2.0", "--handler", sources / "serve.py", "--serialized-file",
        sources / "weights.pt", "--author", "author.key",
    )  # fmt: skip
    more = ("--expires", "2999-01-31", "--lease-required", "--owner", "acme", "--padding", "--passphrase")
    keyed(*words, *more, stdin="correct horse\n")

    shown = json.loads(keyed("inspect", "cats.mar", "--json").stdout)
    assert (shown["expires"], shown["lease_required"]) == ("2999-01-31T00:00:00+00:00", True)
    assert (shown["owner"], shown["recipients"]) == ("acme", ["passphrase"])
    assert "--lease is about the key" in keyed(*words, "-f", "--passphrase", "--lease", "9", status=2).stderr
    wrong = keyed(*words, "--key-out", "k", "--archive-format", "tgz", status=2).stderr
    assert "--archive-format tgz cannot be sealed" in wrong
    assert "is no PEM public key" in keyed(*words, "--key-out", "k", "--broker-key", "author.key", status=1).stderr


def test_whoever_may_set_terms_when_sealing_may_do_so_when_packaging():
    from strongroom.cli.archive import archive
    from strongroom.cli.seal import seal

    packaging = set(inspect.signature(archive).parameters)
    # These have other names there: those of torch-model-archiver.
    other = {"source", "output", "directory"}
    assert set(inspect.signature(seal).parameters) - other <= packaging


PLUGIN = '''
"""A recipient that hides a key under a word, and a signer that keeps its key to itself. For tests."""

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.exceptions import InvalidTag
from strongroom.errors import NoRecipient
from strongroom.hookspecs import RecipientOffer, SignerOffer, hookimpl
from strongroom.keys import ModelKey


class Word:
    def __init__(self, text):
        self.key = hashlib.sha256(text.encode()).digest()

    def wrap(self, model_key, context):
        return AESGCM(self.key).encrypt(bytes(12), model_key.reveal(), context)

    def unwrap(self, wrapped, context):
        try:
            return ModelKey(AESGCM(self.key).decrypt(bytes(12), wrapped, context))
        except InvalidTag as error:
            raise NoRecipient("not mine") from error


class Card:
    def __init__(self, text):
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(text.encode()).digest())

    def public_keys(self):
        return self.key.public_key().public_bytes_raw()

    def sign(self, message):
        return self.key.sign(message)


@hookimpl
def strongroom_recipients():
    return [RecipientOffer("word", Word)]


@hookimpl
def strongroom_signers():
    return [SignerOffer("card", Card)]
'''


def test_a_plugin_brings_recipients_and_signers(keyed, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "words-1.0.dist-info").mkdir(parents=True)
    (site / "words.py").write_text(PLUGIN)
    (site / "words-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: words\nVersion: 1.0\n")
    (site / "words-1.0.dist-info/entry_points.txt").write_text("[strongroom]\nwords = words\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    plugin = ("--plugin", "words")
    keyed("seal", "tiny.mar", "--author", "card:7", "--recipient", "word:open", "-o", "s.mar", *plugin)
    author = json.loads(keyed("inspect", "s.mar", "--json").stdout)
    assert author["recipients"] == ["provider word"]

    from strongroom.archive.unseal import SealedArchive

    with SealedArchive.open(tmp_path / "s.mar") as archive:
        archive.header.author.save(tmp_path / "card.pub")
    keyed("verify", "s.mar", "--author", "card.pub", "--identity", "word:open", *plugin)
    keyed("verify", "s.mar", "--author", "card.pub", "--identity", "word:shut", *plugin, status=1)
    # Without being named the plugin is not loaded.
    keyed("verify", "s.mar", "--author", "card.pub", "--identity", "word:open", status=1)


@pytest.mark.parametrize("places", [("x", "x"), ("folder/k", "folder"), ("x", "./x"), ("folder", "folder")])
def test_an_archive_does_not_replace_its_own_key(places, keyed, tmp_path):
    key, output = places
    if output == "folder":
        (tmp_path / "folder").mkdir()
    form = ("--directory",) if output == "folder" else ()
    words = ("--author", "author.key", "--key-out", key, "-o", output, "--force", *form)

    assert "would replace its own key" in keyed("seal", "tiny.mar", *words, status=1).stderr


def test_a_key_file_under_another_name_of_the_output_is_refused(keyed, tmp_path):
    (tmp_path / "out").write_text("old")
    (tmp_path / "k").hardlink_to(tmp_path / "out")
    words = ("--author", "author.key", "--key-out", "k", "-o", "out", "--force")

    assert "would replace its own key" in keyed("seal", "tiny.mar", *words, status=1).stderr


def test_a_sealed_folder_lies_beside_the_folder_that_was_sealed(keyed, tmp_path):
    write_folder(tmp_path / "model", model_files())
    said = keyed("seal", "model", "--directory", "--force", "--author", "author.key", "--key-out", "k").stdout

    assert said.startswith("model.sealed: ")
    assert (tmp_path / "model/model.pt").read_bytes() == model_files()["model.pt"]
    keyed("verify", "model.sealed", "--author", "author.pub", "--key", "k")


def test_packaging_a_folder_replaces_no_folder_of_the_authors(keyed, sources, tmp_path):
    pytest.importorskip("model_archiver", reason="SKIPPED LOUDLY: no torch-model-archiver here")
    words = ("--handler", sources / "serve.py", "--serialized-file", sources / "weights.pt", "--author", "author.key")
    more = ("--archive-format", "no-archive", "-f", "--key-out", "k")
    named = ("archive", "-v", "1.0", "--model-name")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("one")

    assert "holds or lies in" in keyed(*named, "sources", *words, *more, status=1).stderr
    assert "did not write" in keyed(*named, "thesis", *words, *more, status=1).stderr
    assert (sources / "weights.pt").exists() and (tmp_path / "thesis/chapter.txt").exists()
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("place", ["absent/k", "k" * 250])
def test_a_key_that_could_not_be_written_is_found_before_anything_is_sealed(place, keyed, tmp_path):
    failed = keyed("seal", "tiny.mar", "--author", "author.key", "--key-out", place, status=1)

    assert "hint: " in failed.stderr
    assert not (tmp_path / "tiny.sealed.mar").exists()


def test_a_key_file_goes_when_its_archive_gets_no_name(keyed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep = holder(None, None, Path("k"), output=Path("out"), version=1)

    def late(sealed):
        (tmp_path / "out").mkdir()
        return keep(sealed)

    with pytest.raises(SealRefused, match="exists already"):
        seal_archive(Path("tiny.mar"), Path("out"), author=AuthorKey.load("author.key"), before_publish=late)
    assert not (tmp_path / "k").exists()


def test_rewrap_leaves_an_archive_to_nobody_only_when_that_is_said(keyed):
    keyed("keygen", "identity", "alice")
    keyed("seal", "tiny.mar", "--author", "author.key", "--recipient", "alice.recipient", "-o", "s.mar")
    words = ("rewrap", "s.mar", "--identity", "alice.identity")

    for leaving in (["--replace"], ["--remove", "alice.recipient"]):
        assert "nobody could ever open it" in keyed(*words, *leaving, status=1).stderr
    keyed("keygen", "identity", "bob")
    assert "bob.recipient is no recipient" in keyed(*words, "--remove", "bob.recipient", status=1).stderr
    assert "0 recipients now (none)" in keyed(*words, "--replace", "--allow-none").stdout


@pytest.mark.parametrize("verb", ["author", "identity"])
@pytest.mark.parametrize("name", [".", "/", "", ".."])
def test_keys_without_a_name_are_refused_with_the_next_step(verb, name):
    app = typer.Typer()
    app.callback()(lambda: None)
    keygen.register(app)
    done = CliRunner().invoke(app, ["keygen", verb, name])

    assert "gives no name for key files" in str(done.exception)
    assert "say a name" in done.exception.hint


@pytest.mark.parametrize(
    ("verb", "private", "public"), [("author", "key", "pub"), ("identity", "identity", "recipient")]
)
def test_no_private_key_is_made_where_its_public_half_has_no_room(verb, private, public, run, tmp_path):
    (tmp_path / f"alice.{public}").write_text("hers")

    assert f"alice.{public} exists already" in run("keygen", verb, "alice", status=1).stderr
    assert not (tmp_path / f"alice.{private}").exists()


def test_a_folder_without_a_name_is_sealed_only_under_a_name_that_was_given(keyed, tmp_path):
    write_folder(tmp_path / "model", model_files())
    words = ("--author", "../author.key", "--key-out", "../k")
    done = subprocess.run(
        [sys.executable, "-m", "strongroom.cli", "seal", ".", *words],
        cwd=tmp_path / "model", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert (done.returncode, "-o SEALED.mar" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--expires", "1960-01-01"], 1, "in the past"),
        (["--expires", "2020-01-01T00:00:00+14:00"], 1, "in the past"),
        (["--expires", "0001-01-01T00:00:00+23:00"], 2, "is no date"),
        (["--version", "99999999999999999999999"], 2, "18446744073709551615"),
        (["--owner", b"\xff"], 1, "the owner is no text"),
        (["--lease", "900"], 2, "--lease is about the key at a broker"),
        (["--lease", "0"], 2, "--lease"),
        (["--version", "4294967296", "--broker", "http://127.0.0.1:9", "--admin-key", "a"], 1, "up to 4294967295 only"),
    ],
)
def test_terms_that_nobody_could_keep_are_refused_before_anything_is_sealed(words, status, said, keyed, tmp_path):
    failed = keyed(
        "seal", "tiny.mar", "--author", "author.key", "--key-out", "k", *map(os.fsdecode, words), status=status
    )

    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "tiny.sealed.mar").exists()


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_a_passphrase_that_is_no_text_is_refused_and_not_repeated(locale, keyed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "strongroom.cli", "seal", "tiny.mar", "--author", "author.key", "--passphrase"],
        cwd=tmp_path, input=b"secret\xff\n", capture_output=True, timeout=120, check=False,
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip

    assert done.returncode == 1
    assert b"the passphrase is no text in UTF-8" in done.stderr
    assert b"secret" not in done.stderr


def test_a_passphrase_is_missed_where_standard_input_is_closed(keyed, tmp_path):
    command = f"{sys.executable} -m strongroom.cli seal tiny.mar --author author.key --passphrase <&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, "empty passphrase" in done.stderr) == (1, True)


def test_only_a_key_file_that_is_not_there_is_told_how_to_make_one(keyed, tmp_path):
    (tmp_path / "folder").mkdir()
    missing = keyed("seal", "tiny.mar", "--author", "absent.key", "--key-out", "k", status=1).stderr
    folder = keyed("seal", "tiny.mar", "--author", "folder", "--key-out", "k", status=1).stderr

    assert "`strongroom keygen author` makes one" in missing
    assert "keygen" not in folder


def stopped(folder: Path, size: int, number: int, before: Callable[[], object]) -> tuple[int, str]:
    """Seals a large folder, sends a signal while the draft grows, and gives (exit status, stderr)."""
    model = write_folder(folder / "model", model_files())
    with (model / "big.bin").open("wb") as file:
        file.truncate(size)
    words = ("seal", "model", "--directory", "--author", "author.key", "--key-out", "k")
    with subprocess.Popen(
        [sys.executable, "-m", "strongroom.cli", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    ) as process:
        while process.poll() is None and not any(each.suffix == ".part" for each in folder.iterdir()):
            time.sleep(0.01)
        process.send_signal(number)
        if number == signal.SIGHUP:  # a lost session sends it more than once
            process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_sealing_that_is_stopped_leaves_no_draft(number, status, keyed, tmp_path):
    done = stopped(tmp_path, 1 << 30, number, lambda: signal.signal(number, signal.SIG_DFL))  # jobs may ignore it

    assert done == (status, "strongroom: stopped\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["author.key", "author.pub", "model", "tiny.mar"]


def test_a_sealing_under_nohup_outlives_its_session(keyed, tmp_path):
    done = stopped(tmp_path, 1 << 28, signal.SIGHUP, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))

    assert done == (0, "")
    assert (tmp_path / "model.sealed").is_dir()


STRICT = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_name_that_the_terminal_cannot_show_is_printed_escaped(keyed, tmp_path):
    words = ("seal", "tiny.mar", "--author", "author.key", "--key-out", "k", "-o", b"bad\xff.mar")
    done = subprocess.run(
        [sys.executable, "-m", "strongroom.cli", *words],
        cwd=tmp_path, capture_output=True, timeout=120, check=False,
        env={**STRICT, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"bad\\udcff.mar: ")


def test_help_is_shown_where_the_terminal_has_ascii_alone():
    command = [sys.executable, "-m", "strongroom.cli", "seal", "--help"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env={**STRICT, "LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "bound"),
    [
        (["minimum", "acme/digits", "4294967296"], "4294967295"),
        (["limit", "acme/digits", "--keepers", "1000001"], "1000000"),
        (["limit", "acme/digits", "--lease", "31622401"], "31622400"),
    ],
)
def test_what_a_broker_would_refuse_is_not_sent_to_it(words, bound, run):
    refused = run("release", *words, "--broker", "http://127.0.0.1:9", "--admin-key", "a", status=2).stderr

    assert bound in refused


def test_a_broker_that_refuses_the_key_leaves_no_key_file(run, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ReleaseError("no")

    monkeypatch.setattr("strongroom.broker.client.register_model_key", refuse)
    keep = holder("https://keys.example", tmp_path / "a", tmp_path / "k", output=tmp_path / "out", version=1)
    with pytest.raises(ReleaseError):
        seal_archive(tmp_path / "tiny.mar", tmp_path / "out", author=AuthorKey.generate(), before_publish=keep)
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.mar"]
