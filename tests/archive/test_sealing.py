"""Any ordinary model is sealed whole, or refused with a reason, and a failed sealing leaves nothing."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from datetime import UTC, datetime, timedelta, timezone

import pytest
from archive.conftest import TINY, contents
from archive.makings import MANIFEST, NOW, manifest, model_files, write_folder, write_mar, write_tgz
from archive.plain_reader import Plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strongroom.archive import keyfile
from strongroom.archive.blocks import Grid, Suite, padme
from strongroom.archive.keyfile import take_name
from strongroom.archive.seal import Terms, seal_archive, seal_source
from strongroom.archive.signature import AuthorKey
from strongroom.archive.source import open_source
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import ArchiveMalformed, SealRefused


def open_again(sealed, author) -> dict[str, bytes]:
    with SealedArchive.open(sealed.path) as archive:
        verified = archive.verified([author.public], now=NOW)
        verified.check_payload()
        opened = verified.unlock(sealed.key)
        opened.check_members()
        return contents(opened)


def open_plainly(sealed, author) -> dict[str, bytes]:
    plain = Plain(sealed.path)
    plain.verify([(int(author.public.kind), author.public.keys)], 0, 1)
    plain.check_list()
    plain.check_payload()
    plain.unlock(sealed.key.reveal(), None)
    return plain.read([])


@pytest.mark.parametrize("write", [write_mar, write_tgz, write_folder])
@pytest.mark.parametrize("form", ["file", "directory"])
def test_every_shape_of_model_is_sealed_in_every_form(write, form, author, tmp_path):
    files = model_files()
    sealed = seal_archive(write(tmp_path / "model", files), tmp_path / "out", author=author, form=form, **TINY)

    assert open_again(sealed, author) == files
    assert open_plainly(sealed, author) == files


@pytest.mark.parametrize("suite", list(Suite))
@pytest.mark.parametrize("kind", ["ed25519", "hybrid"])
def test_the_plain_reader_opens_every_suite_and_signature(suite, kind, mar, tmp_path):
    author = AuthorKey.generate(kind)
    sealed = seal_archive(mar, tmp_path / "out", author=author, suite=suite, padding=True)

    assert open_plainly(sealed, author) == open_again(sealed, author) == model_files()


sizes = st.one_of(
    st.integers(0, 40), st.integers(4050, 4120), st.integers(0, 3).map(lambda n: n * 4096), st.integers(0, 20_000)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(sizes, min_size=1, max_size=8), seed=st.integers(0, 255), padding=st.booleans())
def test_files_of_any_sizes_come_back_from_both_readers(lengths, seed, padding, author, tmp_path):
    octets = bytes(range(256)) * 80
    files = {f"f{i}": octets[seed : seed + size] for i, size in enumerate(lengths)} | {MANIFEST: manifest()}
    source = tmp_path / "source.tgz"
    write_tgz(source, files)
    sealed = seal_archive(source, tmp_path / "out", author=author, padding=padding, overwrite=True, **TINY)

    assert open_again(sealed, author) == files
    assert open_plainly(sealed, author) == files
    assert not padding or sealed.core.payload_length == padme(sealed.core.payload_length)


@given(length=st.integers(1, 1 << 48))
def test_padme_adds_at_most_an_eighth_and_is_idempotent(length):
    padded = padme(length)

    assert length <= padded <= length * 1.12 + 1
    assert padme(padded) == padded


@given(at=st.integers(0, 1 << 20), log2=st.integers(12, 14))
def test_the_padding_member_reaches_a_padme_length(at, log2):
    grid = Grid(log2)
    start = grid.start(at)
    end = grid.end(start, grid.padding(at))

    assert padme(end) == end


@given(st.data(), st.integers(12, 14), st.integers(0, 40_000), st.integers(0, 60_000))
def test_chunks_tile_a_member_and_each_lies_in_one_block(data, log2, at, size):
    grid = Grid(log2)
    start = grid.start(at)
    chunks = list(grid.chunks(start, size))

    assert sum(chunk.size for chunk in chunks) == size
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.at // grid.block == (chunk.at + chunk.sealed_size - 1) // grid.block for chunk in chunks)
    assert chunks[-1].at + chunks[-1].sealed_size == grid.end(start, size)
    if size:
        offset = data.draw(st.integers(0, size - 1))
        found = chunks[grid.find(start, size, offset)]
        assert found.offset <= offset < found.offset + found.size


def test_the_largest_file_lies_first_so_that_its_chunks_are_aligned(sealed):
    assert sealed.members[0].name == "model.pt"
    assert sealed.members[0].start == 0


def test_what_the_author_said_stands_in_the_signed_core(mar, author, tmp_path):
    expiry = datetime(2999, 1, 31, tzinfo=UTC)
    sealed = seal_archive(
        mar, tmp_path / "out", author=author, tenant="acme", lineage="cats", version=7, expiry=expiry,
        lease_required=True, owner="policy-3", broker_key=b"\x30\x00",
    )  # fmt: skip
    core = sealed.core

    assert sealed.resource == ("acme", "cats", f"7-{sealed.digest}")
    assert (core.lease_required, core.owner, core.broker_key) == (True, "policy-3", b"\x30\x00")
    assert datetime.fromtimestamp(core.expiry, UTC) - expiry < timedelta(seconds=1)


def test_only_what_the_frontend_reads_is_readable(author, tmp_path):
    config = b"minWorkers: 2\ndeviceIds: [0, 1]\nhandler:\n  prompt: TOPSECRET\n"
    files = model_files() | {"model-config.yaml": config, MANIFEST: manifest(configFile="model-config.yaml")}
    sealed = seal_archive(write_mar(tmp_path / "m.mar", files), tmp_path / "out", author=author)
    with SealedArchive.open(sealed.path) as archive:
        clear = archive.verified([author.public], now=NOW).clear_members()

    expected = b"deviceIds: [0, 1]\nminWorkers: 2\nresponseTimeout: 120\nstartupTimeout: 120\n"
    assert clear["model-config.yaml"] == expected
    assert b"tiny_handler" not in clear[MANIFEST]
    assert b"TOPSECRET" not in sealed.path.read_bytes()
    assert open_again(sealed, author)["model-config.yaml"] == config


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"requirements.txt": b"evil"}, "install"),
        ({MANIFEST: manifest(requirementsFile="r.txt")}, "install"),
        ({"WAR-INF/MANIFEST.json": b"{}"}, "workflow"),
        ({"SEALED-INF/header": b""}, "sealed already"),
        ({"../escape.py": b""}, "relative path"),
        ({"/abs.py": b""}, "relative path"),
        ({"a\nb": b""}, "character"),
        ({"MODEL.PT": b""}, "twice"),
        ({"model.pt/x": b""}, "folder"),
        ({MANIFEST: b"[]"}, "not a model's manifest"),
        ({MANIFEST: manifest("bad name")}, "model name"),
        ({MANIFEST: manifest().replace(b'"python"', b'"LSP"')}, "runtime"),
        ({"c.yaml": b"useVenv: true", MANIFEST: manifest(configFile="c.yaml")}, "useVenv"),
        ({"c.yaml": b"parallelType: tp", MANIFEST: manifest(configFile="c.yaml")}, "torchrun"),
        ({"c.yaml": b"continuousBatching: true", MANIFEST: manifest(configFile="c.yaml")}, "continuousBatching"),
        ({"c.yaml": b"asyncCommunication: true", MANIFEST: manifest(configFile="c.yaml")}, "asyncCommunication"),
        ({"c.yaml": b"minWorkers: many", MANIFEST: manifest(configFile="c.yaml")}, "minWorkers"),
        ({"c.yaml": b"a: [", MANIFEST: manifest(configFile="c.yaml")}, "YAML"),
        ({MANIFEST: manifest(configFile="none.yaml")}, "not there"),
        ({"c.yaml": b"day: 2024-13-45", MANIFEST: manifest(configFile="c.yaml")}, "YAML"),
        ({"c.yaml": b"? !!timestamp foo", MANIFEST: manifest(configFile="c.yaml")}, "YAML"),
        ({"c.yaml": b'x: !!int ""', MANIFEST: manifest(configFile="c.yaml")}, "YAML"),
        ({MANIFEST: manifest().replace(b'"python"', b"[]")}, "runtime is .*no text"),
        ({MANIFEST: manifest().replace(b'"python"', b"null")}, "its runtime"),
        ({MANIFEST: manifest().replace(b'"tiny"', b"null")}, "model name"),
        ({MANIFEST: manifest().replace(b'"1.0"', b"true")}, "modelVersion is True, and no text"),
        ({MANIFEST: manifest().replace(b'"1.0"', b"1.10")}, "modelVersion is 1.1, and no text"),
        ({MANIFEST: manifest().replace(b'"tiny_handler.py"', b"{}")}, "handler is"),
    ],
)
def test_a_model_that_cannot_be_sealed_is_refused_with_the_reason(changes, reason, author, tmp_path):
    source = write_mar(tmp_path / "m.mar", model_files() | changes)

    with pytest.raises(SealRefused, match=reason):
        seal_archive(source, tmp_path / "out", author=author)
    assert os.listdir(tmp_path) == ["m.mar"]


@pytest.mark.parametrize(("written", "version"), [(b'"2.10"', "2.10"), (b"3", "3"), (b"null", "1.0"), (b'""', "1.0")])
def test_a_models_version_is_what_the_server_would_read(written, version, author, tmp_path):
    files = model_files() | {MANIFEST: manifest().replace(b'"1.0"', written)}
    sealed = seal_archive(write_mar(tmp_path / "m.mar", files), tmp_path / "out", author=author, **TINY)
    with SealedArchive.open(sealed.path) as archive:
        assert archive.clear.version == version


@pytest.mark.parametrize("long", [MANIFEST, "model-config.yaml", "model.pt"])
def test_a_tar_that_breaks_off_within_a_file_is_refused_and_no_crash(long, author, tmp_path):
    octets = random.Random(7).randbytes(300_000).hex().encode()
    source = write_tgz(tmp_path / "m.tgz", {MANIFEST: manifest()} | {long: octets})
    source.write_bytes(source.read_bytes()[:150_000])

    with pytest.raises(SealRefused, match="cannot be read") as caught:
        seal_archive(source, tmp_path / "out", author=author)
    assert caught.value.hint


def test_a_tar_that_breaks_off_after_it_was_listed_is_refused(author, tmp_path):
    files = {MANIFEST: manifest(), "model.pt": random.Random(7).randbytes(300_000)}
    source = write_tgz(tmp_path / "m.tgz", files)

    with open_source(source) as opened, pytest.raises(SealRefused, match="cannot be read"):
        source.write_bytes(source.read_bytes()[:150_000])
        seal_source(opened, tmp_path / "out", author=author, terms=Terms(), **TINY)


def test_requirements_are_sealed_along_only_when_that_is_said(author, tmp_path):
    files = model_files() | {"requirements.txt": b"left-pad\n"}
    source = write_mar(tmp_path / "m.mar", files)
    sealed = seal_archive(source, tmp_path / "out", author=author, allow_requirements=True, **TINY)

    assert open_again(sealed, author) == files
    assert b"equirements" not in sealed.path.read_bytes()


def test_a_model_without_manifest_is_refused(author, tmp_path):
    source = write_mar(tmp_path / "m.mar", {"model.pt": b"x"})

    with pytest.raises(SealRefused, match="no model archive"):
        seal_archive(source, tmp_path / "out", author=author)


def test_a_name_twice_in_the_zip_is_refused(author, tmp_path):
    source = tmp_path / "m.mar"
    write_mar(source, model_files())
    with zipfile.ZipFile(source, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model.pt", b"other")

    with pytest.raises(SealRefused, match="twice"):
        seal_archive(source, tmp_path / "out", author=author)


@pytest.mark.parametrize("shape", ["zip", "tgz", "folder"])
def test_a_symbolic_link_is_refused(shape, author, tmp_path):
    if shape == "folder":
        source = write_folder(tmp_path / "m", model_files())
        (source / "link").symlink_to("/etc/passwd")
    elif shape == "zip":
        source = write_mar(tmp_path / "m.mar", model_files())
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        with zipfile.ZipFile(source, "a") as archive:
            archive.writestr(info, "/etc/passwd")
    else:
        source = tmp_path / "m.tgz"
        with tarfile.open(source, "w:gz") as archive:
            info = tarfile.TarInfo("tiny/link")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)

    with pytest.raises(SealRefused, match="no regular file"):
        seal_archive(source, tmp_path / "out", author=author)


@pytest.mark.timeout(20)
def test_a_pipe_is_no_model_and_nobody_waits_for_its_other_end(author, tmp_path):
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(SealRefused, match="no regular file") as caught:
        seal_archive(tmp_path / "fifo", tmp_path / "out", author=author)
    assert caught.value.hint


@pytest.mark.timeout(20)
def test_a_file_that_became_a_pipe_is_refused_and_nobody_waits(author, tmp_path):
    source = write_folder(tmp_path / "m", model_files())
    with open_source(source) as opened:
        (source / "model.pt").unlink()
        os.mkfifo(source / "model.pt")

        with pytest.raises(SealRefused, match="no regular file"):
            seal_source(opened, tmp_path / "out", author=author, terms=Terms(), **TINY)


def test_an_existing_output_is_not_replaced_unless_that_is_said(mar, author, tmp_path):
    output = tmp_path / "out"
    output.write_text("mine")

    with pytest.raises(SealRefused, match="exists already"):
        seal_archive(mar, output, author=author)
    assert output.read_text() == "mine"

    sealed = seal_archive(mar, output, author=author, overwrite=True)
    assert open_again(sealed, author) == model_files()


def test_a_folder_is_replaced_by_one_that_is_whole(author, tmp_path):
    source = write_folder(tmp_path / "m", model_files())
    for fill in (b"old", b"new"):
        (source / "model.pt").write_bytes(fill)
        sealed = seal_archive(source, tmp_path / "out", author=author, form="directory", overwrite=True, **TINY)

    assert open_again(sealed, author)["model.pt"] == b"new"
    assert sorted(os.listdir(tmp_path)) == ["m", "out"]


@pytest.mark.parametrize("moment", ["while it writes", "before it has its name"])
def test_a_sealing_that_is_killed_leaves_nothing_behind(moment, mar, author, tmp_path):
    author.save(tmp_path / "author.key")
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from strongroom.archive.seal import seal_archive\n"
        "from strongroom.archive.signature import AuthorKey\n"
        "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "when = {'while it writes': 'progress', 'before it has its name': 'before_publish'}[sys.argv[4]]\n"
        "author = AuthorKey.load(sys.argv[3])\n"
        "seal_archive(Path(sys.argv[1]), Path(sys.argv[2]), author=author, chunk_log2=12, **{when: die})\n"
    )
    words = [sys.executable, "-c", program, mar, tmp_path / "out", tmp_path / "author.key", moment]
    killed = subprocess.run([str(word) for word in words], check=False, timeout=60)

    assert killed.returncode == -9
    assert sorted(os.listdir(tmp_path)) == ["author.key", mar.name]


def test_a_file_system_without_nameless_files_gets_a_draft_instead(mar, author, tmp_path, monkeypatch):
    real = os.open

    def without(path, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", without)
    sealed = seal_archive(mar, tmp_path / "out", author=author, **TINY)

    assert open_again(sealed, author) == model_files()
    assert sorted(os.listdir(tmp_path)) == ["out", mar.name]


def no_links(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("library", [ctypes.CDLL(None, use_errno=True), object()], ids=["renameat2", "neither"])
def test_where_there_are_no_hard_links_nothing_is_replaced_either(library, mar, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    (tmp_path / "draft").write_bytes(b"whole")
    take_name(tmp_path / "draft", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b"whole"
    with pytest.raises(FileExistsError):
        take_name(mar, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", mar.name]


def test_where_there_are_no_hard_links_the_name_is_taken_in_one_step(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", no_links)  # the second of two steps
    (tmp_path / "draft").write_bytes(b"whole")
    take_name(tmp_path / "draft", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b"whole"


def test_a_key_that_nobody_took_leaves_no_archive(mar, author, tmp_path):
    def broker_is_down(_: object) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        seal_archive(mar, tmp_path / "out", author=author, before_publish=broker_is_down)
    assert os.listdir(tmp_path) == [mar.name]


def test_the_key_is_handed_over_before_the_archive_has_its_name(mar, author, tmp_path):
    seen = []
    sealed = seal_archive(
        mar, tmp_path / "out", author=author, before_publish=lambda each: seen.append((each.digest, each.path.exists()))
    )

    assert seen == [(sealed.digest, False)]
    assert sealed.path.exists()


def test_a_zip_with_a_wrong_checksum_is_refused(author, tmp_path):
    source = tmp_path / "m.mar"
    with zipfile.ZipFile(source, "w") as archive:
        for name, octets in model_files().items():
            archive.writestr(name, octets)
    octets = bytearray(source.read_bytes())
    octets[octets.index(b"\x41\x42\x43\x44")] ^= 1
    source.write_bytes(octets)

    with pytest.raises(SealRefused, match="cannot be read"):
        seal_archive(source, tmp_path / "out", author=author)
    assert os.listdir(tmp_path) == ["m.mar"]


def test_a_zip_that_zipfile_cannot_read_is_refused_and_no_crash(mar, author, tmp_path):
    """Found by fuzzing: a version needed that zipfile does not implement."""
    octets = bytearray(mar.read_bytes())
    octets[octets.rindex(b"PK\1\2") + 6] = 0xFF
    mar.write_bytes(octets)

    with pytest.raises(SealRefused, match="cannot be read"):
        seal_archive(mar, tmp_path / "out", author=author)


def test_a_zip_entry_without_a_name_is_refused_and_no_crash(mar, author, tmp_path):
    """Found by fuzzing: zipfile itself stumbles over such an entry."""
    with zipfile.ZipFile(mar, "a") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"nameless")

    with pytest.raises(SealRefused, match="name has 0 bytes"):
        seal_archive(mar, tmp_path / "out", author=author)


def test_sealing_needs_memory_for_chunks_and_not_for_the_model(author, tmp_path):
    source = write_folder(tmp_path / "m", model_files())
    with (source / "big.bin").open("wb") as file:
        file.truncate(400 << 20)
    author.save(tmp_path / "author.key")
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from strongroom.archive.seal import seal_archive\n"
        "from strongroom.archive.signature import AuthorKey\n"
        "author = AuthorKey.load(sys.argv[3])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "seal_archive(Path(sys.argv[1]), Path(sys.argv[2]), author=author, threads=2)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    run = [sys.executable, "-c", program, str(source), str(tmp_path / "out"), str(tmp_path / "author.key")]
    grown = subprocess.run(run, check=True, capture_output=True, text=True, timeout=120).stdout

    assert int(grown) < 100


@pytest.mark.parametrize("output", ["model", "model/inside", "."])
def test_an_output_that_is_holds_or_lies_in_the_source_is_refused(output, author, tmp_path):
    folder = tmp_path / "all"
    source = write_folder(folder / "model", model_files())

    with pytest.raises(SealRefused, match="is, holds or lies in"):
        seal_archive(source, folder / output, author=author, form="directory", overwrite=True, **TINY)
    assert (source / "model.pt").read_bytes() == model_files()["model.pt"]


def test_an_archive_does_not_replace_the_model_that_it_is_made_from(mar, author, tmp_path):
    before = mar.read_bytes()
    (tmp_path / "link").symlink_to(mar)
    for source, output in ((mar, mar), (tmp_path / "link", mar), (mar, tmp_path / "link")):
        with pytest.raises(SealRefused, match="is, holds or lies in"):
            seal_archive(source, output, author=author, overwrite=True, **TINY)
    assert mar.read_bytes() == before


def test_a_sealed_folder_replaces_a_sealed_folder_only(mar, author, tmp_path):
    again = {"author": author, "form": "directory", "overwrite": True, **TINY}
    seal_archive(mar, tmp_path / "out", **again)
    open_again(seal_archive(mar, tmp_path / "out", **again), author)
    thesis = write_folder(tmp_path / "thesis", {"chapter.txt": b"one"})

    with pytest.raises(SealRefused, match="did not write"):
        seal_archive(mar, thesis, **again)
    assert (thesis / "chapter.txt").read_bytes() == b"one"


def test_a_form_does_not_replace_the_other_one(mar, author, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()

    with pytest.raises(SealRefused, match="is no folder"):
        seal_archive(mar, tmp_path / "file", author=author, form="directory", overwrite=True, **TINY)
    with pytest.raises(SealRefused, match="is no file"):
        seal_archive(mar, tmp_path / "folder", author=author, overwrite=True, **TINY)


def fail_if_sealed(*_: object) -> None:
    raise AssertionError("it was sealed")


def test_a_name_that_is_too_long_is_refused_before_anything_is_sealed(mar, author, tmp_path):
    with pytest.raises(SealRefused, match="File name too long"):
        seal_archive(mar, tmp_path / ("x" * 250), author=author, progress=fail_if_sealed, **TINY)


@pytest.mark.parametrize("form", ["file", "directory"])
def test_a_name_that_cannot_be_taken_undoes_what_was_done_with_the_key(form, mar, author, tmp_path):
    undone = []

    def keep(_: object):
        (tmp_path / "out").mkdir()  # somebody takes the name in the last moment
        return lambda: undone.append(True)

    with pytest.raises(SealRefused, match="exists already"):
        seal_archive(mar, tmp_path / "out", author=author, form=form, before_publish=keep, **TINY)
    assert undone == [True]


@pytest.mark.parametrize("form", ["file", "directory"])
def test_a_key_stays_where_its_archive_has_the_name_already(form, mar, author, tmp_path, monkeypatch):
    def full(_: object) -> None:
        raise OSError(5, "Input/output error")

    def keep(_: object):
        monkeypatch.setattr(keyfile, "sync_folder", full)
        return lambda: pytest.fail("the key of an archive that is there was thrown away")

    with pytest.raises(SealRefused, match="Input/output error"):
        seal_archive(mar, tmp_path / "out", author=author, form=form, before_publish=keep, **TINY)
    assert (tmp_path / "out").exists()


def test_a_folder_that_cannot_take_the_name_brings_the_old_one_back(mar, author, tmp_path, monkeypatch):
    again = {"author": author, "form": "directory", "overwrite": True, **TINY}
    first = seal_archive(mar, tmp_path / "out", **again)
    real = os.rename

    def rename(source, target):
        if str(source).endswith(".part"):
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(SealRefused, match="not permitted"):
        seal_archive(mar, tmp_path / "out", **again)
    assert open_again(first, author) == model_files()
    assert sorted(os.listdir(tmp_path)) == ["out", mar.name]


def test_a_number_that_the_header_has_no_room_for_is_refused(mar, author, tmp_path):
    with pytest.raises(ArchiveMalformed, match="no number of 64 bits"):
        seal_archive(mar, tmp_path / "out", author=author, version=1 << 64, **TINY)


@pytest.mark.parametrize(
    ("expiry", "said"),
    [
        (datetime(1960, 1, 1, tzinfo=UTC), "in the past"),
        (datetime(2020, 1, 1, tzinfo=UTC), "in the past"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23))), "in the past"),
        (datetime(2999, 1, 1), "has no time zone"),
    ],
)
def test_an_expiry_that_is_over_or_that_each_reader_would_guess_is_refused(expiry, said, mar, author, tmp_path):
    with pytest.raises(SealRefused, match=said) as caught:
        seal_archive(mar, tmp_path / "out", author=author, expiry=expiry, **TINY)
    assert caught.value.hint


@pytest.mark.parametrize(
    "option",
    [
        {"suite": 7},
        {"chunk_log2": -1},
        {"chunk_log2": 27},
        {"slot_pages": 0},
        {"slot_pages": 300},
        {"threads": -1},
        {"broker_key": bytes(70_000)},
        {"broker_key": b""},
    ],
    ids=str,
)
def test_an_option_that_no_archive_can_have_is_refused_before_the_payload(option, mar, author, tmp_path):
    with pytest.raises(SealRefused) as caught:
        seal_archive(mar, tmp_path / "out", author=author, progress=fail_if_sealed, **TINY | option)
    assert caught.value.hint


def test_a_suite_may_be_said_by_its_number(mar, author, tmp_path):
    sealed = seal_archive(mar, tmp_path / "out", author=author, suite=2, **TINY)

    assert open_again(sealed, author) == open_plainly(sealed, author) == model_files()


def test_an_index_that_no_reader_takes_is_refused_before_the_payload(author, tmp_path):
    source = open_source(write_folder(tmp_path / "m", model_files()))
    source.sizes["Model.pt"] = 1  # a source that did not look at its own names

    with pytest.raises(SealRefused, match="stands twice") as caught:
        seal_source(source, tmp_path / "out", author=author, terms=Terms(), progress=fail_if_sealed, **TINY)
    assert caught.value.hint
