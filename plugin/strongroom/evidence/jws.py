"""Compact JWS (RFC 7515) under pinned trust: a JWKS, or certificates to which `x5c` has to chain.

The algorithm is the one of the key, never the header's choice; ``none`` and shared-key algorithms
do not exist here. A key that only the header vouches for is not trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509 import Certificate

from strongroom.encoding import Fields, parse_json, unb64, unb64url
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.certificates import LONGEST_CHAIN, parse_certificate
from strongroom.evidence.door import at_the_door
from strongroom.evidence.ecdsa import point, verifies

LONGEST_TOKEN = 1 << 20
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_CURVES: dict[str, tuple[type[ec.EllipticCurve], str, hashes.HashAlgorithm]] = {
    "P-256": (ec.SECP256R1, "ES256", hashes.SHA256()),
    "P-384": (ec.SECP384R1, "ES384", hashes.SHA384()),
    "P-521": (ec.SECP521R1, "ES512", hashes.SHA512()),
}
_RSA: dict[str, tuple[hashes.HashAlgorithm, bool]] = {
    "RS256": (hashes.SHA256(), False),
    "RS384": (hashes.SHA384(), False),
    "RS512": (hashes.SHA512(), False),
    "PS256": (hashes.SHA256(), True),
    "PS384": (hashes.SHA384(), True),
    "PS512": (hashes.SHA512(), True),
}
_EDWARDS = "EdDSA"
ALGORITHMS = frozenset({*_RSA, _EDWARDS, *(name for _, name, _ in _CURVES.values())})
"""Every algorithm that some key here suits."""


@dataclass(frozen=True, slots=True)
class CompactJws:
    """A parsed token: `header` and `payload` decoded, `signed` the bytes under the signature."""

    header: Mapping[str, Any]
    payload: Mapping[str, Any]
    signed: bytes
    signature: bytes

    @classmethod
    def parse(cls, text: str, *, what: str = "token") -> CompactJws:
        """Three base64url parts, both first ones JSON objects; raises `EvidenceMalformed`."""
        with at_the_door(what):
            if len(text) > LONGEST_TOKEN:
                raise MalformedInput(f"{len(text)} characters, the limit is {LONGEST_TOKEN}")
            parts = text.split(".")
            if len(parts) != 3:
                raise MalformedInput(f"{len(parts)} parts, three are expected")
            header = parse_json(unb64url(parts[0], where="header"), where="header")
            payload = parse_json(unb64url(parts[1], where="payload"), where="payload", limit=LONGEST_TOKEN)
            if not isinstance(header, dict) or not isinstance(payload, dict):
                raise MalformedInput("header and payload are objects")
            if "crit" in header:
                raise MalformedInput("a critical header parameter")
            signature = unb64url(parts[2], where="signature")
            return cls(header, payload, f"{parts[0]}.{parts[1]}".encode("ascii"), signature)

    @property
    def algorithm(self) -> str:
        """What the header says; `suits` decides whether it may."""
        return str(self.header.get("alg", "none"))

    def suits(self, key: object) -> bool:
        """Whether the header's algorithm is one that belongs to this kind of key."""
        if isinstance(key, ec.EllipticCurvePublicKey):
            return any(isinstance(key.curve, curve) and self.algorithm == name for curve, name, _ in _CURVES.values())
        if isinstance(key, ed25519.Ed25519PublicKey):
            return self.algorithm == _EDWARDS
        return isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048 and self.algorithm in _RSA

    def verifies(self, key: object) -> bool:
        """Whether `key` signed this token; False where the algorithm does not suit. The caller records it."""
        if not self.suits(key):
            return False
        if isinstance(key, ec.EllipticCurvePublicKey):
            algorithm = next(each for _, name, each in _CURVES.values() if name == self.algorithm)
            return verifies(key, self.signature, self.signed, algorithm)
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(self.signature, self.signed)
                return True
            digest, probabilistic = _RSA[self.algorithm]
            scheme: padding.AsymmetricPadding = padding.PKCS1v15()
            if probabilistic:
                scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
            key.verify(self.signature, self.signed, scheme, digest)  # type: ignore[attr-defined]
        except InvalidSignature:
            return False
        return True

    def certificates(self) -> tuple[Certificate, ...]:
        """The ``x5c`` chain of the header, or of its ``jwk``, leaf first; empty where there is none.

        RFC 7515 section 4.1.6 says standard base64; some issuers write base64url without padding, and
        both spellings are read. Raises `EvidenceMalformed`.
        """
        jwk = self.header.get("jwk")
        values = self.header.get("x5c") or (jwk.get("x5c") if isinstance(jwk, dict) else None)
        if not values:
            return ()
        if not isinstance(values, list) or len(values) > LONGEST_CHAIN or not all(isinstance(v, str) for v in values):
            raise EvidenceMalformed("token: x5c is not a list of certificates")
        with at_the_door("x5c"):
            octets = [_either_base64(each) for each in values]
        return tuple(parse_certificate(each, what="x5c") for each in octets)

    def header_key(self) -> PublicKey | None:
        """The key that the header spells out, to be compared and never trusted; raises `EvidenceMalformed`."""
        jwk = self.header.get("jwk")
        return None if jwk is None else parse_jwk(jwk)


def _either_base64(text: str) -> bytes:
    try:
        return unb64(text, where="x5c")
    except MalformedInput:
        return unb64url(text, where="x5c")


def parse_jwk(value: object) -> PublicKey:
    """A public JWK (RFC 7518 sections 6.2.1 and 6.3.1, RFC 8037 section 2); raises `EvidenceMalformed`.

    P-256, P-384, P-521, Ed25519 or RSA.

    Members beside the key's own (``kid``, ``use``, ``x5c``…) are left to the caller; a private one is refused.
    """
    with at_the_door("JWK"):
        read = Fields(value, where="JWK")
        kind = read.text("kty")
        if read.has("d") or read.has("k"):
            raise MalformedInput("a private or shared key where a public one belongs")
        if kind == "EC":
            curve = read.text("crv")
            if curve not in _CURVES:
                raise MalformedInput(f"curve {curve!r} is not accepted")
            return point(read.blob("x") + read.blob("y"), _CURVES[curve][0](), what="JWK")
        if kind == "OKP":
            if read.text("crv") != "Ed25519":
                raise MalformedInput("the curve is not Ed25519")
            return ed25519.Ed25519PublicKey.from_public_bytes(read.blob("x", size=32))
        if kind == "RSA":
            modulus, exponent = (int.from_bytes(read.blob(name, limit=1024), "big") for name in ("n", "e"))
            try:
                return rsa.RSAPublicNumbers(exponent, modulus).public_key()
            except ValueError as error:
                raise MalformedInput("not an RSA public key") from error
        raise MalformedInput(f"key type {kind!r} is not accepted")


def parse_jwks(text: str) -> dict[str, PublicKey]:
    """A JWKS (RFC 7517 section 5): ``kid`` → key; raises `EvidenceMalformed`.

    Keys of a kind that is not known here, or that nobody could use, are passed over as the section says; one has to be
    left. No two may have one ``kid``, and a private key is refused.
    """
    with at_the_door("JWKS"):
        listed = Fields(parse_json(text, where="JWKS"), where="JWKS").value("keys")
        if not isinstance(listed, list):
            raise MalformedInput("keys is not a list")
        keys: dict[str, PublicKey] = {}
        for value in listed:
            if isinstance(value, dict) and "d" in value:
                raise MalformedInput("a private key where public ones belong")
            try:
                name, key = Fields(value, where="JWKS: key").text("kid", limit=256), parse_jwk(value)
            except (EvidenceMalformed, MalformedInput):
                continue
            if name in keys:
                raise MalformedInput(f"kid {name!r} stands twice")
            keys[name] = key
        if not keys:
            raise MalformedInput("no key that can be used: each needs its own kid")
        return keys
