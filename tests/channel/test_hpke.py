"""HPKE against the vectors of its documents, and against the one in `cryptography`, both ways."""

from __future__ import annotations

import json
import pickle

import pytest
from cryptography.hazmat.primitives import hpke as library
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from strongroom.channel.hpke import AES_128_GCM, RecipientContext, SenderContext, Suite
from strongroom.channel.kem import KEMS, P256, X25519, XWING
from strongroom.errors import EncapsulationInvalid, KeyUnknown, MalformedInput

KEM_IN_LIBRARY = {
    X25519: library.KEM.X25519,
    P256: library.KEM.P256,
    XWING: library.KEM.MLKEM768_X25519,
}
KDF_IN_LIBRARY = {1: library.KDF.HKDF_SHA256, 2: library.KDF.HKDF_SHA384, 3: library.KDF.HKDF_SHA512}
AEAD_IN_LIBRARY = {1: library.AEAD.AES_128_GCM, 2: library.AEAD.AES_256_GCM, 3: library.AEAD.CHACHA20_POLY1305}
SUITES = [Suite(kem, kdf, aead) for kem in (XWING, X25519, P256) for kdf in (1, 2, 3) for aead in (1, 2, 3)]


def unhexed(vector):
    return {name: bytes.fromhex(value) if isinstance(value, str) else value for name, value in vector.items()}


def entries(folder, *names):
    for name in names:
        for number, vector in enumerate(json.loads((folder / name).read_text())["vectors"]):
            yield f"{name} {number}", vector


@pytest.fixture(scope="module")
def vectors(shared_vectors):
    return dict(entries(shared_vectors, "rfc9180-base.json", "hpke-pq.json"))


VECTORS = [f"rfc9180-base.json {n}" for n in range(6)] + [f"hpke-pq.json {n}" for n in range(2)]


def test_no_vector_was_forgotten(vectors):
    assert sorted(vectors) == sorted(VECTORS)


@pytest.mark.parametrize("name", VECTORS)
def test_the_recipient_reproduces_every_value_of_a_vector(vectors, name):
    vector = vectors[name]
    suite = Suite(vector["kem_id"], vector["kdf_id"], vector["aead_id"])
    key = KEMS[suite.kem_id].private_key(bytes.fromhex(vector["skRm"]))
    assert key.public_octets.hex() == vector["pkRm"]
    enc = bytes.fromhex(vector["enc"])
    assert key.decapsulate(enc).hex() == vector["shared_secret"]
    assert suite.suite_id.hex() == vector.get("suite_id", suite.suite_id.hex())
    context = RecipientContext.setup(suite, key, enc, bytes.fromhex(vector["info"]))
    assert context.serialise() == suite.octets + b"".join(
        bytes.fromhex(vector[part]) for part in ("key", "base_nonce", "exporter_secret")
    )
    for export in vector["exports"]:
        label = bytes.fromhex(export["exporter_context"])
        assert context.export(label, export["L"]).hex() == export["exported_value"]
    opened = 0
    for each in vector["encryptions"]:
        while opened < each.get("seq", opened):
            context._seq += 1  # the RFC prints some sequence numbers only
            opened += 1
        assert context.open(bytes.fromhex(each["aad"]), bytes.fromhex(each["ct"])).hex() == each["pt"]
        opened += 1


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith("rfc9180")])
def test_the_sender_reproduces_every_value_of_a_vector(vectors, name):
    vector = vectors[name]
    suite = Suite(vector["kem_id"], vector["kdf_id"], vector["aead_id"])
    public_key = KEMS[suite.kem_id].public_key(bytes.fromhex(vector["pkRm"]))
    enc, context = SenderContext.setup(
        suite, public_key, bytes.fromhex(vector["info"]), ephemeral=bytes.fromhex(vector["skEm"])
    )
    assert enc.hex() == vector["enc"]
    sealed = 0
    for each in vector["encryptions"]:
        context._seq += each["seq"] - sealed
        sealed = each["seq"] + 1
        assert context.seal(bytes.fromhex(each["aad"]), bytes.fromhex(each["pt"])).hex() == each["ct"]


@pytest.mark.parametrize("name", VECTORS)
def test_key_pairs_derive_as_the_vectors_say(vectors, name):
    vector = vectors[name]
    key = KEMS[vector["kem_id"]].derive(bytes.fromhex(vector["ikmR"]))
    assert key.reveal().hex() == vector["skRm"]


@pytest.mark.parametrize("number", range(3))
def test_xwing_decapsulates_its_own_vectors(shared_vectors, number):
    vector = unhexed(json.loads((shared_vectors / "xwing.json").read_text())["vectors"][number])
    key = KEMS[XWING].private_key(vector["seed"])
    assert key.public_octets == vector["pk"]
    assert key.decapsulate(vector["ct"]) == vector["ss"]
    assert key.reveal() == vector["sk"]


def library_keys(kem_id):
    """(the library's private key, our private key) of one fresh key pair."""
    if kem_id == X25519:
        key = x25519.X25519PrivateKey.generate()
        return key, KEMS[kem_id].private_key(key.private_bytes_raw())
    if kem_id == P256:
        key = ec.generate_private_key(ec.SECP256R1())
        return key, KEMS[kem_id].private_key(key.private_numbers().private_value.to_bytes(32, "big"))
    ours = KEMS[kem_id].generate()
    return library.MLKEM768X25519PrivateKey(ours._mlkem, ours._x25519), ours


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_what_the_library_encrypts_opens_here(suite):
    theirs, ours = library_keys(suite.kem_id)
    hers = library.Suite(KEM_IN_LIBRARY[suite.kem_id], KDF_IN_LIBRARY[suite.kdf_id], AEAD_IN_LIBRARY[suite.aead_id])
    message = hers.encrypt(b"a scan", theirs.public_key(), info=b"info")
    size = KEMS[suite.kem_id].enc_size
    context = RecipientContext.setup(suite, ours, message[:size], b"info")
    assert context.open(b"", message[size:]) == b"a scan"


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_what_is_sealed_here_the_library_decrypts(suite):
    theirs, ours = library_keys(suite.kem_id)
    hers = library.Suite(KEM_IN_LIBRARY[suite.kem_id], KDF_IN_LIBRARY[suite.kdf_id], AEAD_IN_LIBRARY[suite.aead_id])
    enc, context = SenderContext.setup(suite, KEMS[suite.kem_id].public_key(ours.public_octets), b"info")
    assert hers.decrypt(enc + context.seal(b"", b"a scan"), theirs, info=b"info") == b"a scan"


def pair():
    suite = Suite(XWING, 1, 2)
    key = KEMS[suite.kem_id].generate()
    enc, sender = SenderContext.setup(suite, KEMS[suite.kem_id].public_key(key.public_octets), b"info")
    return sender, RecipientContext.setup(suite, key, enc, b"info")


def test_a_context_handed_over_opens_and_exports_the_same():
    sender, recipient = pair()
    handed = RecipientContext.parse(recipient.serialise())
    assert handed.open(b"aad", sender.seal(b"aad", b"one")) == b"one"
    assert handed.open(b"", sender.seal(b"", b"two")) == b"two"
    assert handed.export(b"label", 32) == sender.export(b"label", 32)


def test_a_context_that_was_used_is_not_handed_over():
    sender, recipient = pair()
    recipient.open(b"", sender.seal(b"", b"one"))
    with pytest.raises(ValueError, match="change its owner"):
        recipient.serialise()


def test_a_context_neither_prints_nor_pickles_its_secrets():
    _, recipient = pair()
    assert repr(recipient) == "RecipientContext(...)"
    with pytest.raises(TypeError):
        pickle.dumps(recipient)
    with pytest.raises(TypeError):
        pickle.dumps(KEMS[X25519].generate())


@pytest.mark.parametrize("cut", [0, 5, 6, 20, 60, -1])
def test_a_serialised_context_of_another_length_is_refused(cut):
    octets = pair()[1].serialise()
    with pytest.raises(MalformedInput):
        RecipientContext.parse(octets[:cut])
    with pytest.raises(MalformedInput):
        RecipientContext.parse(octets + b"\x00")


def test_a_message_that_does_not_open_leaves_the_sequence_where_it_was():
    sender, recipient = pair()
    sealed = sender.seal(b"", b"one")
    for wrong in (b"", sealed[:10], sealed[:-1], b"\x00" + sealed[1:]):
        with pytest.raises(EncapsulationInvalid):
            recipient.open(b"", wrong)
    with pytest.raises(EncapsulationInvalid):
        recipient.open(b"other aad", sealed)
    assert recipient.open(b"", sealed) == b"one"


@pytest.mark.parametrize("kem_id", [XWING, X25519, P256])
@pytest.mark.parametrize("change", [-1, 1])
def test_an_encapsulated_key_of_another_length_is_refused(kem_id, change):
    key = KEMS[kem_id].generate()
    with pytest.raises(EncapsulationInvalid):
        key.decapsulate(bytes(KEMS[kem_id].enc_size + change))
    with pytest.raises(MalformedInput):
        KEMS[kem_id].public_key(bytes(KEMS[kem_id].public_size + change))
    with pytest.raises(MalformedInput):
        KEMS[kem_id].private_key(bytes(KEMS[kem_id].private_size + change))


def test_a_small_order_point_is_refused_on_both_sides():
    with pytest.raises(EncapsulationInvalid):
        KEMS[X25519].generate().decapsulate(bytes(32))
    with pytest.raises(EncapsulationInvalid):
        KEMS[X25519].public_key(bytes(32)).encapsulate()
    xwing = KEMS[XWING].generate()
    with pytest.raises(EncapsulationInvalid):
        xwing.decapsulate(bytes(1120))
    with pytest.raises(EncapsulationInvalid):
        KEMS[XWING].public_key(xwing.public_octets[:1184] + bytes(32)).encapsulate()


def test_an_xwing_public_key_with_unreduced_coefficients_is_refused():
    octets = bytearray(KEMS[XWING].generate().public_octets)
    octets[:2] = b"\xff\xff"
    with pytest.raises(MalformedInput):
        KEMS[XWING].public_key(bytes(octets))


def test_compressed_and_foreign_p256_points_are_refused():
    key = KEMS[P256].generate()
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    compressed = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    good = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    hybrid = bytes([6 + (good[-1] & 1)]) + good[1:]
    off_curve = good[:-1] + bytes([good[-1] ^ 1])
    for octets in (compressed + bytes(32), hybrid, off_curve, bytes(65)):
        with pytest.raises(EncapsulationInvalid):
            key.decapsulate(octets)
        with pytest.raises(MalformedInput):
            KEMS[P256].public_key(octets)


def test_a_suite_this_package_cannot_compute_is_refused():
    for ids in ((0x0030, 1, 1), (XWING, 0x0011, 1), (XWING, 1, 0xFFFF)):
        with pytest.raises(KeyUnknown):
            Suite(*ids)
    assert Suite(XWING, 1, AES_128_GCM).key_size == 16


def test_the_library_supports_ml_kem_here():
    assert mlkem.MLKEM768PrivateKey.generate() is not None
