"""ECDSA signatures in their raw form, R and S side by side, as evidence carries them.

X.509 uses DER, chips do not. `cryptography` does the arithmetic; here is only the change of
form, in one place, and the rule that a point off its curve cannot be parsed.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.errors import EvidenceMalformed


def point(octets: bytes, curve: ec.EllipticCurve, *, what: str) -> ec.EllipticCurvePublicKey:
    """The public key of an uncompressed point, x and y without the leading 04.

    Raises `EvidenceMalformed` for a wrong length and for a point that is not on the curve.
    """
    if len(octets) != 2 * ((curve.key_size + 7) // 8):
        raise EvidenceMalformed(f"{what}: {len(octets)} bytes are no point of {curve.name}")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + octets)
    except ValueError as error:
        raise EvidenceMalformed(
            f"{what}: not a point on {curve.name}", hint="the key was altered or belongs to another curve"
        ) from error


def verifies(key: object, signature: bytes, message: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    """Whether `signature` (R and S, big-endian, each as wide as the curve) is `key`'s over `message`.

    False also for a key that is no ECDSA key and for a signature of another length: the caller
    records that as a failed `signature` check and never ignores it.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    width = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * width:
        return False
    r, s = int.from_bytes(signature[:width], "big"), int.from_bytes(signature[width:], "big")
    if not r or not s:
        return False
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True
