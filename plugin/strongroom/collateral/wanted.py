"""What a piece of evidence needs beside itself: names of endorsements, read out of the evidence.

A name is a path of short words, such as ``dcap/tdx/00906ED50000/platform`` or ``rim/NV_GPU_DRIVER_GH100_550.90.07``:
the key of the store, a path under a directory source, and what `show` prints. Evidence is parsed here and not
believed: whoever lies about its chip fetches the wrong endorsements and is refused by the verifier.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate

from strongroom.encoding import Fields, unb64, unb64url
from strongroom.errors import MalformedInput
from strongroom.evidence.certificates import name_of, parse_chain
from strongroom.evidence.dcap import parse_quote
from strongroom.evidence.dcap_collateral import SGX_EXTENSION, PckExtension
from strongroom.evidence.dcap_quote import TEE_TDX
from strongroom.evidence.door import at_the_door
from strongroom.evidence.types import Evidence

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
        """The first word: ``dcap``, ``vcek``, ``amd-crl``, ``rim``, ``ocsp``."""
        return self.name.split("/")[0]

    @property
    def optional(self) -> bool:
        """Whether only policies that demand revocation status need it (answers and lists; DCAP's are inside)."""
        return self.kind in ("ocsp", "amd-crl")

    @property
    def words(self) -> tuple[str, ...]:
        """The other words."""
        return tuple(self.name.split("/")[1:])


def wanted_for(evidence: Evidence) -> tuple[Wanted, ...]:
    """What this evidence needs; empty for TEEs whose evidence brings everything. Raises `EvidenceMalformed`."""
    reader = _READERS.get(evidence.tee)
    if reader is None:
        return ()
    with at_the_door(f"{evidence.tee} evidence"):
        found = tuple(reader(evidence.body))
    return tuple({each.name: each for each in found}.values())


def _dcap(body: Mapping[str, object]) -> list[Wanted]:
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


def _snp(body: Mapping[str, object]) -> list[Wanted]:
    from strongroom.evidence.snp import parse_body
    from strongroom.evidence.snp_report import SnpReport

    octets, carried = parse_body(Evidence("snp", body))
    report = SnpReport.parse(octets)
    product = report.product
    if report.signing_key == "VLEK":  # AMD hands VLEKs to cloud providers only: the host has to send it
        return [Wanted(f"amd-crl/vlek/{product}", "crl")] if product else []
    if product is None:
        return []  # version 2 reports do not say which line they are of; their evidence carries the certificate
    lists = [Wanted(f"amd-crl/vcek/{product}", "crl")]
    if "vcek" in carried or not any(report.chip_id):
        return lists
    from strongroom.evidence.snp_report import Tcb

    tcb = Tcb.parse(report.reported_tcb, product=product)
    chip = report.chip_id[:8] if product == "Turin" else report.chip_id
    parts = [tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode] + ([tcb.fmc] if product == "Turin" else [])
    return [Wanted(f"vcek/{product}/{chip.hex()}/{'.'.join(map(str, parts))}", "vcek"), *lists]


def _nvidia(body: Mapping[str, object]) -> list[Wanted]:
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
        found += status_of(chain)
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


def status_of(chain: Sequence[Certificate]) -> list[Wanted]:
    """An OCSP answer for each certificate of a chain (leaf first) that names a responder."""
    from strongroom.evidence.revocation import responder_of

    found = []
    for certificate, issuer in pairwise(chain):
        if responder_of(certificate) is not None:
            octets = certificate.public_bytes(Encoding.DER)
            digest = hashlib.sha256(octets).hexdigest()
            context = (octets, issuer.public_bytes(Encoding.DER))
            found.append(Wanted(f"ocsp/{digest}", f"ocsp:{digest[:16]}", context))
    return found


def status_of_rim(octets: bytes) -> list[Wanted]:
    """The OCSP answers that a RIM's signers need; raises `EvidenceMalformed`."""
    from strongroom.evidence.nvidia_rim import SignedRim

    signed = SignedRim.parse(octets)
    return [] if signed is None else status_of(signed.chain)


_READERS: dict[str, Callable[[Mapping[str, object]], list[Wanted]]] = {
    "tdx": _dcap,
    "sgx": _dcap,
    "az-tdx-vtpm": _dcap,
    "snp": _snp,
    "nvidia": _nvidia,
}
