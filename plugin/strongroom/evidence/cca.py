"""Verify an Arm CCA attestation token: platform, realm, and the key that ties them together.

docs/attestation/cca.md is the page for people. Evidence body (tee ``cca``), as the key broker
protocol has it: ``{"token": [bytes as numbers]}``. The platform attestation key's public half (CPAK, a JWK)
has no root that Arm publishes: it comes from the platform's vendor or owner and is trusted as given, so it stands
in the policy, by instance id; or it is handed in as the endorsement ``cpak``. Never take it from the guest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.allowlist import HexSet, check_allowed, hex_set
from strongroom.evidence.cca_token import LONGEST_TOKEN, PlatformClaims, RealmClaims, Token, parse_cpak
from strongroom.evidence.cose import Sign1
from strongroom.evidence.door import at_the_door
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, RevocationStatus, Word

SECURED = range(0x3000, 0x3100)
ACCEPTED = (-7, -35, -36)
"""COSE numbers of ES256, ES384 and ES512."""
HASHES = {"sha-256": hashlib.sha256, "sha-384": hashlib.sha384, "sha-512": hashlib.sha512}
_TOKEN = "draft-ffm-rats-cca-token, section 3"
_RMM = "Arm DEN0137, section A7.2 (realm attestation)"
_DIGESTS = (32, 48, 64)
_LISTS = {  # policy key → (sizes, claim, word)
    "measurements": (_DIGESTS, "initial_measurement", Word.MEASUREMENT),
    "rem0": (_DIGESTS, "rem0", Word.MEASUREMENT),
    "rem1": (_DIGESTS, "rem1", Word.MEASUREMENT),
    "rem2": (_DIGESTS, "rem2", Word.MEASUREMENT),
    "rem3": (_DIGESTS, "rem3", Word.MEASUREMENT),
    "personalization_values": ((64,), "personalization", Word.MEASUREMENT),
    "implementation_ids": ((32,), "implementation_id", Word.IDENTITY),
    "instance_ids": ((33,), "instance_id", Word.IDENTITY),
    "platform_configs": (range(4097), "platform_config", Word.MEASUREMENT),
}


@dataclass(frozen=True, slots=True)
class CcaPolicy:
    """A parsed ``[cca]`` table. Lists hold lower-case hex, None asks nothing.

    With `firmware`, every measured piece of platform firmware has to be on that list. `cpaks` maps an instance id
    (hex) to its attestation key; where there are any, no other platform is believed, whatever is handed in.
    """

    cpaks: Mapping[str, ec.EllipticCurvePublicKey] = field(default_factory=dict)
    firmware: HexSet | None = None
    firmware_signers: HexSet | None = None
    measurements: HexSet | None = None
    rem0: HexSet | None = None
    rem1: HexSet | None = None
    rem2: HexSet | None = None
    rem3: HexSet | None = None
    personalization_values: HexSet | None = None
    implementation_ids: HexSet | None = None
    instance_ids: HexSet | None = None
    platform_configs: HexSet | None = None

    @classmethod
    def read(cls, table: Fields) -> CcaPolicy:
        """Take the CCA keys out of `table`; the caller refuses what is left. Raises `MalformedInput`."""
        return cls(
            cpaks=_cpaks(table),
            firmware=hex_set(table, "firmware", sizes=_DIGESTS),
            firmware_signers=hex_set(table, "firmware_signers", sizes=_DIGESTS),
            **{name: hex_set(table, name, sizes=sizes) for name, (sizes, _, _) in _LISTS.items()},
        )


def _cpaks(table: Fields) -> dict[str, ec.EllipticCurvePublicKey]:
    if not table.has("cpaks"):
        return {}
    inner, keys = table.table("cpaks"), {}
    for instance in inner.left():
        if not re.fullmatch("01(?:[0-9a-f]{2}){32}", instance):
            raise MalformedInput(
                f"{inner.where}: {instance!r} is not an instance id, 33 bytes in hex that begin with 01"
            )
        try:
            keys[instance] = parse_cpak(inner.text(instance, limit=1 << 14).encode())
        except EvidenceMalformed as error:
            raise MalformedInput(f"{inner.where}: {instance}: {error}") from error
    if not keys:
        raise MalformedInput(f"{inner.where}: the table is empty, so no platform could be believed")
    return keys


@dataclass(frozen=True, slots=True)
class CcaClaims(Claims):
    """Claims that keep the platform's token, and whether every signature and binding held."""

    platform: PlatformClaims | None = None
    genuine: bool = False


class CcaVerifier:
    """The verifier of Arm CCA realms; see the module for body and endorsement."""

    tee = "cca"

    def policy(self, table: Fields) -> CcaPolicy:
        """Parse the ``[cca]`` table of a policy file; raises `MalformedInput`."""
        policy = CcaPolicy.read(table)
        table.done()
        return policy

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: CcaPolicy, checks: Checklist
    ) -> CcaClaims:
        """Both signatures and the binding of the realm's key; raises `EvidenceMalformed`.

        The token holds no time, so `now` decides nothing: its freshness is the realm challenge's.
        """
        token = Token.parse(_octets(evidence))
        platform, realm = PlatformClaims.parse(token.platform.payload), RealmClaims.parse(token.realm.payload)
        rak, instance = realm.key(), platform.instance_id.hex()
        cpak = policy.cpaks.get(instance) if policy.cpaks else endorsements.get("cpak")
        genuine = checks.that(
            cpak is not None, "cca.cpak-present", Word.COLLATERAL_MISSING,
            expected=f"the platform attestation key (CPAK) of instance {instance}",
            found="none" if cpak is None else "given", source=_TOKEN,
            hint="ask the platform's vendor for it, and add it to [cca.cpaks] in the policy",
        )  # fmt: skip
        checks.note_revocation(RevocationStatus.NO_LIST)  # a CPAK is a bare key: who no longer trusts it, takes it away
        if cpak is not None:
            key = parse_cpak(cpak) if isinstance(cpak, bytes) else cpak
            genuine &= _signed(token.platform, key, checks, "platform", "the CPAK is another platform's")
        genuine &= _signed(token.realm, rak, checks, "realm", "the realm's token was altered")
        if genuine:  # else the values to compare are nobody's word
            genuine = _bound(platform, realm, checks)
        return CcaClaims(
            tee="cca",
            values={name: Claim(value) for name, value in _values(platform, realm).items()},
            report_data=realm.challenge,
            binding_word=Word.NONCE,
            device_id=f"arm-cca:{platform.instance_id.hex()}",
            platform=platform,
            genuine=genuine,
        )

    def appraise(self, claims: Claims, policy: CcaPolicy, checks: Checklist) -> None:
        """Lifecycle, firmware and measurements, against `policy`. Nothing is read out of a broken token."""
        if not isinstance(claims, CcaClaims) or claims.platform is None:
            raise EvidenceMalformed(f"claims of {claims.tee} are not those of a CCA token")
        if not claims.genuine:
            return
        lifecycle = claims.platform.lifecycle
        checks.that(
            lifecycle in SECURED, "cca.lifecycle", Word.LIFECYCLE, expected="0x3000 to 0x30ff (secured)",
            found=f"{lifecycle:#06x}", source=_TOKEN,
            hint="the platform is being provisioned, debugged or decommissioned: use one in production state",
        )  # fmt: skip
        for key, (_, claim, word) in _LISTS.items():
            check_allowed(
                getattr(policy, key), claims[claim], checks, name=f"cca.{claim.replace('_', '-')}", word=word,
                key=key, source=_RMM if word is Word.MEASUREMENT else _TOKEN,
            )  # fmt: skip
        for component in claims.platform.components:
            for allowed, value, key in (
                (policy.firmware, component.measurement, "firmware"),
                (policy.firmware_signers, component.signer_id, "firmware_signers"),
            ):
                check_allowed(
                    allowed, value.hex(), checks, name=f"cca.{key.replace('_', '-')}.{component.kind or 'unnamed'}",
                    word=Word.MEASUREMENT, key=key, source=_TOKEN,
                )  # fmt: skip


def _octets(evidence: Evidence) -> bytes:
    with at_the_door("CCA evidence"):
        read = Fields(evidence.body, where="CCA evidence")
        numbers = read.value("token")
        read.done()
    if not isinstance(numbers, list) or len(numbers) > LONGEST_TOKEN:
        raise EvidenceMalformed(f"CCA evidence: token is not a list of at most {LONGEST_TOKEN} bytes")
    if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each <= 255 for each in numbers):
        raise EvidenceMalformed("CCA evidence: token holds something that is not a byte")
    return bytes(numbers)


def _signed(message: Sign1, key: object, checks: Checklist, which: str, hint: str) -> bool:
    accepted = checks.that(
        message.algorithm in ACCEPTED, f"cca.{which}-algorithm", Word.ALGORITHM, expected="ES256, ES384 or ES512",
        found=message.algorithm_name, source="RFC 9053", hint="only ECDSA with SHA-2 is accepted",
    )  # fmt: skip
    return accepted and checks.that(
        message.verifies(key), f"cca.{which}-signature", Word.SIGNATURE,
        expected=f"a {which} token signed by its attestation key, with the algorithm of that key's curve",
        found=f"{message.algorithm_name} over {len(message.payload)} bytes", source="RFC 9052 section 4.4", hint=hint,
    )  # fmt: skip


def _bound(platform: PlatformClaims, realm: RealmClaims, checks: Checklist) -> bool:
    algorithm = HASHES.get(realm.public_key_hash_algorithm)
    known = checks.that(
        algorithm is not None, "cca.key-hash-algorithm", Word.ALGORITHM, expected=" or ".join(HASHES),
        found=realm.public_key_hash_algorithm, source=_TOKEN, hint="only SHA-2 is accepted",
    )  # fmt: skip
    if algorithm is None:
        return known
    digest = algorithm(realm.public_key).digest()
    return checks.that(
        digest == platform.challenge, "cca.realm-key", Word.BINDING,
        expected=f"platform challenge {digest.hex()}, the digest of the realm's key",
        found=platform.challenge.hex(), source=_TOKEN,
        hint="the two tokens were not made together: the realm's token does not belong to this platform",
    )  # fmt: skip


def _values(platform: PlatformClaims, realm: RealmClaims) -> dict[str, object]:
    return {
        "platform_profile": platform.profile,
        "implementation_id": platform.implementation_id.hex(),
        "instance_id": platform.instance_id.hex(),
        "platform_config": platform.config.hex(),
        "lifecycle": platform.lifecycle,
        "platform_hash_algorithm": platform.hash_algorithm,
        "firmware": [
            {"type": each.kind, "version": each.version, "measurement": each.measurement.hex(),
             "signer_id": each.signer_id.hex()}
            for each in platform.components
        ],
        "realm_profile": realm.profile,
        "realm_hash_algorithm": realm.hash_algorithm,
        "initial_measurement": realm.initial_measurement.hex(),
        "measurement": realm.initial_measurement.hex(),
        **{f"rem{place}": each.hex() for place, each in enumerate(realm.extensible_measurements)},
        "personalization": realm.personalization.hex(),
        "report_data": realm.challenge.hex(),
    }  # fmt: skip
