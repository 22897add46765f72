"""The JSON body of TPM evidence (tee ``tpm``), ours and the key broker protocol's, as a typed value.

Ours (docs/attestation/tpm.md), everything but ``quotes`` optional, bytes in standard base64::

    {"ak_pub": TPMT_PUBLIC, "ak_spki": DER, "ak_name": hex, "ak_cert": DER, "ek_cert": DER,
     "certificates": [DER, …], "quotes": {"sha256": {"message", "signature", "pcrs": {"0": hex, …}}},
     "event_log": TCG binary log, "launch_log": [{"pcr", "event", "digest"}, …], "activation": 32 bytes}

A stock attester's: ``{"ak_public": DER, "tpm_quote": {"signature", "message", "pcrs": [hex, …]}}``, which is the
SHA-256 bank, quoted by a bare key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.encoding import Fields, b64
from strongroom.errors import MalformedInput
from strongroom.evidence.door import at_the_door, base64_field
from strongroom.evidence.tpm_event_log import LaunchEvent
from strongroom.evidence.tpm_quote import parse_pcrs

BANKS = ("sha256", "sha384", "sha512", "sha1")
"""In the order of preference: the first that was quoted is judged unless a policy names another."""
_LARGEST = 1 << 16
_LARGEST_LOG = 1 << 20


@dataclass(frozen=True, slots=True)
class BankQuote:
    """One quote: TPMS_ATTEST, TPMT_SIGNATURE and the values of its bank; each may be missing."""

    message: bytes | None = None
    signature: bytes | None = None
    pcrs: Mapping[int, bytes] | None = None

    @classmethod
    def parse(cls, value: object, *, bank: str) -> BankQuote:
        """From decoded JSON; raises `MalformedInput`."""
        read = Fields(value, where=f"TPM evidence: {bank} quote")
        quote = cls(
            _optional(read, "message"),
            _optional(read, "signature"),
            parse_pcrs(read.value("pcrs"), bank=bank, where=read.where) if read.has("pcrs") else None,
        )
        read.done()
        return quote

    def serialise(self) -> dict[str, Any]:
        """The inverse of `parse`."""
        value: dict[str, Any] = {}
        if self.message is not None:
            value["message"] = b64(self.message)
        if self.signature is not None:
            value["signature"] = b64(self.signature)
        if self.pcrs is not None:
            value["pcrs"] = {str(index): octets.hex() for index, octets in sorted(self.pcrs.items())}
        return value


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """A parsed body. `ak_pub` is TPMT_PUBLIC, `ak_spki` SubjectPublicKeyInfo, certificates are DER (or PEM)."""

    quotes: Mapping[str, BankQuote]
    ak_pub: bytes | None = None
    ak_spki: bytes | None = None
    ak_name: bytes | None = None
    ak_cert: bytes | None = None
    ek_cert: bytes | None = None
    certificates: tuple[bytes, ...] = ()
    event_log: bytes | None = None
    launch_log: tuple[LaunchEvent, ...] = ()
    activation: bytes | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> TpmEvidence:
        """Read a body of either form; raises `EvidenceMalformed`."""
        with at_the_door("TPM evidence"):
            read = Fields(body, where="TPM evidence")
            evidence = cls._stock(read) if read.has("tpm_quote") else cls._ours(read)
            read.done()
            return evidence

    @classmethod
    def _stock(cls, read: Fields) -> TpmEvidence:
        quote = BankQuote.parse(read.value("tpm_quote"), bank="sha256")
        return cls({"sha256": quote}, ak_spki=_optional(read, "ak_public"))

    @classmethod
    def _ours(cls, read: Fields) -> TpmEvidence:
        table = read.table("quotes")
        quotes = {bank: BankQuote.parse(table.value(bank), bank=bank) for bank in BANKS if table.has(bank)}
        table.done()
        events = read.value("launch_log") if read.has("launch_log") else []
        if not isinstance(events, list) or len(events) > 64:
            raise MalformedInput("TPM evidence: launch_log is not a list of at most 64 events")
        certificates = read.texts("certificates", limit=8, default=())
        return cls(
            quotes,
            ak_pub=_optional(read, "ak_pub"),
            ak_spki=_optional(read, "ak_spki"),
            ak_name=read.hexes("ak_name", limit=66) if read.has("ak_name") else None,
            ak_cert=_optional(read, "ak_cert"),
            ek_cert=_optional(read, "ek_cert"),
            certificates=tuple(
                base64_field(Fields({"certificate": each}, where=read.where), "certificate", limit=_LARGEST)
                for each in certificates
            ),
            event_log=_optional(read, "event_log", limit=_LARGEST_LOG),
            launch_log=tuple(LaunchEvent.parse(event) for event in events),
            activation=_optional(read, "activation", limit=32),
        )

    def serialise(self) -> dict[str, Any]:
        """The body in our own form; the inverse of `parse` for it."""
        value: dict[str, Any] = {"quotes": {bank: quote.serialise() for bank, quote in self.quotes.items()}}
        for name in ("ak_pub", "ak_spki", "ak_cert", "ek_cert", "event_log", "activation"):
            octets = getattr(self, name)
            if octets is not None:
                value[name] = b64(octets)
        if self.ak_name is not None:
            value["ak_name"] = self.ak_name.hex()
        if self.certificates:
            value["certificates"] = [b64(each) for each in self.certificates]
        if self.launch_log:
            value["launch_log"] = [event.serialise() for event in self.launch_log]
        return value

    def bank(self, wanted: str | None) -> str | None:
        """The bank to judge: the wanted one, else the first of `BANKS` that was quoted; None without any."""
        return wanted or next((bank for bank in BANKS if bank in self.quotes), None)


def _optional(read: Fields, name: str, *, limit: int = _LARGEST) -> bytes | None:
    if not read.has(name):
        return None
    return base64_field(read, name, limit=limit)
