"""The JSON bodies of Azure evidence (tees ``az-snp-vtpm`` and ``az-tdx-vtpm``) as a typed value.

The key broker protocol's form: ``{"version": 1 or 2, "tpm_quote": {"signature": hex, "message": hex, "pcrs":
[hex, …]}, "hcl_report": base64url, "vcek": base64url}``, with ``td_quote`` in place of ``vcek`` for TDX.

The parts by themselves, in standard base64, all optional: ``{"hcl_report", "report", "tdreport",
"runtime_data", "tpm_quote", "tpm_signature", "pcrs": [hex, …], "quote"}``. What stands beside an HCL report has
to equal what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.encoding import Fields, b64url, unb64url
from strongroom.evidence.azure_hcl import LARGEST
from strongroom.evidence.door import at_the_door, base64_field
from strongroom.evidence.tpm_quote import parse_pcrs

BANK = "sha256"


@dataclass(frozen=True, slots=True)
class AzureEvidence:
    """A parsed body; what was not sent is None. `vcek` came with the evidence and is a mere endorsement."""

    hcl_report: bytes | None = None
    report: bytes | None = None
    tdreport: bytes | None = None
    runtime_data: bytes | None = None
    tpm_quote: bytes | None = None
    tpm_signature: bytes | None = None
    pcrs: Mapping[int, bytes] | None = None
    quote: bytes | None = None
    vcek: bytes | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> AzureEvidence:
        """Read a body of either form; raises `EvidenceMalformed`."""
        with at_the_door("Azure evidence"):
            read = Fields(body, where="Azure evidence")
            evidence = cls._protocol(read) if read.has("version") else cls._parts(read)
            read.done()
            return evidence

    @classmethod
    def _protocol(cls, read: Fields) -> AzureEvidence:
        read.number("version", low=1, high=2)
        quote = read.table("tpm_quote")
        evidence = cls(
            hcl_report=_base64url(read, "hcl_report"),
            tpm_quote=quote.hexes("message", limit=LARGEST),
            tpm_signature=quote.hexes("signature", limit=LARGEST),
            pcrs=parse_pcrs(quote.value("pcrs"), bank=BANK, where=quote.where),
            quote=_base64url(read, "td_quote") if read.has("td_quote") else None,
            vcek=_base64url(read, "vcek") if read.has("vcek") else None,
        )
        quote.done()
        return evidence

    @classmethod
    def _parts(cls, read: Fields) -> AzureEvidence:
        names = ("hcl_report", "report", "tdreport", "runtime_data", "tpm_quote", "tpm_signature", "quote")
        parts = {name: base64_field(read, name, limit=LARGEST) for name in names if read.has(name)}
        pcrs = parse_pcrs(read.value("pcrs"), bank=BANK, where=read.where) if read.has("pcrs") else None
        return cls(**parts, pcrs=pcrs)


def protocol_body(
    hcl_report: bytes, message: bytes, signature: bytes, pcrs: Mapping[int, bytes], **other: bytes
) -> dict[str, Any]:
    """The key broker protocol's body, as an attester sends it; `other` is ``vcek`` or ``td_quote``."""
    values = [pcrs[index].hex() for index in range(24)]
    quote = {"signature": signature.hex(), "message": message.hex(), "pcrs": values}
    return {"version": 1, "tpm_quote": quote, **{name: _padded(octets) for name, octets in other.items()},
            "hcl_report": _padded(hcl_report)}  # fmt: skip


def _padded(octets: bytes) -> str:
    text = b64url(octets)
    return text + "=" * (-len(text) % 4)


def _base64url(read: Fields, name: str) -> bytes:
    """Base64url with the padding that stock attesters write, or without."""
    text = read.text(name, limit=2 * LARGEST)
    stripped = text.rstrip("=")
    if len(text) != len(stripped):
        read = Fields({name: text}, where=read.where)
        if len(text) % 4 or len(text) - len(stripped) > 2:
            stripped = text  # refused below
    return unb64url(stripped, where=f"{read.where}: {name}")
