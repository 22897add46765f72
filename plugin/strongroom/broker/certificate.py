"""A broker's own TLS certificate, for clients that pin it (docs/release.md section 13)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strongroom.errors import ConfigurationInvalid

LIFE = timedelta(days=398)

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


def self_signed(name: str, hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """(certificate, private key), both PEM, P-256, for DNS names and IP addresses; 398 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def check_host(host: str) -> None:
    """Raise `ConfigurationInvalid` for what is neither an address nor a DNS name in ASCII."""
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        if len(host) > 253 or not _DNS_NAME.fullmatch(host):
            raise ConfigurationInvalid(
                f"{host!r} is neither a DNS name nor an address",
                hint="keys.example, 10.1.2.3 or ::1; a name in other letters is written as DNS has it, xn--…",
            ) from error


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def days_left(pem: bytes, now: datetime) -> int:
    """For how many whole days the first certificate of a PEM file is still valid; negative once it has ended."""
    return (x509.load_pem_x509_certificate(pem).not_valid_after_utc - now).days
