"""A key hierarchy shaped like AMD's, and reports signed under it: for what no public capture shows.

ARK → ASK → VCEK and ARK → ASVK → VLEK, RSASSA-PSS with SHA-384 as AMD signs, extensions as AMD 57230 section 3
has them. The RSA keys are shorter than AMD's, so that tests are quick.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from strongroom.encoding import b64
from strongroom.evidence.snp_report import Firmware, SnpReport, Tcb
from strongroom.evidence.types import Evidence

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
CPUID = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}
OID = "1.3.6.1.4.1.3704.1."


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _integer(number: int) -> bytes:
    return b"\x02\x02\x00" + bytes((number,)) if number > 127 else b"\x02\x01" + bytes((number,))


def _ia5(text: str) -> bytes:
    return b"\x16" + bytes((len(text),)) + text.encode()


@dataclass(frozen=True)
class Authority:
    """A CA certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    def crl(self, *revoked: x509.Certificate, at: datetime = NOW, days: int = 30) -> bytes:
        """A CRL of this authority in DER, valid for `days` around `at`."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(at - timedelta(days=1)).next_update(at + timedelta(days=days))
        for each in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(each.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(at - timedelta(days=2)).build())
        return builder.sign(self.key, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)


def _sign(builder: x509.CertificateBuilder, issuer: str, key: rsa.RSAPrivateKey, years: float) -> x509.Certificate:
    builder = builder.issuer_name(_name(issuer)).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=365)).not_valid_after(NOW + timedelta(days=365 * years))
    return builder.sign(key, hashes.SHA384(), rsa_padding=PSS)


def _ca(name: str, issuer: Authority | None, years: float = 10) -> Authority:
    key = rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateBuilder().subject_name(_name(name)).public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(True, None if issuer is None else 0), critical=True)
    others = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=issuer is None, **usage), critical=True)
    where = x509.DistributionPoint([x509.UniformResourceIdentifier("https://kds.example/crl")], None, None, None)
    builder = builder.add_extension(x509.CRLDistributionPoints([where]), critical=False)
    if issuer is None:
        return Authority(_sign(builder, name, key, years), key)
    return Authority(_sign(builder, issuer.certificate.subject.rfc4514_string()[3:], issuer.key, years), key)


class AmdKeys:
    """The authorities of one product line, and chips made under them."""

    def __init__(self, product: str) -> None:
        self.product = product
        self.ark = _ca(f"ARK-{product}", None)
        self.ask = _ca(f"SEV-{product}", self.ark)
        self.asvk = _ca(f"SEV-VLEK-{product}", self.ark)

    def issuers(self, product: str, kind: str) -> tuple[x509.Certificate, x509.Certificate]:
        """For `SnpVerifier(issuers=…)`: only this line's roots, whatever product a certificate names."""
        return (self.asvk if kind == "VLEK" else self.ask).certificate, self.ark.certificate

    def chip(self, **settings: object) -> Chip:
        return Chip(self, **settings)  # type: ignore[arg-type]


@cache
def amd_keys(product: str) -> AmdKeys:
    """One hierarchy a product line and test run."""
    return AmdKeys(product)


@dataclass(frozen=True)
class Chip:
    """A processor with an endorsement key for one TCB. `csp_id` makes its key a VLEK."""

    line: AmdKeys
    tcb: Tcb | None = None
    hwid: bytes | None = None
    csp_id: str | None = None
    product: str | None = None
    years: float = 5
    signer: Authority | None = None
    key: ec.EllipticCurvePrivateKey | None = None

    def __post_init__(self) -> None:
        turin = self.line.product == "Turin"
        object.__setattr__(self, "tcb", self.tcb or Tcb(7, 0, 20, 200, fmc=1 if turin else None))
        if self.csp_id is None and self.hwid is None:
            object.__setattr__(self, "hwid", bytes(range(1, 9 if turin else 65)))
        object.__setattr__(self, "key", self.key or ec.generate_private_key(ec.SECP384R1()))

    @property
    def kind(self) -> str:
        return "vlek" if self.csp_id is not None else "vcek"

    def certificate(self) -> bytes:
        """The VCEK or VLEK in DER."""
        assert self.key is not None
        assert self.tcb is not None
        signer = self.signer or (self.line.asvk if self.csp_id is not None else self.line.ask)
        values = {
            "1": _integer(0), "2": _ia5(self.product or self.line.product), "3.1": _integer(self.tcb.bootloader),
            "3.2": _integer(self.tcb.tee), "3.3": _integer(self.tcb.snp), "3.8": _integer(self.tcb.microcode),
        }  # fmt: skip
        if self.tcb.fmc is not None:
            values["3.9"] = _integer(self.tcb.fmc)
        if self.hwid is not None:
            values["4"] = self.hwid
        if self.csp_id is not None:
            values["5"] = _ia5(f"CN={self.csp_id}")
        builder = x509.CertificateBuilder().subject_name(_name(f"SEV-{self.kind.upper()}"))
        builder = builder.public_key(self.key.public_key())
        for oid, value in values.items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(OID + oid), value), critical=False
            )
        issuer = signer.certificate.subject.rfc4514_string()[3:]
        return _sign(builder, issuer, signer.key, self.years).public_bytes(Encoding.DER)

    def report(self, **changes: object) -> SnpReport:
        """A signed report of an ordinary guest on this chip, version 5 unless changed."""
        assert self.tcb is not None
        tcb, firmware = self.tcb.serialise(), Firmware(1, 55, 40)
        report = SnpReport(
            version=5, guest_svn=3, policy=0x30000, family_id=bytes(16), image_id=bytes(16), vmpl=0,
            signature_algorithm=1, current_tcb=tcb, platform_info=0x25,
            flags=(self.csp_id is not None) << 2,
            report_data=b"\x11" * 64, measurement=b"\x22" * 48, host_data=b"\x33" * 32, id_key_digest=bytes(48),
            author_key_digest=bytes(48), report_id=b"\x44" * 32, report_id_ma=b"\xff" * 32, reported_tcb=tcb,
            cpuid=CPUID[self.line.product], chip_id=(self.hwid or b"").ljust(64, b"\0"), committed_tcb=tcb,
            current=firmware, committed=firmware, launch_tcb=tcb, launch_mitigations=1, current_mitigations=1,
            r=bytes(72), s=bytes(72),
        )  # fmt: skip
        report = replace(report, **changes)  # type: ignore[arg-type]
        return self.signed(report)

    def signed(self, report: SnpReport) -> SnpReport:
        assert self.key is not None
        r, s = decode_dss_signature(self.key.sign(report.signed, ec.ECDSA(hashes.SHA384())))
        return replace(report, r=r.to_bytes(72, "little"), s=s.to_bytes(72, "little"))

    def signed_octets(self, octets: bytes) -> bytes:
        """1184 bytes signed as they stand, also where no parser would take them."""
        assert self.key is not None
        r, s = decode_dss_signature(self.key.sign(octets[:0x2A0], ec.ECDSA(hashes.SHA384())))
        return octets[:0x2A0] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + octets[0x330:]


def evidence_of(report: SnpReport | bytes) -> Evidence:
    """The body that `SnpVerifier` reads."""
    octets = report if isinstance(report, bytes) else report.serialise()
    return Evidence("snp", {"report": b64(octets)})
