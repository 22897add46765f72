"""What a VCEK or VLEK certificate says about its chip, and its chain to AMD's root.

AMD publication 57230 ("Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
Specification"), section 3: the extensions under 1.3.6.1.4.1.3704.1 hold the product, the TCB for
which the key was derived, the chip (VCEK) or the cloud provider (VLEK).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import extension, name_of, parse_certificate, verify_chain
from strongroom.evidence.revocation import Lists, check_status
from strongroom.evidence.roots import root
from strongroom.evidence.snp_report import Tcb
from strongroom.evidence.types import Checklist, Word

KDS = "AMD 57230 section 3.1"
NO_LISTS = Lists()
PRODUCTS = ("Milan", "Genoa", "Turin")
_OID = "1.3.6.1.4.1.3704.1."
_COMPONENTS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_FMC = "3.9"

Issuers = Callable[[str, str], tuple[x509.Certificate, x509.Certificate]]
"""(product, ``VCEK`` or ``VLEK``) → the intermediate that signs such keys, and its root."""


def amd_issuers(product: str, kind: str) -> tuple[x509.Certificate, x509.Certificate]:
    """AMD's own intermediate (ASK or ASVK) and root (ARK) of a product line, as this release carries them."""
    line = product.lower()
    return root(f"amd_{line}_{'asvk' if kind == 'VLEK' else 'ask'}.pem"), root(f"amd_{line}_ark.pem")


@dataclass(frozen=True, slots=True)
class SnpCertificate:
    """A VCEK or VLEK with its AMD extensions read.

    `hwid` is 64 bytes (8 on Turin) and only in a VCEK; `csp_id` only in a VLEK, without its ``CN=``.
    """

    certificate: x509.Certificate
    product: str
    tcb: Tcb
    hwid: bytes | None
    csp_id: str | None

    @classmethod
    def parse(cls, octets: bytes, *, kind: str) -> SnpCertificate:
        """Read one certificate, DER or PEM; raises `EvidenceMalformed`. `kind` is for the message."""
        certificate = parse_certificate(octets, what=kind)
        stepping = _text(certificate, "2", kind)
        product = stepping.split("-")[0]
        if product not in PRODUCTS:
            raise EvidenceMalformed(f"{kind}: product {stepping!r} is not one that is known here")
        parts = {name: _number(certificate, oid, kind) for name, oid in _COMPONENTS.items()}
        fmc = _number(certificate, _FMC, kind) if product == "Turin" else None
        hwid = extension(certificate, _OID + "4")
        if hwid is not None and len(hwid) != (8 if product == "Turin" else 64):
            raise EvidenceMalformed(f"{kind}: a hwid of {len(hwid)} bytes")
        csp_id = None if extension(certificate, _OID + "5") is None else _text(certificate, "5", kind)
        return cls(certificate, product, Tcb(**parts, fmc=fmc), hwid, csp_id.removeprefix("CN=") if csp_id else csp_id)

    def verify(
        self, *, kind: str, issuers: Issuers, now: datetime, checks: Checklist, lists: Lists = NO_LISTS,
        require_revocation: bool = False,
    ) -> bool:  # fmt: skip
        """Follow the chain to the product's root and look the certificates up in `lists`.

        The endorsement keys themselves are not in any CRL: AMD's intermediates may not sign one, and
        all VCEKs share serial number 0. What can be revoked is the intermediate, by its root.
        """
        intermediate, ark = issuers(self.product, kind)
        path = verify_chain(
            (self.certificate, intermediate), roots=(ark,), now=now, checks=checks, name=f"snp.{kind.lower()}",
            source=KDS,
        )  # fmt: skip
        key = self.certificate.public_key()
        curve = checks.that(
            isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1),
            f"snp.{kind.lower()}.key", Word.ALGORITHM, expected="a key on P-384",
            found=key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__, source=KDS,
            hint="this is not a certificate of AMD's key service",
        )  # fmt: skip
        if path is not None:
            check_status(path, lists, now=now, checks=checks, name=f"snp.{kind.lower()}", required=require_revocation)
        return path is not None and curve

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey | None:
        """The P-384 key, or None where it is of another kind."""
        key = self.certificate.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
            return key
        return None

    def __str__(self) -> str:
        return f"{name_of(self.certificate)} ({self.product}, {self.tcb})"


def _value(certificate: x509.Certificate, oid: str, kind: str) -> bytes:
    value = extension(certificate, _OID + oid)
    if value is None:
        raise EvidenceMalformed(f"{kind}: extension {_OID}{oid} is missing")
    return value


def _text(certificate: x509.Certificate, oid: str, kind: str) -> str:
    """A DER IA5String of at most 127 characters."""
    value = _value(certificate, oid, kind)
    if len(value) < 3 or value[0] != 0x16 or value[1] != len(value) - 2 or value[1] > 127 or not value.isascii():
        raise EvidenceMalformed(f"{kind}: extension {_OID}{oid} is not a short IA5String")
    return value[2:].decode("ascii")


def _number(certificate: x509.Certificate, oid: str, kind: str) -> int:
    """A DER INTEGER from 0 to 255; above 127 it has two bytes."""
    value = _value(certificate, oid, kind)
    if len(value) == 3 and value[:2] == b"\x02\x01" and value[2] < 128:
        return value[2]
    if len(value) == 4 and value[:3] == b"\x02\x02\x00" and value[3] >= 128:
        return value[3]
    raise EvidenceMalformed(f"{kind}: extension {_OID}{oid} is not a number from 0 to 255")
