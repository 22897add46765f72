"""A member of 12 GB: offsets beyond 32 bits, in our reader and in other people's zip readers."""

from __future__ import annotations

import shutil
import zipfile

import pytest
from archive.makings import NOW, model_files, write_folder
from strongroom.archive.seal import seal_archive
from strongroom.archive.unseal import SealedArchive

SIZE = 12 << 30

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, author):
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 14 << 30:
        pytest.skip("SKIPPED LOUDLY: not enough room on the disk for a 12 GB archive")
    source = write_folder(folder / "m", model_files())
    with (source / "weights.bin").open("wb") as file:
        for at in (0, (1 << 32) - 3, SIZE - 6):
            file.seek(at)
            file.write(b"marker")
    yield seal_archive(source, folder / "out.mar", author=author)
    (folder / "out.mar").unlink()


def test_random_access_reaches_every_part_of_it(sealed, author):
    with SealedArchive.open(sealed.path) as archive:
        file = archive.verified([author.public], now=NOW).unlock(sealed.key).open("weights.bin")
        for at in (0, (1 << 32) - 3, SIZE - 6):
            file.seek(at)
            found = file.read(3) + file.read(3)
            assert found == b"marker"
        file.seek(1 << 33)
        assert file.read(1 << 20) == bytes(1 << 20)


def test_small_members_beside_it_are_read_without_it(sealed, author):
    with SealedArchive.open(sealed.path) as archive:
        opened = archive.verified([author.public], now=NOW).unlock(sealed.key)
        for name, octets in model_files().items():
            assert opened.read(name) == octets


def test_other_zip_readers_see_its_four_entries(sealed):
    with zipfile.ZipFile(sealed.path) as archive:
        assert archive.namelist()[-1] == "SEALED-INF/payload"
        assert archive.getinfo("SEALED-INF/payload").file_size > SIZE


def test_the_whole_payload_verifies_without_a_key(sealed, author):
    with SealedArchive.open(sealed.path) as archive:
        archive.verified([author.public], now=NOW).check_payload()
