"""A certificate authority in memory, for the paths that no published evidence walks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass
class Authority:
    """A key with its certificate; issues certificates and CRLs."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    certificate: x509.Certificate

    @classmethod
    def root(cls, name: str = "Root", **options) -> Authority:
        key = options.pop("key", None) or ec.generate_private_key(ec.SECP384R1())
        return cls(key, build(name, key, name, key, **({"ca": True} | options)))

    def issue(self, name: str, *, key=None, **options) -> Authority:
        key = key or ec.generate_private_key(ec.SECP384R1())
        return Authority(key, build(name, key, self.certificate.subject, self.key, **options))

    def crl(
        self,
        *revoked: x509.Certificate,
        begin: datetime = NOW - DAY,
        end: datetime = NOW + DAY,
        extensions: tuple[x509.ExtensionType, ...] = (),
        name: x509.Name | None = None,
    ) -> x509.CertificateRevocationList:
        builder = x509.CertificateRevocationListBuilder().issuer_name(name or self.certificate.subject)
        builder = builder.last_update(begin).next_update(end)
        for each in extensions:
            builder = builder.add_extension(each, critical=True)
        for each in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(each.serial_number).revocation_date(begin)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA384())


def build(
    name: str,
    key,
    issuer: str | x509.Name,
    issuer_key,
    *,
    ca: bool | None = None,
    path_length: int | None = None,
    usage: tuple[str, ...] | None = None,
    begin: datetime = NOW - 365 * DAY,
    end: datetime = NOW + 365 * DAY,
    algorithm: hashes.HashAlgorithm | None = None,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    serial: int | None = None,
    pss: bool = False,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer) if isinstance(issuer, str) else issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
    if usage is not None:
        names = [field for field in x509.KeyUsage.__init__.__annotations__ if field != "return"]
        builder = builder.add_extension(x509.KeyUsage(**{each: each in usage for each in names}), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    algorithm = algorithm or hashes.SHA384()
    padding = PSS(MGF1(algorithm), algorithm.digest_size) if pss else None
    return builder.sign(issuer_key, algorithm, rsa_padding=padding)
