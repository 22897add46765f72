"""What a piece of evidence needs beside itself: names of endorsements, read out of the evidence.

A name is a path of short words, such as ``dcap/tdx/00906ED50000/platform`` or ``rim/NV_GPU_DRIVER_GH100_550.90.07``:
the key of the store, a path under a directory source, and what `show` prints. Evidence is parsed here and not
believed: whoever lies about its chip fetches the wrong endorsements and is refused by the verifier. An address out of a
certificate is followed only where its vendor signed it, or somebody whom the owner's policy names
(`trusted.vouched`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate

from strongroom.collateral.trusted import Trusted, vouched
from strongroom.encoding import Fields, unb64, unb64url
from strongroom.errors import MalformedInput
from strongroom.evidence.certificates import name_of, parse_chain
from strongroom.evidence.dcap import parse_quote
from strongroom.evidence.dcap_collateral import SGX_EXTENSION, PckExtension
from strongroom.evidence.dcap_quote import TEE_TDX
from strongroom.evidence.door import at_the_door
from strongroom.evidence.types import Endorsements, Evidence

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
SWITCH_BOARD = "5612_0002_890"
"""NVSwitch LS10 reports state no project: NVIDIA's tools use this one for all of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One endorsement that is needed: its name, and the role in which verifiers expect it.

    `context` holds what a question to a responder needs (certificate and issuer, DER); it is no part of the name's
    meaning, which its digest already is.
    """

    name: str
    role: str
    context: tuple[bytes, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not all(_WORD.match(word) for word in self.name.split("/")) or not 2 <= self.name.count("/") + 1 <= 6:
            raise MalformedInput(f"{self.name!r} is not a name of an endorsement")

    @property
    def kind(self) -> str:
        """The first word: ``dcap``, ``vcek``, ``amd-crl``, ``rim``, ``ocsp``, ``crl``."""
        return self.name.split("/")[0]

    @property
    def optional(self) -> bool:
        """Whether only policies that demand revocation status need it (answers and lists; DCAP's are inside)."""
        return self.kind in ("ocsp", "amd-crl", "crl")

    @property
    def words(self) -> tuple[str, ...]:
        """The other words."""
        return tuple(self.name.split("/")[1:])


OURS = Trusted()


def wanted_for(evidence: Evidence, trusted: Trusted = OURS) -> tuple[Wanted, ...]:
    """What this evidence needs; empty for TEEs whose evidence brings everything. Raises `EvidenceMalformed`."""
    reader = _READERS.get(evidence.tee)
    if reader is None:
        return ()
    with at_the_door(f"{evidence.tee} evidence"):
        found = tuple(reader(evidence.body, trusted))
    return tuple({each.name: each for each in found}.values())


def _dcap(body: Mapping[str, object], trusted: Trusted) -> list[Wanted]:
    quote = body.get("quote", body.get("td_quote"))
    if not isinstance(quote, str):
        raise MalformedInput("no quote")
    octets = unb64url(quote.rstrip("="), where="quote") if "td_quote" in body else unb64(quote, where="quote")
    return [dcap_for_quote(octets)]


def dcap_for_quote(octets: bytes) -> Wanted:
    """The collateral that an SGX or TD quote needs; raises `EvidenceMalformed`."""
    quote = parse_quote(octets)
    chain = parse_chain(quote.pck_chain, what="PCK chain of the quote")
    with at_the_door("PCK certificate"):
        value = next((each.value for each in chain[0].extensions if each.oid.dotted_string == SGX_EXTENSION), None)
        if value is None:
            raise MalformedInput("the SGX extension is missing")
        fmspc = PckExtension.parse(value.public_bytes()).fmspc.hex().upper()
    authority = "processor" if "Processor" in chain[0].issuer.rfc4514_string() else "platform"
    return Wanted(f"dcap/{'tdx' if quote.tee_type == TEE_TDX else 'sgx'}/{fmspc}/{authority}", "collateral")


def _snp(body: Mapping[str, object], trusted: Trusted) -> list[Wanted]:
    from strongroom.evidence.snp import parse_body

    octets, carried = parse_body(Evidence("snp", body))
    return _snp_report(octets, carried.get("vcek"))


def _azure_snp(body: Mapping[str, object], trusted: Trusted) -> list[Wanted]:
    from strongroom.evidence.azure_evidence import AzureEvidence
    from strongroom.evidence.azure_hcl import HclReport

    parts = AzureEvidence.parse(body)
    report = parts.report if parts.hcl_report is None else HclReport.parse(parts.hcl_report).hardware
    return [] if report is None else _snp_report(report, parts.vcek)


def _snp_report(octets: bytes, vcek: bytes | None) -> list[Wanted]:
    """The chip's certificate, unless it came with the report, and its root's list."""
    from strongroom.evidence.snp_certificate import SnpCertificate
    from strongroom.evidence.snp_report import SnpReport, Tcb

    report = SnpReport.parse(octets)
    product = report.product
    if report.signing_key == "VLEK":  # AMD hands VLEKs to cloud providers only: the host has to send it
        return [Wanted(f"amd-crl/vlek/{product}", "crl")] if product else []
    if product is None and vcek is not None:
        product = SnpCertificate.parse(vcek, kind="VCEK").product
    if product is None:
        return []  # version 2 reports do not say which line they are of; their evidence carries the certificate
    lists = [Wanted(f"amd-crl/vcek/{product}", "crl")]
    if vcek is not None or not any(report.chip_id):
        return lists
    tcb = Tcb.parse(report.reported_tcb, product=product)
    chip = report.chip_id[:8] if product == "Turin" else report.chip_id
    parts = [tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode] + ([tcb.fmc] if product == "Turin" else [])
    return [Wanted(f"vcek/{product}/{chip.hex()}/{'.'.join(map(str, parts))}", "vcek"), *lists]


def _nitro(body: Mapping[str, object], trusted: Trusted) -> list[Wanted]:
    from strongroom.evidence.certificates import parse_certificate
    from strongroom.evidence.cose import Sign1
    from strongroom.evidence.nitro import AttestationDocument

    octets = unb64(Fields(body, where="Nitro evidence").text("document", limit=1 << 15), where="document")
    document = AttestationDocument.parse(Sign1.parse(octets, what="Nitro document").payload)
    chain = [parse_certificate(each, what="Nitro certificate") for each in (document.certificate, *document.cabundle)]
    return status_of(vouched((chain[0], *reversed(chain[1:])), (trusted.aws_root,)))


def _tpm(body: Mapping[str, object], trusted: Trusted) -> list[Wanted]:
    """Lists for a key that a cloud certified, and for the EK of a TPM whose maker a policy names."""
    from strongroom.evidence.certificates import parse_certificate
    from strongroom.evidence.tpm_evidence import TpmEvidence
    from strongroom.evidence.tpm_key import carried, way_up

    evidence = TpmEvidence.parse(body)
    found: list[Wanted] = []
    for octets, known in ((evidence.ak_cert, trusted.google_certificates), (evidence.ek_cert, trusted.tpm_makers)):
        if octets is not None and known:
            leaf = parse_certificate(octets, what="certificate")
            found += status_of(vouched(*way_up(leaf, known, carried(evidence, Endorsements()))))
    return found


def _ear(body: Mapping[str, object], trusted: Trusted) -> list[Wanted]:
    from strongroom.evidence.jws import LONGEST_TOKEN, CompactJws

    token = CompactJws.parse(Fields(body, where="ear").text("token", limit=LONGEST_TOKEN), what="EAR")
    return status_of(vouched(token.certificates(), trusted.verifiers)) if trusted.verifiers else []


def _nvidia(body: Mapping[str, object], trusted: Trusted) -> list[Wanted]:
    from strongroom.evidence.nvidia import UNDERSTOOD
    from strongroom.evidence.nvidia_spdm import SpdmReport

    devices = Fields(body, where="NVIDIA evidence").value("device_evidence_list")
    if not isinstance(devices, list):
        raise MalformedInput("device_evidence_list is not a list")
    found: list[Wanted] = []
    for device in devices:
        read = Fields(device, where="NVIDIA device")
        report = SpdmReport.parse(unb64(read.text("evidence", limit=1 << 18), where="evidence"))
        chain = parse_chain(unb64(read.text("certificate", limit=1 << 18), where="certificate"), what="device chain")
        product = name_of(chain[0]).split("CN=")[-1].split(" ")[0].split(",")[0]
        found += rims_for(report, product)
        found += status_of(vouched(chain, (trusted.nvidia_device_root,), understood=UNDERSTOOD))
    return found


def rims_for(report: object, product: str) -> list[Wanted]:
    """The ids by which NVIDIA's RIM service knows a device's manifests."""
    from strongroom.evidence.nvidia_spdm import CHIP_INFO, CHIP_SKU, PROJECT, PROJECT_SKU, SpdmReport

    if not isinstance(report, SpdmReport):
        raise MalformedInput("not an SPDM report")
    vbios = report.vbios_version.replace(".", "").upper()
    if product.startswith("LS"):
        return [Wanted(f"rim/NV_SWITCH_BIOS_{SWITCH_BOARD}_{vbios}", f"vbios_rim:{vbios}")]
    chip = report.text(CHIP_INFO) or product
    series = "NV_GPU_DRIVER" if chip.startswith("GH") else "NV_GPU_CC_DRIVER"
    board = "_".join(report.text(kind).upper() for kind in (PROJECT, PROJECT_SKU, CHIP_SKU))
    driver = report.driver_version
    return [
        Wanted(f"rim/{series}_{chip}_{driver}", f"driver_rim:{driver}"),
        Wanted(f"rim/NV_GPU_VBIOS_{board}_{vbios}", f"vbios_rim:{vbios}"),
    ]


def status_of(path: Sequence[Certificate]) -> list[Wanted]:
    """An answer for each certificate of a vouched path (leaf first): OCSP where it names a responder, else its CRL."""
    from strongroom.evidence.revocation import list_of, responder_of

    found = []
    for certificate, issuer in pairwise(path):
        octets = certificate.public_bytes(Encoding.DER)
        context = (octets, issuer.public_bytes(Encoding.DER))
        if responder_of(certificate) is not None:
            digest = hashlib.sha256(octets).hexdigest()
            found.append(Wanted(f"ocsp/{digest}", f"ocsp:{digest[:16]}", context))
        elif (url := list_of(certificate)) is not None:
            digest = hashlib.sha256(url.encode() + context[1]).hexdigest()
            found.append(Wanted(f"crl/{digest}", f"crl:{digest[:16]}", context))
    return found


def status_of_rim(octets: bytes, trusted: Trusted = OURS) -> list[Wanted]:
    """The OCSP answers that a RIM's signers need; raises `EvidenceMalformed`."""
    from strongroom.evidence.nvidia_rim import SignedRim

    signed = SignedRim.parse(octets)
    return [] if signed is None else status_of(vouched(signed.chain, (trusted.nvidia_rim_root,)))


_READERS: dict[str, Callable[[Mapping[str, object], Trusted], list[Wanted]]] = {
    "tdx": _dcap,
    "sgx": _dcap,
    "az-tdx-vtpm": _dcap,
    "snp": _snp,
    "az-snp-vtpm": _azure_snp,
    "aws-nitro": _nitro,
    "tpm": _tpm,
    "ear": _ear,
    "nvidia": _nvidia,
}
