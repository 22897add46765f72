"""What the gate lets in where the channel's mode asks for more than a signature."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from doubles.models import Author, plain_archive, sealed_toy
from strongroom.archive import packaging
from strongroom.archive.seal import seal_archive
from strongroom.errors import LaunchRefused
from strongroom.launch.admission import Gate
from strongroom.launch.config import Admission


@pytest.mark.parametrize("name", ["continuousBatching", "asyncCommunication"])
def test_a_setting_that_no_sealed_model_can_honour_is_refused_whoever_sealed_it(tmp_path, monkeypatch, name):
    """The format allows both, so another sealer may have signed one."""
    author = Author.make(tmp_path)
    files = {"toy.py": b"handle = None\n", "c.yaml": f"{name}: true\n".encode()}
    plain = plain_archive(tmp_path / "plain.mar", files, configFile="c.yaml")
    with monkeypatch.context() as patched:
        patched.setattr(packaging, "REFUSED", {})
        sealed = seal_archive(plain, tmp_path / "toy.mar", author=author.key)
    with pytest.raises(LaunchRefused, match=name) as refusal:
        gate(author, "host").admit({"toy": sealed.path}, tmp_path)
    assert refusal.value.hint


def spki(private) -> bytes:
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def gate(author: Author, mode: str) -> Gate:
    return Gate(Admission((author.public,), {}, False), mode)


def test_in_mode_fleet_an_archive_that_names_no_broker_key_is_refused_with_the_next_step(tmp_path):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author)
    with pytest.raises(LaunchRefused, match="names none") as refusal:
        gate(author, "fleet").admit({"toy": sealed.path}, tmp_path)
    assert "seal" in refusal.value.hint
    assert gate(author, "host").admit({"toy": sealed.path}, tmp_path)


@pytest.mark.parametrize("key", [b"\x30\x00", spki(ec.generate_private_key(ec.SECP256R1()))], ids=["rubbish", "P-256"])
def test_in_mode_fleet_a_broker_key_that_signs_no_seeds_is_refused(tmp_path, key):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author, broker_key=key)
    with pytest.raises(LaunchRefused, match="broker key"):
        gate(author, "fleet").verified(sealed.path)
    assert gate(author, "host").verified(sealed.path)


def test_in_mode_fleet_an_archive_that_names_its_broker_is_let_in(tmp_path):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author, broker_key=spki(Ed25519PrivateKey.generate()))
    assert gate(author, "fleet").verified(sealed.path).core.digest == sealed.digest
