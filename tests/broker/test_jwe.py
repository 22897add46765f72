"""Resources as JWE: the vectors of the protocol page, a second JOSE library, and everything that must not open."""

from __future__ import annotations

import json
import re

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.broker import jwe as jwe_module
from strongroom.broker.jwe import Jwe, TeeKeyPair, ec_key, seal_to
from strongroom.broker.protocol import device_document, document_digest, primary_document
from strongroom.encoding import b64url, unb64url
from strongroom.errors import MalformedInput

PLAINTEXT = bytes(range(32))


class PublishedVectors:
    """Section 16 of the protocol notes, read from the page itself."""

    def __init__(self, page):
        section = page.split("## 16. Vectors")[1].split("## 17.")[0]
        scalar = int.from_bytes(unb64url(re.search(r"`([\w-]{43})`", section).group(1)), "big")
        self.private = ec.derive_private_key(scalar, ec.SECP256R1())
        self.documents = re.findall(r"```\n(\{.*\})\n([0-9a-f]{96})\n```", section)
        resource = re.search(r"```json\n(.*?)```", section, re.DOTALL).group(1)
        self.resource = json.loads(resource)
        self.kek = bytes.fromhex(re.search(r"KEK +([0-9a-f]{64})", section).group(1))


@pytest.fixture(scope="module")
def published(shared_vectors):
    page = shared_vectors.parent / "kbs-protocol.md"
    assert page.is_file(), "the protocol notes lie beside the vectors"
    return PublishedVectors(page.read_text("utf-8"))


def test_the_three_hashed_documents_are_as_published(published):
    key = ec_key(published.private.public_key())
    nonce = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert len(published.documents) == 3
    device, primary, with_device = published.documents
    additional = json.loads(with_device[0])["additional-evidence"]
    for (text, digest), document in (
        (device, device_document(nonce, key)),
        (primary, primary_document(nonce, key, "")),
        (with_device, primary_document(nonce, key, additional)),
    ):
        assert document.decode() == text
        assert document_digest(document).hex() == digest


def test_the_published_resource_opens(published):
    jwe = Jwe.parse(json.dumps(published.resource).encode())
    assert TeeKeyPair(published.private).open(jwe) == PLAINTEXT


def test_the_published_resource_is_what_we_would_write(published):
    """Same ephemeral point, content key and IV: the same five members, byte for byte."""
    jwe = Jwe.parse(json.dumps(published.resource).encode())
    header = json.loads(unb64url(jwe.protected))
    rewritten = (
        '{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC",'
        f'"x":"{header["epk"]["x"]}","y":"{header["epk"]["y"]}"}}}}'
    )
    assert b64url(rewritten.encode()) == jwe.protected
    content_key = bytes(range(0x20, 0x40))
    assert aes_key_wrap(published.kek, content_key) == jwe.encrypted_key
    assert AESGCM(content_key).encrypt(jwe.iv, PLAINTEXT, jwe.protected.encode()) == jwe.ciphertext + jwe.tag


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
def test_what_is_sealed_to_a_key_opens_with_it_and_with_no_other(kind):
    pair, other = TeeKeyPair.generate(kind), TeeKeyPair.generate(kind)
    sealed = seal_to(pair.public, PLAINTEXT)
    assert pair.open(Jwe.parse(json.dumps(sealed.serialise()).encode())) == PLAINTEXT
    with pytest.raises(MalformedInput):
        other.open(sealed)


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
def test_a_second_jose_library_opens_ours_and_we_open_its(kind):
    from joserfc import jwe as jose
    from joserfc.jwk import ECKey, RSAKey

    pair = TeeKeyPair.generate(kind)
    pem = pair._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = (RSAKey if kind == "RSA" else ECKey).import_key(pem)
    algorithms = [pair.public.ALGORITHM, "A256GCM"]
    ours = jose.decrypt_json(seal_to(pair.public, PLAINTEXT).serialise(), key, algorithms=algorithms)
    assert ours.plaintext == PLAINTEXT

    header = {"alg": pair.public.ALGORITHM, "enc": "A256GCM"}
    protected, *members = jose.encrypt_compact(header, PLAINTEXT, key, algorithms=algorithms).split(".")
    assert pair.open(Jwe(protected, *map(unb64url, members))) == PLAINTEXT


# -- what must not open -------------------------------------------------------------


def reheadered(pair, header: dict, *, content_key=None, plaintext=PLAINTEXT) -> Jwe:
    """A JWE with a header of the attacker's choice and everything else right for it."""
    content_key = bytes(32) if content_key is None else content_key
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point = ec_key(ephemeral.public_key())
    header.setdefault("epk", {"crv": "P-256", "kty": "EC", "x": b64url(point.x), "y": b64url(point.y)})
    kek = jwe_module._key_encryption_key(ephemeral, jwe_module.ec_public_key(pair.public))
    protected = b64url(json.dumps(header).encode())
    sealed = AESGCM(content_key).encrypt(bytes(12), plaintext, protected.encode())
    return Jwe(protected, aes_key_wrap(kek, content_key), bytes(12), sealed[:-16], sealed[-16:])


GOOD = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}


@pytest.fixture(scope="module")
def pair():
    return TeeKeyPair.generate()


def test_header_members_in_another_order_with_spaces_open(pair):
    jwe = reheadered(pair, {"enc": "A256GCM", "alg": "ECDH-ES+A256KW"})
    assert pair.open(jwe) == PLAINTEXT


@pytest.mark.parametrize(
    "header",
    [
        {**GOOD, "zip": "DEF"},
        {**GOOD, "crit": ["x"]},
        {**GOOD, "apu": "AA"},
        {**GOOD, "kid": "a"},
        {**GOOD, "enc": "A128GCM"},
        {**GOOD, "enc": "A256CBC-HS512"},
        {**GOOD, "alg": "ECDH-ES"},
        {**GOOD, "alg": "dir"},
        {**GOOD, "alg": "RSA1_5"},
        {**GOOD, "alg": "RSA-OAEP-256"},
        {**GOOD, "alg": "ECDH-ES+A128KW"},
        {"alg": "ECDH-ES+A256KW"},
        {**GOOD, "epk": {"crv": "P-521", "kty": "EC", "x": "AA", "y": "AA"}},
        {**GOOD, "epk": {"crv": "P-256", "kty": "OKP", "x": b64url(bytes(32)), "y": b64url(bytes(32))}},
        {**GOOD, "epk": {"crv": "P-256", "kty": "EC", "x": b64url(bytes(32)), "y": b64url(bytes(32))}},
        {**GOOD, "epk": {"crv": "P-256", "kty": "EC", "x": b64url(b"\1" * 31), "y": b64url(bytes(32))}},
        {**GOOD, "epk": {}},
    ],
    ids=lambda header: json.dumps(header)[:60],
)
def test_a_header_outside_the_protocol_is_refused(pair, header):
    with pytest.raises(MalformedInput):
        pair.open(reheadered(pair, dict(header)))


@pytest.mark.parametrize("size", [16, 24, 64])
def test_a_content_key_of_another_length_is_refused(pair, size):
    jwe = reheadered(pair, dict(GOOD), content_key=bytes(32))
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point = ec_key(ephemeral.public_key())
    header = {**GOOD, "epk": {"crv": "P-256", "kty": "EC", "x": b64url(point.x), "y": b64url(point.y)}}
    kek = jwe_module._key_encryption_key(ephemeral, jwe_module.ec_public_key(pair.public))
    short = Jwe(b64url(json.dumps(header).encode()), aes_key_wrap(kek, bytes(size)), jwe.iv, jwe.ciphertext, jwe.tag)
    with pytest.raises(MalformedInput):
        pair.open(short)


@settings(deadline=None)  # a busy machine is no finding
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(position, bit):
    pair = PAIR
    members = {name: bytearray(getattr(SEALED, name)) for name in ("encrypted_key", "iv", "ciphertext", "tag")}
    total = sum(map(len, members.values()))
    position %= total
    for octets in members.values():
        if position < len(octets):
            octets[position] ^= 1 << bit
            break
        position -= len(octets)
    with pytest.raises(MalformedInput):
        pair.open(Jwe(SEALED.protected, *(bytes(each) for each in members.values())))


PAIR = TeeKeyPair.generate()
SEALED = seal_to(PAIR.public, PLAINTEXT)


@pytest.mark.parametrize("extra", ["aad", "header", "unprotected", "recipients", "x"])
def test_a_further_member_is_refused(extra):
    with pytest.raises(MalformedInput, match="unknown field"):
        Jwe.parse(json.dumps({**SEALED.serialise(), extra: "AA"}).encode())


@settings(deadline=None)  # a busy machine is no finding
@given(st.binary(max_size=300))
def test_noise_is_malformed_and_nothing_else(octets):
    with pytest.raises(MalformedInput):
        Jwe.parse(octets)


def test_a_resource_larger_than_the_limit_is_refused():
    with pytest.raises(MalformedInput, match="limit"):
        Jwe.parse(b'{"a":"' + b"x" * jwe_module.RESOURCE_LIMIT + b'"}')


def test_a_key_pair_does_not_show_itself(pair):
    assert repr(pair) == "TeeKeyPair(...)"
