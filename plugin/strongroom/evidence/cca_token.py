"""Arm CCA attestation tokens as values: the outer map, the platform's claims and the realm's.

docs/attestation/cca.md lists the claims. Sources: draft-ffm-rats-cca-token (2023 profile), Arm's
"Realm Management Monitor specification" (DEN0137) section A7, and the older profile
``http://arm.com/CCA-SSD/1.0.0``, in which the realm names no profile and its key is a raw point.
Nothing is verified here; `cca` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.encoding import Fields, parse_json, unb64url
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.cose import Sign1, decode_cbor
from strongroom.evidence.ecdsa import point

TOKEN_TAG, PLATFORM, REALM = 399, 44234, 44241
OLD_PLATFORM = "http://arm.com/CCA-SSD/1.0.0"
PLATFORM_PROFILES = frozenset({OLD_PLATFORM, "tag:arm.com,2023:cca_platform#1.0.0"})
REALM_PROFILES = frozenset({"tag:arm.com,2023:realm#1.0.0"})
LONGEST_TOKEN = 1 << 16
_CURVES: dict[int, ec.EllipticCurve] = {1: ec.SECP256R1(), 2: ec.SECP384R1(), 3: ec.SECP521R1()}
_JWK_CURVES = {"P-256": 1, "P-384": 2, "P-521": 3}
_DIGESTS = (32, 48, 64)


class _Claims:
    """A strict reader of one token's claim map: integer keys, each with its type and size."""

    def __init__(self, octets: bytes, *, what: str) -> None:
        decoded = decode_cbor(octets, what=what)
        if not isinstance(decoded, Mapping):
            raise EvidenceMalformed(f"{what}: the claims are not a map")
        self._claims: Mapping[Any, Any] = decoded
        self._what = what

    def take(self, key: int, kind: type, name: str, *, sizes: tuple[int, ...] = (), default: Any = None) -> Any:
        value = self._claims.get(key, default)
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits:
            raise EvidenceMalformed(f"{self._what}: {name} ({key}) is missing or of another type")
        if sizes and len(value) not in sizes:
            raise EvidenceMalformed(f"{self._what}: {name} ({key}) has {len(value)} bytes")
        return value

    def has(self, key: int) -> bool:
        return key in self._claims


@dataclass(frozen=True, slots=True)
class Component:
    """One piece of platform firmware that was measured at boot."""

    kind: str
    measurement: bytes
    version: str
    signer_id: bytes

    @classmethod
    def parse(cls, value: object) -> Component:
        """One member of ``arm-platform-sw-components``; raises `EvidenceMalformed`."""
        what = "CCA platform token: software component"
        if not isinstance(value, Mapping):
            raise EvidenceMalformed(f"{what} is not a map")
        kind, version, measurement, signer = value.get(1, ""), value.get(4, ""), value.get(2), value.get(5)
        if not isinstance(kind, str) or not isinstance(version, str):
            raise EvidenceMalformed(f"{what}: type or version is not text")
        if not isinstance(measurement, bytes) or not isinstance(signer, bytes):
            raise EvidenceMalformed(f"{what}: measurement or signer id is missing")
        if len(measurement) not in _DIGESTS or len(signer) not in _DIGESTS:
            raise EvidenceMalformed(f"{what}: measurement or signer id is not a digest")
        return cls(kind, measurement, version, signer)


@dataclass(frozen=True, slots=True)
class PlatformClaims:
    """What the platform's own token says."""

    profile: str
    challenge: bytes
    """Digest of the realm's public key, 32, 48 or 64 bytes."""
    implementation_id: bytes
    instance_id: bytes
    config: bytes
    lifecycle: int
    components: tuple[Component, ...]
    hash_algorithm: str

    @classmethod
    def parse(cls, payload: bytes) -> PlatformClaims:
        """From the payload of the platform's COSE_Sign1; raises `EvidenceMalformed`."""
        read = _Claims(payload, what="CCA platform token")
        profile = read.take(265, str, "profile")
        if profile not in PLATFORM_PROFILES:
            raise EvidenceMalformed(f"CCA platform token: profile {profile!r} is not known")
        instance_id = read.take(256, bytes, "instance id", sizes=(33,))
        if instance_id[0] != 1:
            raise EvidenceMalformed("CCA platform token: the instance id is not a UEID of type 1")
        lifecycle = read.take(2395, int, "lifecycle")
        if not 0 <= lifecycle <= 0xFFFF:
            raise EvidenceMalformed(f"CCA platform token: lifecycle {lifecycle}")
        components = read.take(2399, list | tuple, "software components")  # type: ignore[arg-type]
        if not 1 <= len(components) <= 256:
            raise EvidenceMalformed(f"CCA platform token: {len(components)} software components")
        return cls(
            profile,
            read.take(10, bytes, "challenge", sizes=_DIGESTS),
            read.take(2396, bytes, "implementation id", sizes=(32,)),
            instance_id,
            read.take(2401, bytes, "configuration"),
            lifecycle,
            tuple(Component.parse(each) for each in components),
            read.take(2402, str, "hash algorithm"),
        )


@dataclass(frozen=True, slots=True)
class RealmClaims:
    """What the realm management monitor says about the realm."""

    profile: str
    """Empty in the older profile."""
    challenge: bytes
    personalization: bytes
    initial_measurement: bytes
    extensible_measurements: tuple[bytes, bytes, bytes, bytes]
    hash_algorithm: str
    public_key: bytes = field(repr=False)
    """The realm attestation key exactly as it stands, since these bytes are hashed."""
    public_key_hash_algorithm: str

    @classmethod
    def parse(cls, payload: bytes) -> RealmClaims:
        """From the payload of the realm's COSE_Sign1; raises `EvidenceMalformed`."""
        read = _Claims(payload, what="CCA realm token")
        profile = read.take(265, str, "profile") if read.has(265) else ""
        if profile and profile not in REALM_PROFILES:
            raise EvidenceMalformed(f"CCA realm token: profile {profile!r} is not known")
        extensible = read.take(44239, list | tuple, "extensible measurements")  # type: ignore[arg-type]
        if len(extensible) != 4 or not all(isinstance(each, bytes) and len(each) in _DIGESTS for each in extensible):
            raise EvidenceMalformed("CCA realm token: extensible measurements are not four digests")
        return cls(
            profile,
            read.take(10, bytes, "challenge", sizes=(64,)),
            read.take(44235, bytes, "personalization value", sizes=(64,)),
            read.take(44238, bytes, "initial measurement", sizes=_DIGESTS),
            tuple(extensible),
            read.take(44236, str, "hash algorithm"),
            read.take(44237, bytes, "public key"),
            read.take(44240, str, "public key hash algorithm"),
        )

    def key(self) -> ec.EllipticCurvePublicKey:
        """The realm attestation key: a raw point, or an encoded COSE_Key (RFC 9052 section 7).

        Raises `EvidenceMalformed`, also for a point off its curve.
        """
        octets, what = self.public_key, "CCA realm public key"
        if octets[:1] == b"\x04":
            curve = {65: 1, 97: 2, 133: 3}.get(len(octets))
            if curve is None:
                raise EvidenceMalformed(f"{what}: {len(octets)} bytes are no point of a known curve")
            return point(octets[1:], _CURVES[curve], what=what)
        key = decode_cbor(octets, what=what)
        number = key.get(-1) if isinstance(key, Mapping) and key.get(1) == 2 else None
        if not isinstance(key, Mapping) or type(number) is not int or number not in _CURVES:
            raise EvidenceMalformed(f"{what}: not a COSE_Key of type EC2 on a known curve")
        x, y = key.get(-2), key.get(-3)
        if not isinstance(x, bytes) or not isinstance(y, bytes) or len(x) != len(y):
            raise EvidenceMalformed(f"{what}: coordinates are missing or compressed")
        return point(x + y, _CURVES[number], what=what)


@dataclass(frozen=True, slots=True)
class Token:
    """The two signed tokens that travel as one (CBOR tag 399)."""

    platform: Sign1
    realm: Sign1

    @classmethod
    def parse(cls, octets: bytes) -> Token:
        """From at most 64 KiB of CBOR; raises `EvidenceMalformed`."""
        if len(octets) > LONGEST_TOKEN:
            raise EvidenceMalformed(f"CCA token: {len(octets)} bytes, the limit is {LONGEST_TOKEN}")
        outer = decode_cbor(octets, what="CCA token")
        if not isinstance(outer, cbor2.CBORTag) or outer.tag != TOKEN_TAG or not isinstance(outer.value, Mapping):
            raise EvidenceMalformed("CCA token: not a map under CBOR tag 399")
        members = dict(outer.value)
        if set(members) != {PLATFORM, REALM} or not all(isinstance(each, bytes) for each in members.values()):
            raise EvidenceMalformed("CCA token: not exactly a platform (44234) and a realm (44241) token")
        return cls(
            Sign1.parse(members[PLATFORM], what="CCA platform token"),
            Sign1.parse(members[REALM], what="CCA realm token"),
        )


def parse_cpak(octets: bytes) -> ec.EllipticCurvePublicKey:
    """The platform's attestation key (CPAK) as a JWK of type EC; raises `EvidenceMalformed`.

    A point that is not on its curve cannot be parsed. Members that are not the key's own say nothing here and may
    stand beside it (RFC 7517 section 4); a private or shared key is refused.
    """
    what = "CPAK"
    try:
        read = Fields(parse_json(octets, where=what, limit=1 << 14), where=what)
        kind, curve = read.text("kty", limit=8), read.text("crv", limit=8)
        x, y = (unb64url(read.text(name, limit=100), where=f"{what}: {name}") for name in ("x", "y"))
        if read.has("d") or read.has("k"):
            raise MalformedInput(f"{what}: a private or shared key where a public one belongs")
    except MalformedInput as error:
        raise EvidenceMalformed(str(error)) from error
    if kind != "EC" or curve not in _JWK_CURVES or len(x) != len(y):
        raise EvidenceMalformed(f"{what}: not an EC key on P-256, P-384 or P-521")
    return point(x + y, _CURVES[_JWK_CURVES[curve]], what=what)
