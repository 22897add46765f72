"""An opened archive gives its members whole, in parallel or by random access, and nothing that did not verify."""

from __future__ import annotations

import io
import mmap
import os

import pytest
from archive.conftest import TINY
from archive.makings import MANIFEST, NOW, manifest, model_files, write_folder
from archive.plain_reader import Plain, Refused
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.archive.modelkey import load_model_key, save_model_key
from strongroom.archive.payload import PayloadWriter
from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey, AuthorPublic
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import (
    ArchiveError,
    ArchiveMalformed,
    ArchiveTampered,
    ArchiveTruncated,
    KeyFileInvalid,
    WrongKey,
)
from strongroom.keys import ModelKey


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A member of 131 chunks among small ones, opened."""
    folder = tmp_path_factory.mktemp("large")
    author = AuthorKey.generate()
    octets = os.urandom(131 * 4096 - 5)
    source = write_folder(folder / "m", {"big": octets, "small": b"small", MANIFEST: manifest()})
    sealed = seal_archive(source, folder / "out", author=author, **TINY)
    with SealedArchive.open(sealed.path) as archive:
        yield archive.verified([author.public], now=NOW).unlock(sealed.key), octets


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_members_are_decrypted_straight_into_memory_files(large, threads):
    opened, octets = large
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, len(octets))
    with mmap.mmap(descriptor, len(octets)) as mapped:
        target = memoryview(mapped)
        opened.unseal({opened["big"]: target}, threads=threads)
        target.release()

    assert os.pread(descriptor, len(octets), 0) == octets
    os.close(descriptor)


def test_several_members_are_opened_at_once(large):
    opened, octets = large
    targets = {member: memoryview(bytearray(member.size)) for member in opened.members}
    seen = []
    opened.unseal(targets, threads=3, progress=lambda done, total: seen.append((done, total)))

    assert targets[opened["big"]] == octets
    assert targets[opened["small"]] == b"small"
    assert seen[-1] == (len(seen), len(seen))


def test_a_buffer_of_another_size_is_refused(large):
    opened, _ = large

    with pytest.raises(ArchiveError, match="its buffer"):
        opened.unseal({opened["small"]: memoryview(bytearray(6))})


def test_a_member_that_is_not_there_is_an_error_with_its_name(large):
    opened, _ = large

    with pytest.raises(ArchiveError, match="no member 'weights'"):
        opened["weights"]
    assert "weights" not in opened


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 131 * 4096 + 10), st.one_of(st.integers(0, 64), st.integers(0, 20_000))), max_size=6
    )
)
def test_random_access_reads_what_the_plain_file_would(large, steps):
    opened, octets = large
    plain, file = io.BytesIO(octets), io.BufferedReader(opened.open("big"), 700)
    for offset, size in steps:
        assert file.seek(offset) == plain.seek(offset)
        assert file.read(size) == plain.read(size)


def test_a_member_file_seeks_from_everywhere(large):
    opened, octets = large
    file = opened.open("big")

    assert file.seek(-3, io.SEEK_END) == len(octets) - 3
    assert file.read() == octets[-3:]
    assert file.seek(-1, io.SEEK_CUR) == len(octets) - 1
    with pytest.raises(ValueError, match="before its start"):
        file.seek(-1)
    with pytest.raises(ValueError, match="whence is 9"):
        file.seek(0, 9)


def test_a_changed_block_leaves_the_others_readable_and_is_itself_refused(mar, author, tmp_path):
    sealed = seal_archive(mar, tmp_path / "out", author=author, **TINY)
    with SealedArchive.open(sealed.path) as archive:
        opened = archive.verified([author.public], now=NOW).unlock(sealed.key)
        at = archive._storage.payload_at + 2 * 4112 + 7
        with sealed.path.open("r+b") as file:
            file.seek(at)
            was = file.read(1)
            file.seek(at)
            file.write(bytes([was[0] ^ 1]))
        whole = model_files()["model.pt"]
        member = opened.open("model.pt")

        assert member.read(4096) == whole[:4096]
        member.seek(3 * 4096)
        assert member.read(10) == whole[3 * 4096 : 3 * 4096 + 10]
        member.seek(2 * 4096)
        with pytest.raises(ArchiveTampered, match="block 2"):
            member.read(1)
        with pytest.raises(ArchiveTampered, match="block 2"):
            opened.unseal({opened["model.pt"]: memoryview(bytearray(opened["model.pt"].size))}, threads=2)


def test_a_file_that_shrinks_while_it_is_open_is_truncated_and_no_crash(sealed, author):
    with SealedArchive.open(sealed.path) as archive:
        opened = archive.verified([author.public], now=NOW).unlock(sealed.key)
        os.truncate(sealed.path, archive._storage.payload_at + 5000)

        with pytest.raises(ArchiveTruncated):
            opened.read("model.pt")


@pytest.fixture
def smuggled(mar, author, tmp_path, monkeypatch):
    """An archive whose author hid something in the padding."""

    def pad(writer):
        padding = writer._index.padding_member(writer._grid)
        for chunk in writer._grid.chunks(padding.start, padding.size):
            writer._add(writer._schedule.member(padding.number), chunk, bytearray(chunk.size - 1) + b"S")

    monkeypatch.setattr(PayloadWriter, "pad", pad)
    return seal_archive(mar, tmp_path / "out", author=author, padding=True, **TINY)


def test_padding_that_is_not_zeros_is_found_by_whoever_checks_with_the_key(smuggled, author):
    with SealedArchive.open(smuggled.path) as archive:
        opened = archive.verified([author.public], now=NOW).unlock(smuggled.key)
        with pytest.raises(ArchiveMalformed, match="padding is not zeros") as caught:
            opened.check_members()
    assert caught.value.hint


def test_the_plain_reader_finds_padding_that_is_not_zeros(smuggled):
    plain = Plain(smuggled.path)
    plain.check_list()
    plain.unlock(smuggled.key.reveal(), None)

    with pytest.raises(Refused, match="malformed: padding"):
        plain.read([])


def test_another_key_is_a_wrong_key(sealed, author):
    with SealedArchive.open(sealed.path) as archive, pytest.raises(WrongKey):
        archive.verified([author.public], now=NOW).unlock(ModelKey.generate())


def test_the_front_alone_holds_the_readable_members_and_the_header(sealed, author):
    with SealedArchive.open(sealed.path) as archive:
        verified = archive.verified([author.public], now=NOW)
        front = verified.front()

    assert sealed.path.read_bytes().startswith(front)
    assert front.endswith(verified.header_member() + b"SRGP")
    assert verified.model_name == "tiny"


def test_a_model_key_file_names_its_archive(sealed, tmp_path):
    path = tmp_path / "key"
    save_model_key(path, sealed.digest, sealed.key)

    assert load_model_key(path, of=sealed.digest).reveal() == sealed.key.reveal()
    with pytest.raises(WrongKey, match="is the key of archive"):
        load_model_key(path, of=type(sealed.digest)(bytes(32)))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["ed25519", "hybrid"])
def test_an_author_key_survives_its_files(kind, tmp_path):
    key = AuthorKey.generate(kind)
    key.save(tmp_path / "a.key")
    key.public.save(tmp_path / "a.pub")

    assert AuthorKey.load(tmp_path / "a.key").public == key.public == AuthorPublic.load(tmp_path / "a.pub")
    assert AuthorPublic.parse(key.public.serialise()) == key.public


ENDS = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r"]


@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_nothing_but_a_line_feed_ends_a_comment(end, author):
    with pytest.raises(KeyFileInvalid, match="found 0"):
        AuthorPublic.parse(f"# a comment {end}{author.public.serialise()}")


def test_a_line_of_a_key_file_may_end_as_it_does_on_windows(author):
    text = f"# a comment\n\n{author.public.serialise()}\n".replace("\n", "\r\n")

    assert AuthorPublic.parse(text) == author.public


@pytest.mark.parametrize("change", [" {}\n", "{} \n", "\t{}\n", "{}\n \n", "{}\r\r\n", "\ufeff{}\n"], ids=ascii)
def test_white_space_in_a_key_file_is_no_comment_and_no_part_of_a_key(change, author):
    with pytest.raises(KeyFileInvalid):
        AuthorPublic.parse(change.format(author.public.serialise().strip()))


def test_a_private_key_that_others_can_read_is_refused(tmp_path):
    AuthorKey.generate().save(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o644)

    with pytest.raises(KeyFileInvalid, match="0644"):
        AuthorKey.load(tmp_path / "a.key")


def test_a_key_file_is_never_replaced(tmp_path):
    AuthorKey.generate().save(tmp_path / "a.key")

    with pytest.raises(KeyFileInvalid, match="exists already"):
        AuthorKey.generate().save(tmp_path / "a.key")


@pytest.mark.parametrize("text", ["", "x", "strongroom-author-1:ed25519", "strongroom-author-1:rsa:AA", "a\nb\n"])
def test_a_bad_author_file_is_refused(text):
    with pytest.raises(KeyFileInvalid):
        AuthorPublic.parse(text)


def test_a_key_may_come_through_a_pipe(tmp_path):
    """A secret from a vault need not lie on a disk first."""
    AuthorKey.generate().save(tmp_path / "a.key")
    ours, theirs = os.pipe()
    os.write(theirs, (tmp_path / "a.key").read_bytes())
    os.close(theirs)
    try:
        assert AuthorKey.load(f"/dev/fd/{ours}").public == AuthorKey.load(tmp_path / "a.key").public
    finally:
        os.close(ours)


def test_a_private_key_never_stands_in_an_error(tmp_path):
    AuthorKey.generate().save(tmp_path / "a.key")
    secret = (tmp_path / "a.key").read_text().splitlines()[-1].split(":")[-1]

    with pytest.raises(KeyFileInvalid) as caught:
        AuthorPublic.load(tmp_path / "a.key")
    assert secret not in str(caught.value) + caught.value.hint
