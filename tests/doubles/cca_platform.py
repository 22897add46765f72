"""A pretend Arm CCA platform: signs platform and realm tokens under keys made here, in both profiles."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from strongroom.encoding import b64url

ALGORITHMS = {
    "secp256r1": (-7, hashes.SHA256()),
    "secp384r1": (-35, hashes.SHA384()),
    "secp521r1": (-36, hashes.SHA512()),
}
CURVES = {"secp256r1": (1, "P-256"), "secp384r1": (2, "P-384"), "secp521r1": (3, "P-521")}


def sign1(
    key: ec.EllipticCurvePrivateKey, claims: Any, *, algorithm: int | None = None, header: dict | None = None
) -> bytes:
    """A tagged COSE_Sign1 over the CBOR of `claims`."""
    own, digest = ALGORITHMS[key.curve.name]
    protected = cbor2.dumps({1: own if algorithm is None else algorithm} | (header or {}))
    payload = cbor2.dumps(claims)
    width = (key.curve.key_size + 7) // 8
    signed = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]), ec.ECDSA(digest))
    signature = b"".join(each.to_bytes(width, "big") for each in decode_dss_signature(signed))
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature]))


@dataclass
class PretendCca:
    """One platform with one realm. `modern` asks for the 2023 realm profile, whose key is a COSE_Key."""

    platform_curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)
    realm_curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)
    modern: bool = True

    def __post_init__(self) -> None:
        self.cpak_key = ec.generate_private_key(self.platform_curve)
        self.rak_key = ec.generate_private_key(self.realm_curve)

    @property
    def cpak(self) -> bytes:
        point = self.cpak_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        x, y = point[: len(point) // 2], point[len(point) // 2 :]
        curve = CURVES[self.platform_curve.name][1]
        return json.dumps({"kty": "EC", "crv": curve, "x": b64url(x), "y": b64url(y)}).encode()

    @property
    def rak(self) -> bytes:
        point = self.rak_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        if not self.modern:
            return point
        half = len(point) // 2
        curve = CURVES[self.realm_curve.name][0]
        return cbor2.dumps({1: 2, -1: curve, -2: point[1 : 1 + half], -3: point[1 + half :]})

    def realm(self, challenge: bytes, **changes: Any) -> dict[int, Any]:
        claims: dict[int, Any] = {
            10: challenge, 44235: b"\x5e" * 64, 44236: "sha-256", 44237: self.rak, 44238: b"\x11" * 32,
            44239: [bytes((place,)) * 32 for place in range(4)], 44240: "sha-256",
        }  # fmt: skip
        if self.modern:
            claims[265] = "tag:arm.com,2023:realm#1.0.0"
        return claims | {int(key.removeprefix("c")): value for key, value in changes.items()}

    def platform(self, **changes: Any) -> dict[int, Any]:
        claims: dict[int, Any] = {
            265: "tag:arm.com,2023:cca_platform#1.0.0" if self.modern else "http://arm.com/CCA-SSD/1.0.0",
            10: hashlib.sha256(self.rak).digest(), 2396: b"\x1d" * 32, 256: b"\1" + b"\x2d" * 32, 2401: b"\xcf" * 4,
            2395: 0x3003, 2402: "sha-256", 2399: [{1: "RMM", 2: b"\x3d" * 32, 5: b"\x4d" * 32, 4: "1.0"}],
        }  # fmt: skip
        return claims | {int(key.removeprefix("c")): value for key, value in changes.items()}

    def token(
        self, challenge: bytes = bytes(64), *, platform: bytes | None = None, realm: bytes | None = None
    ) -> bytes:
        platform = platform or sign1(self.cpak_key, self.platform())
        realm = realm or sign1(self.rak_key, self.realm(challenge))
        return cbor2.dumps(cbor2.CBORTag(399, {44234: platform, 44241: realm}))
