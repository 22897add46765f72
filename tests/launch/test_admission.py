"""What the gate lets in where the channel's mode asks for more than a signature."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from doubles.models import Author, sealed_toy
from strongroom.errors import LaunchRefused
from strongroom.launch.admission import Gate
from strongroom.launch.config import Admission


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
