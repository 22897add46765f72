"""Stock TorchServe registers a sealed archive, its bare front, and its directory form, and takes no payload."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import requests
from archive.forgery import with_hidden_entry
from archive.makings import NOW, model_files, write_mar
from doubles.serving import start_torchserve
from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import ArchiveMalformed

pytestmark = pytest.mark.journey

CONFIG = b"minWorkers: 0\nmaxWorkers: 0\nbatchSize: 7\nhandlerOnly:\n  secret: yes\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A model store with the three shapes, each of a model of its own."""
    folder = tmp_path_factory.mktemp("store")
    author = AuthorKey.generate()
    for name, form in (("whole", "file"), ("front", "file"), ("folder", "directory")):
        files = model_files(name) | {"model-config.yaml": CONFIG, "model.pt": b"\x55" * 3_000_000}
        files["MAR-INF/MANIFEST.json"] = files["MAR-INF/MANIFEST.json"].replace(
            b'"handler"', b'"configFile": "model-config.yaml", "handler"'
        )
        source = write_mar(folder.parent / f"{name}.plain.mar", files)
        output = folder / (name if form == "directory" else f"{name}.mar")
        seal_archive(source, output, author=author, form=form)
        if name == "front":
            with SealedArchive.open(output) as archive:
                front = archive.verified([author.public], now=NOW).front()
            output.write_bytes(front)
    two_faced = with_hidden_entry(folder / "whole.mar", "sitecustomize.py", b"# runs before any check\n")
    (folder / "twofaced.mar").write_bytes(two_faced)
    return folder


@pytest.fixture(scope="module")
def serving(store, tmp_path_factory):
    models = ["whole=whole.mar", "front=front.mar", "folder=folder", "twofaced=twofaced.mar"]
    with start_torchserve(tmp_path_factory.mktemp("stock"), store, models) as running:
        for name in ("whole", "front", "folder", "twofaced"):
            running.wait_until_ready(name, workers=0)
        yield running


@pytest.mark.parametrize("shape", ["whole", "front", "folder"])
def test_stock_torchserve_registers_it_with_its_readable_settings(serving, shape):
    answer = requests.get(f"{serving.management}/models/{shape}", timeout=10).json()[0]

    assert answer["modelName"] == shape
    assert answer["modelVersion"] == "1.0"
    assert answer["batchSize"] == 7


def test_torchserve_extracted_the_front_and_nothing_of_the_payload(serving):
    extracted = [each for each in (serving.folder / "temp").rglob("*") if each.is_file()]

    assert [each for each in extracted if each.parts[-2:] == ("SEALED-INF", "header")]
    assert not [each for each in extracted if each.name == "payload" and not each.is_symlink()]
    assert sum(each.stat().st_size for each in extracted) < 100_000


def test_the_extracted_header_names_the_archive(serving, store):
    with SealedArchive.open(store / "whole.mar") as archive:
        digest = archive.core.digest
    headers = [each.read_bytes() for each in (serving.folder / "temp").rglob("SEALED-INF/header")]

    cores = [header[4 : 4 + int.from_bytes(header[:4], "big")] for header in headers]
    assert digest in {hashlib.sha256(core).digest() for core in cores}


def test_java_extracts_an_entry_that_other_readers_do_not_see_and_we_refuse_it(serving, store):
    """The reason for docs/format.md section 9: without admission this file would run in every worker."""
    with zipfile.ZipFile(store / "twofaced.mar") as archive:
        assert archive.testzip() is None
        assert "sitecustomize.py" not in archive.namelist()
    assert list((serving.folder / "temp").rglob("sitecustomize.py"))

    with pytest.raises(ArchiveMalformed):
        SealedArchive.open(store / "twofaced.mar")
