"""An Azure confidential guest on SNP: an HCL report over runtime data that names a virtual TPM's key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from doubles.amd_keys import Chip, amd_keys
from doubles.paper_tpm import PaperTpm
from strongroom.encoding import b64, b64url
from strongroom.evidence.azure_evidence import AzureEvidence, protocol_body
from strongroom.evidence.azure_hcl import HclReport
from strongroom.evidence.tpm_structures import TpmSignature
from strongroom.evidence.types import Evidence

VM = "26F8BC30-774E-4290-8E7A-535F3B672AEE"


@cache
def _chip() -> Chip:
    return amd_keys("Milan").chip()


def jwk(tpm: PaperTpm, kid: str = "HCLAkPub") -> dict[str, Any]:
    modulus = tpm.public.unique[0]
    return {"kid": kid, "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": b64url(modulus)}


@dataclass(frozen=True)
class AzureGuest:
    """One guest; `replace` any field to make another, or give `runtime` for other runtime data."""

    tpm: PaperTpm = field(default_factory=PaperTpm)
    runtime: dict[str, Any] | None = None
    user_data: bytes = b"\x0a" * 64
    chip: Chip = field(default_factory=_chip)
    trailing: bytes = b""
    report_changes: dict[str, Any] = field(default_factory=dict)

    @property
    def runtime_data(self) -> bytes:
        runtime = self.runtime or {
            "keys": [jwk(self.tpm), jwk(self.tpm, "HCLEkPub")],
            "vm-configuration": {"secure-boot": True, "console-enabled": False, "vmUniqueId": VM},
            "user-data": self.user_data.hex().upper(),
        }
        return json.dumps(runtime, separators=(",", ":")).encode() + self.trailing

    def hcl(self, **changes: Any) -> HclReport:
        digest = hashlib.sha256(self.runtime_data).digest()
        report = self.chip.report(**{"report_data": digest + bytes(32), **self.report_changes})
        hcl = HclReport(2, 2, report.serialise(), 1, 2, 1, self.runtime_data, 100)
        return replace(hcl, **changes)

    def parts(self, hcl: HclReport | None = None, **changes: Any) -> AzureEvidence:
        quote = self.tpm.body().quotes["sha256"]
        assert quote.message is not None
        assert quote.signature is not None
        signature = TpmSignature.parse(quote.signature).parts[0]
        hcl = hcl or self.hcl()
        return replace(
            AzureEvidence(hcl.serialise(), None, None, None, quote.message, signature, quote.pcrs), **changes
        )

    def evidence(self, hcl: HclReport | None = None, **changes: Any) -> Evidence:
        """The parts by themselves."""
        parts = self.parts(hcl, **changes)
        names = ("hcl_report", "report", "runtime_data", "tpm_quote", "tpm_signature")
        body: dict[str, Any] = {name: b64(octets) for name in names if (octets := getattr(parts, name)) is not None}
        if parts.pcrs is not None:
            body["pcrs"] = {str(index): value.hex() for index, value in parts.pcrs.items()}
        return Evidence("az-snp-vtpm", body)

    def protocol(self) -> Evidence:
        """The key broker protocol's form, with the VCEK in it."""
        parts = self.parts()
        assert parts.hcl_report is not None
        assert parts.tpm_quote is not None
        assert parts.tpm_signature is not None
        assert parts.pcrs is not None
        vcek = self.chip.certificate()
        return Evidence(
            "az-snp-vtpm", protocol_body(parts.hcl_report, parts.tpm_quote, parts.tpm_signature, parts.pcrs, vcek=vcek)
        )
