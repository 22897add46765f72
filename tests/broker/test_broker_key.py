"""An archive names the broker that may sign its epoch seeds: by itself where it is sealed for one."""

from __future__ import annotations

import json

import pytest
import typer
from broker.broker_in_a_room import broker_room
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from doubles.models import Author, plain_archive
from hypothesis import given
from hypothesis import strategies as st
from strongroom.archive.unseal import SealedArchive
from strongroom.broker.admin import AdminKey
from strongroom.broker.epochs import EpochSeed
from strongroom.cli import seal
from strongroom.errors import MalformedInput, ReleaseError
from strongroom.keys import ArchiveDigest
from typer.testing import CliRunner

DER = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def room(tmp_path):
    with broker_room(tmp_path) as room:
        yield room


@pytest.fixture
def sealed_for(room, tmp_path):
    """What `strongroom seal …` for the broker writes, given more words."""
    app = typer.Typer()
    seal.register(app)
    author = Author.make(tmp_path)
    plain = plain_archive(tmp_path / "toy.mar", {"toy.py": b"handle = None\n"})

    def run(*words, url=room.url, admin=room.folder / "admin.key"):
        flags = ["--author", author.private, "--broker", url, "--admin-key", admin, *words]
        result = CliRunner().invoke(app, [str(plain), *map(str, flags)])
        if result.exit_code != 0:
            raise result.exception
        return SealedArchive.open(tmp_path / "toy.sealed.mar").core

    return run


def test_an_archive_that_is_sealed_for_a_broker_names_its_key(sealed_for, room):
    published = load_pem_public_key((room.folder / "broker.pub").read_bytes()).public_bytes(*DER)
    assert sealed_for().broker_key == published == room.broker.public_key


def test_another_broker_can_be_named_by_a_file(sealed_for, tmp_path):
    other = Ed25519PrivateKey.generate().public_key()
    (tmp_path / "other.pub").write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert sealed_for("--broker-key", tmp_path / "other.pub").broker_key == other.public_bytes(*DER)


def test_a_key_that_is_not_that_of_the_administrators_broker_is_refused(sealed_for, room, tmp_path, monkeypatch):
    """Somebody on the way puts a key of his own into the broker's answer."""
    mine = Ed25519PrivateKey.generate()
    monkeypatch.setattr(room.broker, "_identity", mine)
    with pytest.raises(ReleaseError, match="has not the key"):
        sealed_for()
    assert not (tmp_path / "toy.sealed.mar").exists()


def test_at_a_stock_trustee_no_key_is_named(room, tmp_path):
    from strongroom.broker.client import BrokerAdmin
    from strongroom.broker.rootkey import write_private

    write_private(tmp_path / "trustee.key", AdminKey(Ed25519PrivateKey.generate(), "").serialise())
    assert BrokerAdmin(room.url, tmp_path / "trustee.key").public_key() is None


SEED = EpochSeed.make(
    Ed25519PrivateKey.from_private_bytes(bytes(32)), ArchiveDigest(bytes(32)), 20_785, bytes(32), 1_795_824_010
)


@given(st.binary(max_size=300) | st.dictionaries(st.sampled_from(sorted(json.loads(SEED.serialise()))), st.integers()))
def test_any_bytes_are_an_epoch_seed_or_are_refused(found):
    octets = found if isinstance(found, bytes) else json.dumps(json.loads(SEED.serialise()) | found).encode()
    try:
        seed = EpochSeed.parse(octets)
    except MalformedInput:
        return
    assert EpochSeed.parse(seed.serialise()) == seed


@pytest.mark.parametrize("name", sorted(set(json.loads(SEED.serialise())) - {"strongroom", "signature"}))
def test_the_signature_covers_every_member_of_a_seed(name):
    members = json.loads(SEED.serialise())
    value = members[name]
    members[name] = value + 1 if isinstance(value, int) else ("1" if name == "archive" else "B") + value[1:]
    changed = EpochSeed.parse(json.dumps(members).encode())
    public = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes(*DER)
    SEED.verify(public, SEED.archive)
    with pytest.raises(ReleaseError, match="not signed"):
        changed.verify(public, SEED.archive)
