"""COSE_Sign1 (RFC 9052 section 4.2) and strict CBOR, as attestation documents use them.

Signed with ECDSA only; the algorithm has to be the one that belongs to the key's curve. What
the payload means is its verifier's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom import cbor
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.ecdsa import verifies

COSE_SIGN1_TAG = 18
_ALGORITHMS: dict[int, tuple[str, type[ec.EllipticCurve], hashes.HashAlgorithm]] = {
    -7: ("ES256", ec.SECP256R1, hashes.SHA256()),
    -35: ("ES384", ec.SECP384R1, hashes.SHA384()),
    -36: ("ES512", ec.SECP521R1, hashes.SHA512()),
}


def decode_cbor(octets: bytes, *, what: str) -> Any:
    """One CBOR item with nothing after it and no key twice in a map; raises `EvidenceMalformed`."""
    try:
        return cbor.decode(octets, where=what)
    except MalformedInput as error:
        raise EvidenceMalformed(str(error)) from error


@dataclass(frozen=True, slots=True)
class Sign1:
    """One signed message. `protected` is the byte string as it stands, since it is signed as it stands."""

    protected: bytes
    algorithm: int
    unprotected: dict[Any, Any]
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, octets: bytes, *, what: str) -> Sign1:
        """From CBOR, tagged 18 or not; raises `EvidenceMalformed`."""
        return cls.of(decode_cbor(octets, what=what), what=what)

    @classmethod
    def of(cls, value: Any, *, what: str) -> Sign1:
        """From decoded CBOR: the array of four, tagged or not; raises `EvidenceMalformed`."""
        if isinstance(value, cbor2.CBORTag) and value.tag == COSE_SIGN1_TAG:
            value = value.value
        if not isinstance(value, list | tuple) or len(value) != 4:
            raise EvidenceMalformed(f"{what}: not a COSE_Sign1 array of four")
        protected, unprotected, payload, signature = value
        if not all(isinstance(each, bytes) for each in (protected, payload, signature)):
            raise EvidenceMalformed(f"{what}: protected header, payload and signature are byte strings")
        if not isinstance(unprotected, Mapping):
            raise EvidenceMalformed(f"{what}: the unprotected header is a map")
        header = decode_cbor(protected, what=f"{what}, protected header")
        if not isinstance(header, dict) or not isinstance(header.get(1), int) or isinstance(header[1], bool):
            raise EvidenceMalformed(f"{what}: the protected header names no algorithm")
        if 2 in header:  # crit: header parameters that must be understood, and nothing here does
            raise EvidenceMalformed(f"{what}: a critical header parameter")
        return cls(protected, header[1], dict(unprotected), payload, signature)

    @property
    def algorithm_name(self) -> str:
        """``ES384`` or what else the protected header names."""
        return _ALGORITHMS[self.algorithm][0] if self.algorithm in _ALGORITHMS else f"COSE algorithm {self.algorithm}"

    def suits(self, key: object) -> bool:
        """Whether the algorithm is an accepted one, on the key's own curve."""
        known = _ALGORITHMS.get(self.algorithm)
        return known is not None and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, known[1])

    def verifies(self, key: object) -> bool:
        """Whether `key` signed this; False where the algorithm does not suit it. The caller records it."""
        if not self.suits(key):
            return False
        structure = cbor2.dumps(["Signature1", self.protected, b"", self.payload])
        return verifies(key, self.signature, structure, _ALGORITHMS[self.algorithm][2])
