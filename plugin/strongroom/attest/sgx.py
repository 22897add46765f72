"""Obtain an SGX quote inside an enclave that Gramine runs: its files under ``/dev/attestation``.

Write 64 bytes to ``user_report_data``, read ``quote`` (Gramine documentation, "Attestation and secret
provisioning", low-level interface). The body is the key broker protocol's ``{"quote"}``.
docs/attestation/sgx.md is the page for people.
"""

from __future__ import annotations

import threading
from pathlib import Path

from strongroom.attest.binding import fit, insist
from strongroom.encoding import b64
from strongroom.errors import AttesterUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.dcap_quote import EnclaveReport, Quote
from strongroom.evidence.types import Evidence

FILES = Path("/dev/attestation")


class SgxAttester:
    """SGX evidence of this enclave; `files` is Gramine's pseudo-directory."""

    tee = "sgx"

    def __init__(self, *, files: Path = FILES) -> None:
        self._files = files
        self._turn = threading.Lock()  # the two files are one register: writing and reading must not interleave

    def evidence(self, report_data: bytes) -> Evidence:
        """A fresh quote over `report_data` (32 to 64 bytes); raises `AttesterUnavailable`."""
        wanted = fit(report_data, 64)
        try:
            with self._turn:
                (self._files / "user_report_data").write_bytes(wanted)
                octets = (self._files / "quote").read_bytes()
        except OSError as error:
            raise AttesterUnavailable(
                f"{self._files}: {error.strerror}", hint='the Gramine manifest needs sgx.remote_attestation = "dcap"'
            ) from error
        try:
            quote = Quote.parse(octets)
        except (EvidenceMalformed, MalformedInput) as error:
            raise AttesterUnavailable(f"the quote cannot be read: {error}") from error
        if not isinstance(quote.body, EnclaveReport):
            raise AttesterUnavailable("a trust domain's quote, where an enclave's is expected")
        insist(quote.body.report_data, wanted, what="the quoting enclave")
        return Evidence(self.tee, {"quote": b64(octets)})


def missing(files: Path = FILES) -> str:
    """What this process lacks for an SGX quote, in one sentence; empty when nothing."""
    if not (files / "quote").exists():
        return f"there is no {files}/quote: this process does not run in an enclave under Gramine"
    try:
        kind = (files / "attestation_type").read_text().strip()
    except OSError:
        kind = "dcap"  # older Gramine has no such file
    return "" if kind == "dcap" else f"Gramine was told to attest by {kind!r}, not by dcap"
