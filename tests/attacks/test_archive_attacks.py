"""What people tried on other formats, tried on ours (the lessons that docs/format.md section 9 and 13 draw)."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zipfile
import zlib
from datetime import UTC, datetime

import pytest
from archive.forgery import layout, streamed_names, with_hidden_entry
from archive.makings import NOW, model_files, write_folder, write_mar
from strongroom.archive.header import Header
from strongroom.archive.outer import Outer
from strongroom.archive.recipients import KeyIdentity
from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey
from strongroom.archive.slots import Generation
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import (
    ArchiveError,
    ArchiveMalformed,
    ArchiveTampered,
    ArchiveTruncated,
    AuthorUnknown,
    NoRecipient,
    SignatureDowngraded,
)

TINY = {"chunk_log2": 12, "slot_pages": 1, "threads": 1}


@pytest.fixture(scope="module")
def author() -> AuthorKey:
    return AuthorKey.generate()


@pytest.fixture
def sealed(author, tmp_path):
    source = write_mar(tmp_path / "tiny.mar", model_files())
    return seal_archive(source, tmp_path / "sealed.mar", author=author, **TINY)


def accepted(path, *authors, key=None, now=NOW, **demands) -> None:
    """Everything that a careful reader does; raises where it stops."""
    with SealedArchive.open(path) as archive:
        verified = archive.verified([each.public for each in authors], now=now, **demands)
        if key is not None:
            opened = verified.unlock(key)
            opened.check_members()
        verified.check_payload(threads=1)


def test_an_entry_that_only_streaming_readers_see_is_refused(sealed, author, tmp_path):
    path = tmp_path / "two-faced.mar"
    path.write_bytes(with_hidden_entry(sealed.path))

    # The attack works on others: zipfile sees four good entries, a streaming reader extracts the fifth.
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert "sitecustomize.py" not in archive.namelist()
    assert "sitecustomize.py" in streamed_names(path.read_bytes())

    with pytest.raises(ArchiveMalformed):
        accepted(path, author)


@pytest.mark.skipif(shutil.which("unzip") is None, reason="SKIPPED LOUDLY: no unzip here")
def test_unzip_finds_no_error_in_a_good_archive(sealed):
    assert subprocess.run(["unzip", "-tq", sealed.path], check=False, capture_output=True).returncode == 0


def test_a_front_written_by_admission_has_no_entry_but_the_three(sealed, author, tmp_path):
    with SealedArchive.open(sealed.path) as archive:
        front = archive.verified([author.public], now=NOW).front()

    assert streamed_names(front) == ["MAR-INF/MANIFEST.json", "model-config.yaml", "SEALED-INF/header"]


def test_two_entries_of_one_name_are_refused(sealed, author, tmp_path):
    path = tmp_path / "twice.mar"
    path.write_bytes(with_hidden_entry(sealed.path, "MAR-INF/MANIFEST.json", b'{"model": {"handler": "os"}}'))

    with pytest.raises(ArchiveMalformed):
        accepted(path, author)


@pytest.mark.parametrize("at", range(0, 1500, 97))
def test_no_octet_of_the_front_can_change(at, sealed, author):
    octets = bytearray(sealed.path.read_bytes())
    octets[at] ^= 0x20
    sealed.path.write_bytes(octets)

    with pytest.raises(ArchiveError):
        accepted(sealed.path, author)


def test_no_octet_outside_the_slot_area_can_change(sealed, author):
    outer, octets = layout(sealed.path), sealed.path.read_bytes()
    area = range(outer.slots_at, outer.slots_at + 2 * sealed.core.generation)
    for at in range(0, len(octets), 211):
        if at in area:
            continue
        changed = bytearray(octets)
        changed[at] ^= 1
        sealed.path.write_bytes(changed)
        with pytest.raises(ArchiveError):
            accepted(sealed.path, author)


def test_no_truncation_is_accepted(sealed, author):
    octets = sealed.path.read_bytes()
    for size in [0, 1, 29, *range(30, len(octets), 509), len(octets) - 1]:
        sealed.path.write_bytes(octets[:size])
        with pytest.raises((ArchiveTruncated, ArchiveMalformed)):
            accepted(sealed.path, author)


def test_a_cut_at_a_block_border_with_everything_around_it_put_right_needs_the_author(sealed, author, tmp_path):
    """Tensorizer leaves truncation unauthenticated; here length and root stand under the signature."""
    from dataclasses import replace

    from strongroom.archive.blocks import merkle_root

    octets, outer = sealed.path.read_bytes(), layout(sealed.path)
    with SealedArchive.open(sealed.path) as archive:
        header, clear = archive.header, archive.clear
        digests = archive.verified([author.public], now=NOW).block_digests()[:-1]
    length = len(digests) * 4112
    part = octets[outer.payload_at : outer.payload_at + length] + b"".join(digests)
    core = replace(header.core, payload_length=length, payload_crc=zlib.crc32(part), payload_root=merkle_root(digests))
    forged = Header(core, header.author, header.signature)
    new = Outer(clear.files, forged.serialise(), generation=4096, payload=len(part), crc=core.payload_crc)
    area = octets[outer.slots_at : outer.slots_at + 8192]
    path = tmp_path / "cut.mar"
    path.write_bytes(new.before_slots + area + new.before_payload + part + new.tail)

    with pytest.raises(ArchiveTampered, match="signature"):
        accepted(path, author)


def test_a_header_under_another_payload_is_refused(author, tmp_path):
    """Two archives of one author, spliced: equal sizes, so every offset fits."""
    paths = []
    for name, fill in (("a", b"a"), ("b", b"b")):
        files = model_files() | {"model.pt": fill * 20_000}
        source = write_mar(tmp_path / f"{name}.plain", files)
        paths.append(seal_archive(source, tmp_path / name, author=author, **TINY).path)
    outer = layout(paths[0])
    a, b = (path.read_bytes() for path in paths)
    paths[0].write_bytes(a[: outer.payload_at] + b[outer.payload_at :])

    with pytest.raises(ArchiveTampered):
        accepted(paths[0], author)


def test_slots_stolen_from_another_archive_do_not_open_this_one(author, tmp_path):
    """Mallory is a recipient of one archive and moves the slots of hers into one that she may not read."""
    mallory = KeyIdentity.generate("x25519")
    source = write_mar(tmp_path / "m", model_files())
    hers = seal_archive(source, tmp_path / "hers", author=author, recipients=[mallory.recipient], **TINY)
    other = seal_archive(source, tmp_path / "other", author=author, **TINY)
    a, b = layout(hers.path), layout(other.path)
    octets = bytearray(other.path.read_bytes())
    octets[b.slots_at : b.slots_at + 8192] = hers.path.read_bytes()[a.slots_at : a.slots_at + 8192]
    other.path.write_bytes(octets)

    with SealedArchive.open(other.path) as archive, pytest.raises(NoRecipient):
        archive.verified([author.public], now=NOW).unlock_with([mallory])


def test_a_recipient_cannot_make_others_open_with_a_key_of_her_choice(author, tmp_path):
    """HPKE's base mode authenticates no sender: the commitment and the MAC do."""
    bob = KeyIdentity.generate("x25519")
    source = write_mar(tmp_path / "m", model_files())
    sealed = seal_archive(source, tmp_path / "out", author=author, recipients=[bob.recipient], **TINY)
    from strongroom.keys import ModelKey

    evil = ModelKey.generate()
    generation = Generation.make(2, (bob.recipient(evil, sealed.digest),), slot_key=bytes(32), digest=sealed.digest)
    octets, outer = bytearray(sealed.path.read_bytes()), layout(sealed.path)
    octets[outer.slots_at + 4096 : outer.slots_at + 8192] = generation.serialise(4096)
    sealed.path.write_bytes(octets)

    with SealedArchive.open(sealed.path) as archive, pytest.raises(ArchiveTampered):
        archive.verified([author.public], now=NOW).unlock_with([bob])


def test_a_thief_of_the_model_key_cannot_sign(sealed, tmp_path):
    """With the key anybody reads; nobody without the author's key makes an archive that others accept."""
    thief = AuthorKey.generate()
    again = seal_archive(write_mar(tmp_path / "m", model_files()), tmp_path / "again", author=thief, **TINY)

    with pytest.raises(AuthorUnknown, match=str(thief.public.id)[:16]):
        accepted(again.path, AuthorKey.generate())


def test_a_signature_of_one_author_does_not_serve_under_another_name(sealed, author):
    thief = AuthorKey.generate()
    octets = sealed.path.read_bytes().replace(author.public.keys, thief.public.keys)
    sealed.path.write_bytes(octets)

    with pytest.raises(ArchiveTampered):
        accepted(sealed.path, author, thief)


def test_a_hybrid_signature_cannot_be_shown_as_a_classical_one(tmp_path):
    author = AuthorKey.generate("hybrid")
    classical = AuthorKey(type(author.kind)(1), author._seeds[:32])
    source = write_mar(tmp_path / "m", model_files())
    sealed = seal_archive(source, tmp_path / "out", author=author, **TINY)
    with SealedArchive.open(sealed.path) as archive:
        header, outer = archive.header, layout(sealed.path)
        forged = Header(header.core, classical.public, header.signature[:64]).serialise()
        octets = sealed.path.read_bytes()
        part = octets[outer.payload_at : outer.tail_at]
        new = Outer(archive.clear.files, forged, generation=4096, payload=len(part), crc=header.core.payload_crc)
        area = octets[outer.slots_at : outer.slots_at + 8192]
        sealed.path.write_bytes(new.before_slots + area + new.before_payload + part + new.tail)

    with pytest.raises(ArchiveTampered):
        accepted(sealed.path, author, classical)


def test_a_classical_archive_does_not_satisfy_who_demands_hybrid(sealed, author):
    with pytest.raises(SignatureDowngraded):
        accepted(sealed.path, author, demand="hybrid")


def test_the_verifier_decides_even_where_the_same_author_has_both_kinds(tmp_path):
    hybrid = AuthorKey.generate("hybrid")
    classical = AuthorKey(type(hybrid.kind)(1), hybrid._seeds[:32])
    source = write_mar(tmp_path / "m", model_files())
    sealed = seal_archive(source, tmp_path / "out", author=classical, **TINY)

    with pytest.raises(AuthorUnknown):
        accepted(sealed.path, hybrid)


@pytest.mark.parametrize("size", [2**24 + 2**17, 2**31, 2**32 - 1])
def test_a_header_that_says_it_is_huge_costs_nothing(size, sealed, author):
    outer, octets = layout(sealed.path), bytearray(sealed.path.read_bytes())
    at = outer.front.index(b"SEALED-INF/header") - 30
    octets[at + 18 : at + 26] = struct.pack("<II", size, size)
    sealed.path.write_bytes(octets)
    # A sparse file of that length, so that nothing but our own limit can stop the reading.
    os.truncate(sealed.path, 2**33)

    with pytest.raises(ArchiveMalformed, match="limit"):
        accepted(sealed.path, author)


def test_the_folder_form_takes_no_link_out_of_itself(author, tmp_path):
    source = write_folder(tmp_path / "m", model_files())
    path = seal_archive(source, tmp_path / "out", author=author, form="directory", **TINY).path
    for part in ("MAR-INF/MANIFEST.json", "SEALED-INF/payload", "SEALED-INF/slots", "SEALED-INF/header"):
        moved = tmp_path / "moved"
        (path / part).rename(moved)
        (path / part).symlink_to(moved)
        with pytest.raises(ArchiveError):
            accepted(path, author)
        (path / part).unlink()
        moved.rename(path / part)
    accepted(path, author)


def test_a_pipe_in_the_folder_form_does_not_hang_the_reader(author, tmp_path):
    source = write_folder(tmp_path / "m", model_files())
    path = seal_archive(source, tmp_path / "out", author=author, form="directory", **TINY).path
    (path / "SEALED-INF/payload").unlink()
    os.mkfifo(path / "SEALED-INF/payload")

    with pytest.raises(ArchiveMalformed, match="no regular file"):
        accepted(path, author)


def test_a_device_is_no_archive():
    with pytest.raises(ArchiveMalformed, match="no regular file"):
        SealedArchive.open("/dev/zero")


def test_a_file_swapped_after_it_was_verified_is_not_the_one_that_is_read(sealed, author, tmp_path):
    """Reads go to the descriptor that was verified; a new file under the old name is never seen."""
    with SealedArchive.open(sealed.path) as archive:
        opened = archive.verified([author.public], now=NOW).unlock(sealed.key)
        other = tmp_path / "other"
        other.write_bytes(bytes(len(sealed.path.read_bytes())))
        os.replace(other, sealed.path)

        assert opened.read("model.pt") == model_files()["model.pt"]


def test_octets_changed_after_they_were_verified_are_not_released(sealed, author):
    with SealedArchive.open(sealed.path) as archive:
        verified = archive.verified([author.public], now=NOW)
        verified.check_payload(threads=1)
        opened, outer = verified.unlock(sealed.key), layout(sealed.path)
        with sealed.path.open("r+b") as file:
            file.seek(outer.payload_at)
            file.write(b"\0" * 16)

        with pytest.raises(ArchiveTampered):
            opened.read("model.pt")


def test_no_name_of_a_member_and_no_plaintext_stands_in_the_archive(sealed):
    octets = sealed.path.read_bytes()

    for word in (b"model.pt", b"tiny_handler", b"labels", b"def handle", bytes(range(64))):
        assert word not in octets


def test_equal_files_do_not_look_equal(author, tmp_path):
    files = model_files() | {"model.pt": b"\0" * 4096 * 8, "copy.pt": b"\0" * 4096 * 8}
    sealed = seal_archive(write_mar(tmp_path / "m", files), tmp_path / "out", author=author, **TINY)
    octets, outer = sealed.path.read_bytes(), layout(sealed.path)
    payload = octets[outer.payload_at : outer.payload_at + sealed.core.payload_length]
    blocks = [payload[at : at + 64] for at in range(0, len(payload), 64)]

    assert len(set(blocks)) == len(blocks)


def test_an_expired_archive_is_refused_even_with_its_key(author, tmp_path):
    source = write_mar(tmp_path / "m", model_files())
    expiry = datetime(2999, 1, 31, tzinfo=UTC)
    sealed = seal_archive(source, tmp_path / "out", author=author, expiry=expiry, **TINY)

    accepted(sealed.path, author, key=sealed.key)
    with pytest.raises(ArchiveError, match="expired"):
        accepted(sealed.path, author, key=sealed.key, now=expiry)
