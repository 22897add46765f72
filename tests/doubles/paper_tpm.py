"""Quotes as a TPM makes them, by keys whose every attribute a test may choose; certificates for them.

`software_tpm` is the real thing. This is for what a real TPM refuses to do: sign with SHA-1, quote with an
unrestricted key, certify the wrong one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from strongroom.evidence.tpm_certificate import EK_CERTIFICATE
from strongroom.evidence.tpm_evidence import BankQuote, TpmEvidence
from strongroom.evidence.tpm_structures import (
    DIGEST_SIZES,
    ECC,
    ECDSA,
    HASH_IDS,
    NULL,
    RSA,
    RSAPSS,
    RSASSA,
    PcrSelection,
    Quote,
    TpmPublic,
    TpmSignature,
)  # fmt: skip
from strongroom.evidence.types import Evidence

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = bytes(range(32))
HASHES = {"sha1": hashes.SHA1, "sha256": hashes.SHA256, "sha384": hashes.SHA384, "sha512": hashes.SHA512}
AK_ATTRIBUTES = 0x00050072
ENDORSEMENT = 0x4000000B


@cache
def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """Keys are slow to make; `number` tells apart those that have to differ."""
    return rsa.generate_private_key(65537, bits)


@cache
def ecc_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_of(key: Any, scheme: int, scheme_hash: str, attributes: int = AK_ATTRIBUTES) -> TpmPublic:
    numbers = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = numbers.n.to_bytes(key.key_size // 8, "big")
        return TpmPublic(
            RSA, "sha256", attributes, b"", (NULL,), scheme, scheme_hash, key.key_size, 0, 0, (), (modulus,)
        )
    point = tuple(number.to_bytes(32, "big") for number in (numbers.x, numbers.y))
    return TpmPublic(ECC, "sha256", attributes, b"", (NULL,), scheme, scheme_hash, 0, 0, 3, (NULL,), point)


def sign(key: Any, message: bytes, scheme: int, hash_name: str) -> bytes:
    """TPMT_SIGNATURE over `message`."""
    algorithm = HASHES[hash_name]()
    if scheme == ECDSA:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm)))
        return TpmSignature(scheme, hash_name, (r.to_bytes(32, "big"), s.to_bytes(32, "big"))).serialise()
    pad = padding.PKCS1v15() if scheme == RSASSA else padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
    return TpmSignature(scheme, hash_name, (key.sign(message, pad, algorithm),)).serialise()


@dataclass(frozen=True)
class PaperTpm:
    """One attestation key and its registers; `replace` any field to make another."""

    scheme: int = RSASSA
    hash_name: str = "sha256"
    attributes: int = AK_ATTRIBUTES
    bank: str = "sha256"
    selected: tuple[int, ...] = tuple(range(24))
    registers: Mapping[int, bytes] = field(default_factory=dict)
    nonce: bytes = NONCE
    key: Any = None

    @property
    def private(self) -> Any:
        return self.key or (ecc_key() if self.scheme == ECDSA else rsa_key())

    @property
    def public(self) -> TpmPublic:
        return public_of(self.private, self.scheme, self.hash_name, self.attributes)

    @property
    def pcrs(self) -> dict[int, bytes]:
        return {index: self.registers.get(index, bytes(DIGEST_SIZES[self.bank])) for index in range(24)}

    def quote(self) -> Quote:
        values = b"".join(self.pcrs[index] for index in self.selected)
        qualified = hashlib.sha256(ENDORSEMENT.to_bytes(4, "big") + self.public.name).digest()
        return Quote(
            HASH_IDS["sha256"].to_bytes(2, "big") + qualified, self.nonce, 1000, 3, 0, True, 0x2026,
            (PcrSelection(self.bank, self.selected),), hashlib.new(self.hash_name, values).digest(),
        )  # fmt: skip

    def body(self, quote: Quote | bytes | None = None, **changes: Any) -> TpmEvidence:
        message = quote if isinstance(quote, bytes) else (quote or self.quote()).serialise()
        signature = sign(self.private, message, self.scheme, self.hash_name)
        given = {self.bank: BankQuote(message, signature, self.pcrs)}
        return replace(TpmEvidence(given, ak_pub=self.public.serialise()), **changes)

    def evidence(self, quote: Quote | bytes | None = None, **changes: Any) -> Evidence:
        return Evidence("tpm", self.body(quote, **changes).serialise())


def schemes() -> list[PaperTpm]:
    """A TPM for each signature scheme and hash that is accepted."""
    return [
        PaperTpm(scheme=scheme, hash_name=name) for scheme in (RSASSA, RSAPSS, ECDSA) for name in ("sha256", "sha384")
    ]


class Maker:
    """A CA that certifies keys of TPMs: a root, an intermediate, and what they sign."""

    def __init__(self, name: str = "Maker") -> None:
        self.name = name
        self._keys = (ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1()))
        self.root = self._issue(f"{name} root", self._keys[0].public_key(), 0, ca=True)
        self.intermediate = self._issue(f"{name} intermediate", self._keys[1].public_key(), 0, ca=True)

    def certificate(self, key: Any, *, by: int = 1, years: float = 5, endorsement: bool = False) -> x509.Certificate:
        """For anything with a `public_key`; with `endorsement` it says that the key is a TPM's EK."""
        return self._issue("device", key.public_key(), by, ca=False, years=years, endorsement=endorsement)

    def _issue(
        self, subject: str, public: Any, by: int, *, ca: bool, years: float = 10, endorsement: bool = False
    ) -> x509.Certificate:
        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        issuer = f"{self.name} {('root', 'intermediate')[by]}"
        builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - timedelta(days=99))
        builder = builder.not_valid_after(NOW + timedelta(days=365 * years))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        address = x509.UniformResourceIdentifier(f"https://maker.example/crl/{by}")
        where = x509.DistributionPoint([address], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([where]), critical=False)
        if endorsement:
            usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier(EK_CERTIFICATE)])
            builder = builder.add_extension(usage, critical=False)
        return builder.sign(self._keys[by], hashes.SHA256())

    def crl(self, *revoked: x509.Certificate, by: int = 1, at: datetime = NOW) -> bytes:
        issuer = self.root if by == 0 else self.intermediate
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
        builder = builder.last_update(at - timedelta(days=1)).next_update(at + timedelta(days=30))
        for each in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(each.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(at).build())
        return builder.sign(self._keys[by], hashes.SHA256()).public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        """Root and intermediate, as a policy names them."""
        return "".join(each.public_bytes(Encoding.PEM).decode() for each in (self.intermediate, self.root))


@cache
def maker(name: str = "Maker") -> Maker:
    return Maker(name)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
