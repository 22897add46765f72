"""A pretend NVIDIA: device certificates, SPDM reports, reference manifests, CRLs and OCSP answers.

Real formats and real signatures under keys made here, for what no public capture shows: a GPU that matches
both of its RIMs, revocation answers, RIMs that are signed wrongly on purpose.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from doubles.dcap_platform import der, integer, oid
from lxml import etree

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SHA384 = hashes.SHA384()
FIRMWARE_ID = b"\xf1" * 48
OCSP_ADDRESS = x509.AuthorityInformationAccess(
    [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier("http://ocsp.example"))]
)
SWID, HASH = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd", "http://www.w3.org/2001/04/xmlenc#sha384"


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """R and S, 48 bytes each."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA384)))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


@dataclass
class Certified:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def certify(
    common: str,
    issuer: Certified | None = None,
    *,
    ca: bool = True,
    extensions: tuple[x509.ExtensionType, ...] = (),
    begin: datetime = NOW - 365 * DAY,
    end: datetime = NOW + 365 * DAY,
) -> Certified:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    return Certified(key, builder.sign(issuer.key if issuer else key, SHA384))


def composite_device_id(key: ec.EllipticCurvePublicKey, firmware_id: bytes) -> x509.UnrecognizedExtension:
    """Hopper's FWID extension: version, device key, and the firmware's digest."""
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pair = der(0x30, oid("2.16.840.1.101.3.4.2.2") + der(0x04, firmware_id))
    value = der(0x30, integer(1) + info + pair)
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), value)


def rim_xml(product: str, version: str, references: dict[int, list[bytes]], *, edition: str = "GPU") -> bytes:
    """An unsigned manifest; indices that are not in `references` are there, inactive."""
    resources = "".join(
        f'<n:Resource type="Measurement" index="{index}" active="{index in references}" '
        f'alternatives="{len(values)}" '
        + " ".join(f'h:Hash{place}="{value.hex()}"' for place, value in enumerate(values))
        + f' name="Measurement_{index}" size="{len(values[0])}"/>\n'
        for index in range(64)
        for values in [references.get(index, [bytes(48)])]
    )
    return (
        f'<SoftwareIdentity xmlns="{SWID}" xmlns:n="{SWID}" xmlns:h="{HASH}" name="{product}">\n'
        f'<n:Meta colloquialVersion="{version}" edition="{edition}" product="{product}"/>\n'
        f"<n:Payload>\n{resources}</n:Payload>\n</SoftwareIdentity>"
    ).encode()


def sign_rim(unsigned: bytes, signer: Certified, chain: list[Certified], *, uri: str = "") -> bytes:
    """`unsigned` with an enveloped signature as its last child."""
    document = etree.fromstring(unsigned)
    digest = b64encode(hashlib.sha384(etree.tostring(document, method="c14n")).digest()).decode()
    certificates = "".join(
        f"<ds:X509Certificate>{b64encode(each.certificate.public_bytes(Encoding.DER)).decode()}</ds:X509Certificate>"
        for each in [signer, *chain]
    )
    ds, c14n = "http://www.w3.org/2000/09/xmldsig#", "http://www.w3.org/2006/12/xml-c14n11"
    more = "http://www.w3.org/2001/04/xmldsig-more#"
    signature = etree.fromstring(
        f'<ds:Signature xmlns:ds="{ds}"><ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{c14n}"/>'
        f'<ds:SignatureMethod Algorithm="{more}ecdsa-sha384"/><ds:Reference URI="{uri}"><ds:Transforms>'
        f'<ds:Transform Algorithm="{ds}enveloped-signature"/><ds:Transform Algorithm="{c14n}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{more}sha384"/><ds:DigestValue>{digest}</ds:DigestValue></ds:Reference>'
        f"</ds:SignedInfo><ds:SignatureValue/><ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo>"
        f"</ds:Signature>"
    )
    document.append(signature)
    octets = raw_signature(signer.key, etree.tostring(signature[0], method="c14n"))
    signature[1].text = b64encode(octets).decode()
    return etree.tostring(document)


@dataclass
class PretendNvidia:
    """One vendor with one device: `product` ``GH100`` is a GPU, ``LS_10`` a switch."""

    product: str = "GH100"
    driver: str = "575.51.02"
    vbios: str = "96.00.9F.00.01"
    nvdec0: bytes = b"\xaa"
    root: Certified = field(default_factory=lambda: certify("NVIDIA Device Identity CA"))
    rim_root: Certified = field(default_factory=lambda: certify("NVIDIA CoRIM signing Root CA"))

    def __post_init__(self) -> None:
        self.identity = certify("NVIDIA GH100 Identity", self.root, extensions=(OCSP_ADDRESS,))
        self.boot_rom = certify(f"{self.product} A01 GSP BROM", self.identity)
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        self.leaf = certify(
            f"{self.product} A01 GSP FMC LF", self.boot_rom, ca=False,
            extensions=(composite_device_id(key, FIRMWARE_ID),),
        )  # fmt: skip
        self.rim_ca = certify("NVIDIA Reference Value CA", self.rim_root, extensions=(OCSP_ADDRESS,))
        self.rim_signer = certify("HCC RIM L4 Signer", self.rim_ca, ca=False, extensions=(OCSP_ADDRESS,))
        self.values = {index: hashlib.sha384(bytes((index,))).digest() for index in range(1, 65)}

    @property
    def chain(self) -> bytes:
        return b"".join(each.pem for each in (self.leaf, self.boot_rom, self.identity, self.root))

    def report(self, nonce: bytes, *, firmware_id: bytes = FIRMWARE_ID, key: ec.EllipticCurvePrivateKey | None = None):
        """An SPDM request with its signed response."""
        octets = b"\x11\xe0\x01\xff" + nonce + b"\0"
        record = b"".join(
            bytes((index, 1)) + (51).to_bytes(2, "little") + b"\1" + (48).to_bytes(2, "little") + value
            for index, value in sorted(self.values.items())
        )
        numbers = [int(part, 16) for part in self.vbios.split(".")]
        spelled = bytes((numbers[3], numbers[2], numbers[1], numbers[0], numbers[4])) + bytes(3)
        fields = {6: spelled, 20: firmware_id, 11: self.nvdec0}
        if self.product.startswith("LS"):
            fields[6] = self.vbios.encode()
        else:
            fields[3] = self.driver.encode() + b"\0"
        opaque = b"".join(
            kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value for kind, value in fields.items()
        )
        octets += b"\x11\x60\0\0" + bytes((len(self.values),)) + len(record).to_bytes(3, "little") + record
        octets += bytes(range(32)) + len(opaque).to_bytes(2, "little") + opaque
        return octets + raw_signature(key or self.leaf.key, octets)

    # -- endorsements --------------------------------------------------------------

    def rim(self, kind: str, *, references: dict[int, list[bytes]] | None = None, version: str | None = None) -> bytes:
        """A signed RIM that this device matches: drivers measure odd indices here, VBIOS even ones."""
        own = {index: [bytes(48), self.values[index + 1]] for index in range(63) if index % 2 == (kind == "driver")}
        version = version or (self.driver if kind == "driver" else self.vbios)
        unsigned = rim_xml(self.product, version, references if references is not None else own)
        return sign_rim(unsigned, self.rim_signer, [self.rim_ca, self.rim_root])

    def crl(self, issuer: Certified, *revoked: Certified, end: datetime = NOW + DAY) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
        builder = builder.last_update(NOW - DAY).next_update(end)
        for each in revoked:
            serial = x509.RevokedCertificateBuilder().serial_number(each.certificate.serial_number)
            builder = builder.add_revoked_certificate(serial.revocation_date(NOW - DAY).build())
        return builder.sign(issuer.key, SHA384).public_bytes(Encoding.DER)

    def ocsp(
        self,
        about: Certified,
        issuer: Certified,
        *,
        signer: Certified | None = None,
        revoked: bool = False,
        begin: datetime = NOW - DAY,
        end: datetime | None = NOW + DAY,
    ) -> bytes:
        """An answer about one certificate, by its issuer or by another signer."""
        signer = signer or issuer
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=about.certificate, issuer=issuer.certificate, algorithm=hashes.SHA1(),
            cert_status=ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            this_update=begin, next_update=end, revocation_time=NOW - DAY if revoked else None,
            revocation_reason=None,
        )  # fmt: skip
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
        if signer is not issuer:
            builder = builder.certificates([signer.certificate])
        return builder.sign(signer.key, SHA384).public_bytes(Encoding.DER)

    def responder(self, issuer: Certified, *, appointed: bool = True) -> Certified:
        usage = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]),) if appointed else ()
        return certify("OCSP responder", issuer, ca=False, extensions=usage)

    def answers(self) -> dict[str, bytes]:
        """A good answer for every certificate that names a responder."""
        return {
            "ocsp:identity": self.ocsp(self.identity, self.root),
            "ocsp:rim-ca": self.ocsp(self.rim_ca, self.rim_root),
            "ocsp:rim-signer": self.ocsp(self.rim_signer, self.rim_ca),
        }
