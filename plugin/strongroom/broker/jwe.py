"""Resources encrypted to a TEE's key: RFC 7516 flattened JSON as KBS 0.4.0 uses it (docs/release.md section 8).

Only ECDH-ES+A256KW on P-256 and P-521, RSA-OAEP-256, and A256GCM. The primitives are
`cryptography`'s; this module knows the byte layout, in particular the one header member order that
a stock client can open. Both halves are here: the broker's `seal_to` and the keeper's `TeeKeyPair`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from strongroom.broker.protocol import EcKey, RsaKey, TeeKey
from strongroom.encoding import Fields, b64url, parse_json, unb64url
from strongroom.errors import MalformedInput

RESOURCE_LIMIT = 1 << 20
"""Bytes of one encrypted resource as JSON that we open; keys belong here, not models."""

_ENCRYPTION = "A256GCM"
_CURVES: dict[str, type[ec.SECP256R1] | type[ec.SECP521R1]] = {"P-256": ec.SECP256R1, "P-521": ec.SECP521R1}
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


@dataclass(frozen=True, slots=True)
class Jwe:
    """The five members of a flattened JWE, decoded, beside the protected text as it was received."""

    protected: str
    encrypted_key: bytes
    iv: bytes
    ciphertext: bytes
    tag: bytes

    @classmethod
    def parse(cls, octets: bytes) -> Jwe:
        """Strictly five members: ``aad``, ``header`` and ``unprotected`` are refused. `MalformedInput`."""
        read = Fields(parse_json(octets, where="resource", limit=RESOURCE_LIMIT), where="resource")
        jwe = cls(
            protected=read.text("protected", limit=4096),
            encrypted_key=read.blob("encrypted_key", limit=1024),
            iv=read.blob("iv", size=12),
            ciphertext=read.blob("ciphertext"),
            tag=read.blob("tag", size=16),
        )
        read.done()
        return jwe

    def serialise(self) -> dict[str, str]:
        """The exact inverse of `parse`, before JSON."""
        return {
            "protected": self.protected,
            "encrypted_key": b64url(self.encrypted_key),
            "iv": b64url(self.iv),
            "ciphertext": b64url(self.ciphertext),
            "tag": b64url(self.tag),
        }


def seal_to(tee_key: TeeKey, plaintext: bytes) -> Jwe:
    """Encrypt a resource to the key of an attested TEE. Raises `MalformedInput` for a key that is none."""
    content_key = os.urandom(32)
    if isinstance(tee_key, EcKey):
        recipient = ec_public_key(tee_key)
        ephemeral = ec.generate_private_key(recipient.curve)
        return _sealed_ec(tee_key.crv, recipient, ephemeral, content_key, os.urandom(12), plaintext)
    wrapped = rsa_public_key(tee_key).encrypt(content_key, _OAEP)
    protected = b64url(f'{{"alg":"{RsaKey.ALGORITHM}","enc":"{_ENCRYPTION}"}}'.encode())
    return _sealed(protected, wrapped, content_key, os.urandom(12), plaintext)


def _sealed_ec(
    crv: str,
    recipient: ec.EllipticCurvePublicKey,
    ephemeral: ec.EllipticCurvePrivateKey,
    content_key: bytes,
    iv: bytes,
    plaintext: bytes,
) -> Jwe:
    """`seal_to` with its random values as arguments, so that the vectors of docs/release.md can hold it."""
    point = ec_key(ephemeral.public_key())
    # This very spelling: the stock client parses the header and writes it again before it uses it as AAD.
    header = (
        f'{{"alg":"{EcKey.ALGORITHM}","enc":"{_ENCRYPTION}",'
        f'"epk":{{"crv":"{crv}","kty":"EC","x":"{b64url(point.x)}","y":"{b64url(point.y)}"}}}}'
    )
    wrapped = aes_key_wrap(_key_encryption_key(ephemeral, recipient), content_key)
    return _sealed(b64url(header.encode()), wrapped, content_key, iv, plaintext)


def _sealed(protected: str, wrapped: bytes, content_key: bytes, iv: bytes, plaintext: bytes) -> Jwe:
    sealed = AESGCM(content_key).encrypt(iv, plaintext, protected.encode("ascii"))
    return Jwe(protected, wrapped, iv, sealed[:-16], sealed[-16:])


def _key_encryption_key(own: ec.EllipticCurvePrivateKey, other: ec.EllipticCurvePublicKey) -> bytes:
    """ECDH-ES with Concat KDF, the `alg` string as algorithm id, empty party infos (RFC 7518 section 4.6.2)."""
    name = EcKey.ALGORITHM.encode()
    info = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
    return ConcatKDFHash(hashes.SHA256(), 32, info).derive(own.exchange(ec.ECDH(), other))


def ec_public_key(key: EcKey) -> ec.EllipticCurvePublicKey:
    """The point of an `EcKey`; raises `MalformedInput` where it is not on its curve."""
    try:
        x, y = int.from_bytes(key.x, "big"), int.from_bytes(key.y, "big")
        return ec.EllipticCurvePublicNumbers(x, y, _CURVES[key.crv]()).public_key()
    except ValueError as error:
        raise MalformedInput(f"the point is not on {key.crv}") from error


def rsa_public_key(key: RsaKey) -> rsa.RSAPublicKey:
    """The key of an `RsaKey`, 2048 to 8192 bits; raises `MalformedInput`."""
    try:
        public = rsa.RSAPublicNumbers(int.from_bytes(key.e, "big"), int.from_bytes(key.n, "big")).public_key()
    except ValueError as error:
        raise MalformedInput("tee-pubkey: not an RSA key") from error
    if not 2048 <= public.key_size <= 8192:
        raise MalformedInput(f"tee-pubkey: an RSA key of {public.key_size} bits, 2048 to 8192 are accepted")
    return public


def check_tee_key(key: TeeKey) -> None:
    """Raise `MalformedInput` for a TEE key that nothing could be encrypted to."""
    if isinstance(key, EcKey):
        ec_public_key(key)
    else:
        rsa_public_key(key)


def ec_key(public: ec.EllipticCurvePublicKey) -> EcKey:
    """The protocol's form of a P-256 or P-521 public key."""
    numbers = public.public_numbers()
    crv = {"secp256r1": "P-256", "secp521r1": "P-521"}[public.curve.name]
    width = EcKey.WIDTHS[crv]
    return EcKey(crv, numbers.x.to_bytes(width, "big"), numbers.y.to_bytes(width, "big"))


class TeeKeyPair:
    """The key of one handshake, made inside the TEE. It lives in memory and is never written anywhere."""

    __slots__ = ("_private", "public")

    def __init__(self, private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self._private = private
        if isinstance(private, ec.EllipticCurvePrivateKey):
            self.public: TeeKey = ec_key(private.public_key())
        else:
            numbers = private.public_key().public_numbers()
            self.public = RsaKey(
                numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big"),
                numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8, "big"),
            )

    @classmethod
    def generate(cls, kind: str = "P-256") -> TeeKeyPair:
        """A fresh ``P-256``, ``P-521`` or ``RSA`` (2048-bit) pair."""
        if kind == "RSA":
            return cls(rsa.generate_private_key(65537, 2048))
        return cls(ec.generate_private_key(_CURVES[kind]()))

    def open(self, jwe: Jwe) -> bytes:
        """Decrypt a resource; raises `MalformedInput` for anything but exactly what section 8 allows.

        The order of header members is free, their set is not: ``zip``, ``crit``, another ``enc`` or
        an ``alg`` other than this key's own is refused before anything is decrypted.
        """
        header = parse_json(unb64url(jwe.protected, where="JWE header"), where="JWE header", limit=4096)
        read = Fields(header, where="JWE header")
        algorithm, encryption = read.text("alg", limit=32), read.text("enc", limit=32)
        if algorithm != self.public.ALGORITHM or encryption != _ENCRYPTION:
            raise MalformedInput(f"JWE header: {algorithm!r} with {encryption!r} is not for this key")
        content_key = self._unwrap_ec(read, jwe) if isinstance(self.public, EcKey) else self._unwrap_rsa(read, jwe)
        if len(content_key) != 32:
            raise MalformedInput(f"JWE: a content key of {len(content_key)} bytes, 32 are expected")
        try:
            return AESGCM(content_key).decrypt(jwe.iv, jwe.ciphertext + jwe.tag, jwe.protected.encode("ascii"))
        except InvalidTag as error:
            raise MalformedInput("JWE: its tag does not hold") from error

    def _unwrap_ec(self, read: Fields, jwe: Jwe) -> bytes:
        point = self._ephemeral(read.value("epk"))
        read.done()
        try:
            return aes_key_unwrap(_key_encryption_key(self._private, point), jwe.encrypted_key)  # type: ignore[arg-type]
        except (InvalidUnwrap, ValueError) as error:
            raise MalformedInput("JWE: its content key is not wrapped for this TEE key") from error

    def _ephemeral(self, value: Any) -> ec.EllipticCurvePublicKey:
        read = Fields(value, where="JWE header: epk")
        crv = read.text("crv", limit=8)
        if read.text("kty", limit=8) != "EC" or not isinstance(self.public, EcKey) or crv != self.public.crv:
            raise MalformedInput(f"JWE header: epk: {crv!r} is not the curve of the TEE key")
        width = EcKey.WIDTHS[crv]
        point = EcKey(crv, read.blob("x", size=width), read.blob("y", size=width))
        read.done()
        return ec_public_key(point)

    def _unwrap_rsa(self, read: Fields, jwe: Jwe) -> bytes:
        read.done()
        try:
            return self._private.decrypt(jwe.encrypted_key, _OAEP)  # type: ignore[union-attr]
        except ValueError as error:
            raise MalformedInput("JWE: its content key is not wrapped for this TEE key") from error

    def __repr__(self) -> str:
        return "TeeKeyPair(...)"
