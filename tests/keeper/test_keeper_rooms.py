"""Rooms that are folders: what a worker finds, who can list it, and what is left of it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from doubles.models import Author, plain_archive
from strongroom.archive.seal import seal_archive
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import ArchiveTampered, MalformedInput
from strongroom.keeper.room import OpenRoom
from strongroom.launch.mounts import PASSABLE
from strongroom.worker.loader import Room

FILES = {"toy.py": b"# code\n", "weights/toy.pt": os.urandom(9_000_000), "weights/empty.bin": b""}


@pytest.fixture
def sealed(tmp_path):
    author = Author.make(tmp_path)
    plain = plain_archive(tmp_path / "toy.plain.mar", FILES)
    return author, seal_archive(plain, tmp_path / "toy.mar", author=author.key)


def unlocked(sealed):
    author, made = sealed
    archive = SealedArchive.open(made.path).verified((author.key.public,), now=datetime.now(UTC))
    return archive.unlock(made.key)


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_room_of_files_holds_every_member_as_it_was_sealed(sealed, tmp_path):
    room = OpenRoom.open(unlocked(sealed), rooms=tmp_path)
    found = below(room.folder)
    assert FILES.items() <= found.items()
    assert set(found) - set(FILES) == {"MAR-INF/MANIFEST.json"}


def test_every_room_has_a_name_of_128_random_bits(sealed, tmp_path):
    names = {OpenRoom.open(unlocked(sealed), rooms=tmp_path).folder.name for _ in range(2)}
    assert len(names) == 2 and all(len(name) == 32 and int(name, 16) for name in names)


def test_nothing_of_a_room_is_there_for_writing(sealed, tmp_path):
    room = OpenRoom.open(unlocked(sealed), rooms=tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in [room.folder, *room.folder.rglob("*")]}
    assert modes == {0o444, 0o555}


def test_a_closed_room_leaves_nothing(sealed, tmp_path):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    room = OpenRoom.open(unlocked(sealed), rooms=rooms)
    room.close()
    assert list(rooms.iterdir()) == []


def test_a_damaged_archive_leaves_no_room(sealed, tmp_path):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    opened = unlocked(sealed)
    path = sealed[1].path
    octets = bytearray(path.read_bytes())
    at = octets.index(b"SEALED-INF/payload") + 5_000_000
    octets[at] ^= 1
    path.write_bytes(octets)
    with pytest.raises(ArchiveTampered):
        OpenRoom.open(opened, rooms=rooms)
    assert list(rooms.iterdir()) == []


def test_a_worker_uses_the_folder_that_the_keeper_made(sealed, tmp_path):
    room = OpenRoom.open(unlocked(sealed), rooms=tmp_path)
    entered = Room.of(room.folder, read_only=False)
    assert entered.folder == room.folder
    entered.close()
    assert below(room.folder)


def test_a_worker_refuses_a_folder_that_should_be_read_only_and_is_not(tmp_path):
    with pytest.raises(MalformedInput, match="must not"):
        Room.of(tmp_path, read_only=True)


def test_a_worker_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MalformedInput, match="not there"):
        Room.of(tmp_path / "gone", read_only=False)


def test_the_folder_of_all_rooms_can_be_passed_through_and_not_listed():
    assert PASSABLE & 0o444 == 0
    assert PASSABLE & 0o011 == 0o011
