"""A pretend Intel: roots, a platform with a quoting enclave, and the provisioning service's collateral.

Real formats and real signatures under keys made here, for what no public capture shows: an SGX platform that
is up to date, every TCB status, revoked certificates, other enclaves, other modules. Verifiers take the root
as an argument, so nothing in the package knows of this.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from strongroom.evidence.dcap_collateral import SGX_EXTENSION
from strongroom.evidence.dcap_quote import INTEL_QE_VENDOR, EnclaveReport, TdReport

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FMSPC, PCE_ID = bytes.fromhex("00906ed50000"), b"\0\0"
DAY = timedelta(days=1)
QE_SIGNER = bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff")


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """R and S, 32 bytes each, as chips write them."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


@dataclass
class Certified:
    """A key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def certify(
    common: str,
    issuer: Certified | None = None,
    *,
    ca: bool = False,
    extension: bytes | None = None,
    begin: datetime = NOW - 365 * DAY,
    end: datetime = NOW + 365 * DAY,
) -> Certified:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer else key
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(issuer.certificate.subject if issuer else _name(common))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), critical=True)
    )
    if extension is not None:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), extension)
        builder = builder.add_extension(unknown, critical=False)
    return Certified(key, builder.sign(signer, hashes.SHA256()))


def der(tag: int, contents: bytes) -> bytes:
    size = len(contents)
    spelled = bytes((size,)) if size < 0x80 else b"\x81" + bytes((size,)) if size < 0x100 else (
        b"\x82" + size.to_bytes(2, "big")
    )  # fmt: skip
    return bytes((tag,)) + spelled + contents


def oid(dotted: str) -> bytes:
    arcs = list(map(int, dotted.split(".")))
    octets = bytearray()
    for arc in [arcs[0] * 40 + arcs[1], *arcs[2:]]:
        spelled = [arc & 0x7F]
        while arc := arc >> 7:
            spelled.append(arc & 0x7F | 0x80)
        octets += bytes(reversed(spelled))
    return der(0x06, bytes(octets))


def integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def sgx_extension(*, svns: tuple[int, ...], pce_svn: int, fmspc: bytes = FMSPC, pce_id: bytes = PCE_ID) -> bytes:
    """The extension of a PCK certificate (Intel's PCK certificate specification 1.3.5)."""
    tcb = b"".join(
        der(0x30, oid(f"{SGX_EXTENSION}.2.{place}") + integer(svn)) for place, svn in enumerate((*svns, pce_svn), 1)
    )
    tcb += der(0x30, oid(f"{SGX_EXTENSION}.2.18") + der(0x04, bytes(svns)))
    members = (
        (1, der(0x04, bytes(range(16)))), (2, der(0x30, tcb)), (3, der(0x04, pce_id)), (4, der(0x04, fmspc)),
        (5, der(0x0A, b"\1")), (6, der(0x04, bytes(range(16, 32)))),
    )  # fmt: skip
    return der(0x30, b"".join(der(0x30, oid(f"{SGX_EXTENSION}.{place}") + value) for place, value in members))


def level(status: str, *, svn: int = 5, pce_svn: int = 10, tdx_svn: int | None = None, **more: Any) -> dict[str, Any]:
    """A TCB level that asks for `svn` in every component."""
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn}] * 16, "pcesvn": pce_svn}
    if tdx_svn is not None:
        tcb["tdxtcbcomponents"] = [{"svn": tdx_svn}] * 16
    return {"tcb": tcb, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status, **more}


def isv_level(status: str, svn: int, **more: Any) -> dict[str, Any]:
    return {"tcb": {"isvsvn": svn}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status, **more}


def enclave(**changes: Any) -> EnclaveReport:
    """An enclave of no renown."""
    fields: dict[str, Any] = {
        "cpu_svn": bytes(16), "misc_select": 0, "isv_ext_prod_id": bytes(16),
        "attributes": b"\x05" + bytes(7) + b"\xe7" + bytes(7), "mr_enclave": b"\xe1" * 32, "mr_signer": b"\x51" * 32,
        "config_id": bytes(64), "isv_prod_id": 7, "isv_svn": 3, "config_svn": 0, "isv_family_id": bytes(16),
        "report_data": bytes(64),
    }  # fmt: skip
    return EnclaveReport(**fields | changes)


def trust_domain(**changes: Any) -> TdReport:
    """A production TD of TDX 1.0, SEPT_VE_DISABLE set."""
    fields: dict[str, Any] = {
        "tee_tcb_svn": b"\x05\x01" + b"\x05" * 14, "mr_seam": b"\x5e" * 48, "mr_signer_seam": bytes(48),
        "seam_attributes": bytes(8), "td_attributes": (1 << 28).to_bytes(8, "little"), "xfam": b"\xe7" + bytes(7),
        "mr_td": b"\x7d" * 48, "mr_config_id": bytes(48), "mr_owner": bytes(48), "mr_owner_config": bytes(48),
        "rtmr": (bytes(48),) * 4, "report_data": bytes(64),
    }  # fmt: skip
    return TdReport(**fields | changes)


@dataclass
class PretendIntel:
    """One vendor with one platform. `svn` and `pce_svn` are what its PCK certificate states."""

    svn: int = 5
    pce_svn: int = 10
    root: Certified = field(default_factory=lambda: certify("Intel SGX Root CA", ca=True))

    def __post_init__(self) -> None:
        self.pck_ca = certify("Intel SGX PCK Platform CA", self.root, ca=True)
        self.tcb_signer = certify("Intel SGX TCB Signing", self.root)
        extension = sgx_extension(svns=(self.svn,) * 16, pce_svn=self.pce_svn)
        self.pck = certify("Intel SGX PCK Certificate", self.pck_ca, extension=extension)
        self.attestation_key = ec.generate_private_key(ec.SECP256R1())

    # -- the platform ----------------------------------------------------------

    def quote(
        self, body: EnclaveReport | TdReport, *, version: int | None = None, qe: dict[str, Any] | None = None
    ) -> bytes:
        """A quote over `body`: version 3 for an enclave, 4 or 5 for a TD, unless asked otherwise."""
        octets, is_td = body.serialise(), isinstance(body, TdReport)
        version = version or (3 if not is_td else 4 if len(octets) == 584 else 5)
        header = version.to_bytes(2, "little") + b"\2\0" + (b"\x81" if is_td else b"\0") + bytes(3) + bytes(4)
        signed = header + INTEL_QE_VENDOR + bytes(20)
        if version == 5:
            kind = {384: 1, 584: 2, 648: 3}[len(octets)]
            signed += kind.to_bytes(2, "little") + len(octets).to_bytes(4, "little")
        signed += octets
        key, auth = point_of(self.attestation_key), bytes(range(32))
        bound = hashlib.sha256(key + auth).digest() + bytes(32)
        product = 2 if is_td else 1
        report = enclave(**{"mr_signer": QE_SIGNER, "isv_prod_id": product, "isv_svn": 8, "report_data": bound,
                            "attributes": b"\x11" + bytes(15)} | (qe or {}))  # fmt: skip
        inner = report.serialise() + raw_signature(self.pck.key, report.serialise())
        chain = self.pck.pem + self.pck_ca.pem + self.root.pem
        inner += len(auth).to_bytes(2, "little") + auth + b"\5\0" + len(chain).to_bytes(4, "little") + chain
        if version > 3:
            inner = b"\6\0" + len(inner).to_bytes(4, "little") + inner
        section = raw_signature(self.attestation_key, signed) + key + inner
        return signed + len(section).to_bytes(4, "little") + section

    # -- the provisioning service ------------------------------------------------

    def crl(
        self, issuer: Certified, *revoked: Certified, begin: datetime = NOW - DAY, end: datetime = NOW + DAY
    ) -> str:
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
        builder = builder.last_update(begin).next_update(end)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(x509.CRLNumber(1), critical=False).add_extension(identifier, critical=False)
        for each in revoked:
            serial = x509.RevokedCertificateBuilder().serial_number(each.certificate.serial_number)
            builder = builder.add_revoked_certificate(serial.revocation_date(begin).build())
        return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER).hex()

    def tcb_info(self, *levels: dict[str, Any], tdx: bool = False, **changes: Any) -> dict[str, Any]:
        info: dict[str, Any] = {
            "id": "TDX" if tdx else "SGX", "version": 3, "issueDate": "2026-05-20T00:00:00Z",
            "nextUpdate": "2026-06-20T00:00:00Z", "fmspc": FMSPC.hex().upper(), "pceId": PCE_ID.hex(), "tcbType": 0,
            "tcbEvaluationDataNumber": 18,
        }  # fmt: skip
        if tdx:
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
            info["tdxModule"] = module
            known = {**module, "id": "TDX_01", "tcbLevels": [isv_level("UpToDate", 5), isv_level("OutOfDate", 2)]}
            info["tdxModuleIdentities"] = [known]
        default = (level("UpToDate", tdx_svn=5 if tdx else None),)
        return info | {"tcbLevels": list(levels or default)} | changes

    def qe_identity(self, *, tdx: bool = False, **changes: Any) -> dict[str, Any]:
        identity = {
            "id": "TD_QE" if tdx else "QE", "version": 2, "issueDate": "2026-05-20T00:00:00Z",
            "nextUpdate": "2026-06-20T00:00:00Z", "tcbEvaluationDataNumber": 17, "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF", "attributes": "11" + "00" * 15, "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": QE_SIGNER.hex().upper(), "isvprodid": 2 if tdx else 1,
            "tcbLevels": [isv_level("UpToDate", 8), isv_level("OutOfDate", 2, advisoryIDs=["INTEL-SA-00615"])],
        }  # fmt: skip
        return identity | changes

    def collateral(
        self,
        *,
        tcb_info: dict[str, Any] | None = None,
        qe_identity: dict[str, Any] | None = None,
        tdx: bool = False,
        signer: Certified | None = None,
        **changes: str,
    ) -> bytes:
        """The nine-member document; `changes` replace members."""
        signer = signer or self.tcb_signer
        chain = (signer.pem + self.root.pem).decode()
        info = json.dumps(tcb_info or self.tcb_info(tdx=tdx), separators=(",", ":"))
        identity = json.dumps(qe_identity or self.qe_identity(tdx=tdx), separators=(",", ":"))
        document = {
            "pck_crl_issuer_chain": (self.pck_ca.pem + self.root.pem).decode(),
            "root_ca_crl": self.crl(self.root),
            "pck_crl": self.crl(self.pck_ca),
            "tcb_info_issuer_chain": chain,
            "tcb_info": info,
            "tcb_info_signature": raw_signature(signer.key, info.encode()).hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": identity,
            "qe_identity_signature": raw_signature(signer.key, identity.encode()).hex(),
        }
        return json.dumps(document | changes).encode()
