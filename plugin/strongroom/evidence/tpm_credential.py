"""Activate-credential, the broker's half: prove that an AK lives in the TPM of a certified EK.

"TPM 2.0 Library, Part 1: Architecture", revision 1.59, section 24 (credential protection) and section 11.4.10
(KDFa, KDFe). `make_credential` encrypts a secret so that only the TPM which holds the EK *and* has an object
of that very Name loaded can recover it; TPM2_ActivateCredential is the other half. docs/attestation/tpm.md
shows how both travel in the key broker protocol's ``extra-params``.

`Challenge` is what a broker keeps between its two messages, and `Activation` what it has learned in the end;
nobody but `Challenge.answered` makes one.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.encoding import Fields, b64, labelled
from strongroom.errors import EvidenceMalformed, EvidenceRefused
from strongroom.evidence.certificates import parse_certificate
from strongroom.evidence.door import base64_field
from strongroom.evidence.tpm_structures import TpmPublic, as_sized

EndorsementKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
SECRET_SIZE = 32
_ANSWER = "strongroom tpm activation 1"


@dataclass(frozen=True, slots=True)
class Credential:
    """TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, each with its size field in front, as tools take them."""

    blob: bytes
    encrypted_secret: bytes

    @classmethod
    def parse(cls, fields: object) -> Credential:
        """From the ``tpm`` object of a challenge's ``extra-params``; raises `MalformedInput`."""
        read = Fields(fields, where="credential")
        credential = cls(
            base64_field(read, "credential_blob", limit=512), base64_field(read, "encrypted_secret", limit=1024)
        )
        read.done()
        return credential

    def serialise(self) -> dict[str, str]:
        """The exact inverse of `parse`."""
        return {"credential_blob": b64(self.blob), "encrypted_secret": b64(self.encrypted_secret)}


def make_credential(ek: EndorsementKey, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt `secret` to the TPM that holds `ek` and an object named `ak_name`.

    The EK's name algorithm and storage cipher follow from its size, as the templates of the "TCG EK
    Credential Profile" 2.5, annex B say. Raises `EvidenceMalformed` for an EK of another kind or a secret
    that is longer than the name algorithm's digest.
    """
    algorithm, key_size = _template(ek)
    if not 1 <= len(secret) <= algorithm.digest_size:
        raise EvidenceMalformed(f"a credential holds 1 to {algorithm.digest_size} bytes, {len(secret)} were given")
    seed, encrypted = _seed(ek, algorithm)
    storage = _kdfa(algorithm, seed, b"STORAGE", ak_name, 8 * key_size)
    encryptor = Cipher(AES(storage), CFB(bytes(16))).encryptor()
    identity = encryptor.update(as_sized(secret)) + encryptor.finalize()
    integrity = _kdfa(algorithm, seed, b"INTEGRITY", b"", 8 * algorithm.digest_size)
    outer = hmac.digest(integrity, identity + ak_name, algorithm.name)
    return Credential(blob=as_sized(as_sized(outer) + identity), encrypted_secret=as_sized(encrypted))


def _template(ek: EndorsementKey) -> tuple[hashes.HashAlgorithm, int]:
    """(name algorithm, bytes of the AES key) of the EK template with such a key."""
    if isinstance(ek, rsa.RSAPublicKey):
        if ek.key_size == 2048:
            return hashes.SHA256(), 16
        if ek.key_size in (3072, 4096):
            return hashes.SHA384(), 32
    elif isinstance(ek, ec.EllipticCurvePublicKey):
        templates: dict[str, tuple[hashes.HashAlgorithm, int]] = {
            "secp256r1": (hashes.SHA256(), 16),
            "secp384r1": (hashes.SHA384(), 32),
            "secp521r1": (hashes.SHA512(), 32),
        }
        if ek.curve.name in templates:
            return templates[ek.curve.name]
    raise EvidenceMalformed("the endorsement key is of a kind that no TCG template has")


def _seed(ek: EndorsementKey, algorithm: hashes.HashAlgorithm) -> tuple[bytes, bytes]:
    """A fresh seed, and what lets the EK's TPM find it again (Part 1, annexes B.10.4 and C.6.4)."""
    if isinstance(ek, rsa.RSAPublicKey):
        seed = secrets.token_bytes(algorithm.digest_size)
        oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\0")
        return seed, ek.encrypt(seed, oaep)
    ephemeral = ec.generate_private_key(ek.curve)
    width = (ek.curve.key_size + 7) // 8
    mine, theirs = ephemeral.public_key().public_numbers(), ek.public_numbers()
    point = [number.to_bytes(width, "big") for number in (mine.x, mine.y)]
    info = b"IDENTITY\0" + point[0] + theirs.x.to_bytes(width, "big")  # KDFe is the concatenation KDF
    seed = ConcatKDFHash(algorithm, algorithm.digest_size, info).derive(ephemeral.exchange(ec.ECDH(), ek))
    return seed, b"".join(map(as_sized, point))


def _kdfa(algorithm: hashes.HashAlgorithm, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa: SP 800-108 in counter mode, 32-bit counter and length, the label's zero byte in between."""
    return KBKDFHMAC(
        algorithm, Mode.CounterMode, bits // 8, 4, 4, CounterLocation.BeforeFixed, label, context, None
    ).derive(key)


def spki_of(key: EndorsementKey) -> bytes:
    """A public key's SubjectPublicKeyInfo in DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_digest(key: EndorsementKey) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo: how a key is named where it has no Name."""
    return sha256(spki_of(key)).digest()


_ONLY_CHALLENGE = object()


@final
class Activation:
    """Proof that, in this session, the TPM of the EK `ek` (key digest) held the AK named `ak_name`."""

    __slots__ = ("ak_name", "ek")

    def __init__(self, maker: object, *, ak_name: bytes, ek: bytes) -> None:
        if maker is not _ONLY_CHALLENGE:
            raise TypeError("only Challenge.answered() makes an Activation")
        self.ak_name, self.ek = ak_name, ek


@dataclass(frozen=True, slots=True)
class Challenge:
    """One credential that was sent out, and the secret that must come back in an answer.

    The chain of the EK certificate is not looked at here: the verifier does that, with the policy's roots.
    """

    ek_cert: bytes
    ak_name: bytes
    credential: Credential
    _secret: bytes = field(repr=False)

    @classmethod
    def make(cls, ek_cert: bytes, ak_pub: bytes) -> Challenge:
        """For an EK certificate (DER) and a TPMT_PUBLIC as they came; raises `EvidenceMalformed`."""
        ek = _endorsement_key(ek_cert)
        name = TpmPublic.parse(ak_pub).name
        secret = secrets.token_bytes(SECRET_SIZE)
        return cls(ek_cert, name, make_credential(ek, name, secret), secret)

    @classmethod
    def announced(cls, fields: object) -> Challenge:
        """For what an attester's `announce` put into its request; raises `MalformedInput` or `EvidenceMalformed`."""
        read = Fields(fields, where="TPM announcement")
        ek_cert, ak_pub = (base64_field(read, name, limit=1 << 14) for name in ("ek_cert", "ak_pub"))
        read.done()
        return cls.make(ek_cert, ak_pub)

    def answered(self, answer: bytes, quote: bytes) -> Activation:
        """Check what `activation_answer` made on the other side over the same quote.

        Raises `EvidenceRefused`. A challenge is for one answer: throw it away afterwards, right or wrong.
        """
        if not hmac.compare_digest(activation_answer(self._secret, quote), answer):
            raise EvidenceRefused(
                "the credential was not activated by the TPM it was made for",
                hint="attest again; if it stays so, AK and endorsement key are of two different TPMs",
            )
        return Activation(_ONLY_CHALLENGE, ak_name=self.ak_name, ek=key_digest(_endorsement_key(self.ek_cert)))


def _endorsement_key(certificate: bytes) -> EndorsementKey:
    key = parse_certificate(certificate, what="EK certificate").public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise EvidenceMalformed("the endorsement key is of a kind that no TCG template has")
    return key


def activation_answer(secret: bytes, quote: bytes) -> bytes:
    """HMAC-SHA-256 under the recovered secret over the TPMS_ATTEST that goes with it: 32 bytes.

    The secret itself never travels, and the answer fits this quote alone.
    """
    return hmac.digest(secret, labelled(_ANSWER, quote), "sha256")
