"""Obtain the evidence of a confidential guest on Azure: virtual TPM, HCL report, and what the host adds.

docs/attestation/azure.md is the page for people; the body is the key broker protocol's. The virtual TPM holds
the HCL report in NV index 0x01400001 and the attestation key at handle 0x81000003 (both made by the
paravisor at boot). Two things come from the host's metadata service on a link-local address and are
endorsements, so nothing is lost by asking an untrusted party: the VCEK (THIM), and a TD quote over the TDREPORT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.attest.binding import SHORTEST, insist
from strongroom.attest.tpm_connection import TpmConnection, default_tcti, missing
from strongroom.encoding import Fields, b64url, parse_json, unb64url
from strongroom.errors import AttesterUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.azure_evidence import BANK, protocol_body
from strongroom.evidence.azure_hcl import SNP, TDX, HclReport, runtime_digest
from strongroom.evidence.certificates import parse_chain
from strongroom.evidence.tpm_structures import PCRS, TpmSignature
from strongroom.evidence.types import Evidence

__all__ = ["AzureSnpAttester", "AzureTdxAttester", "missing_snp", "missing_tdx"]

METADATA = "http://169.254.169.254"
HCL_REPORT_INDEX = 0x01400001
ATTESTATION_KEY_HANDLE = 0x81000003
NONCE_SIZE = 48
"""Bytes of report data that are quoted: the key broker protocol's SHA-384 digest fits whole."""
LARGEST_ANSWER = 1 << 18
TIMEOUT_S = 20.0


class Metadata(Protocol):
    """The host's metadata service; `HttpMetadata` is the real one."""

    def ask(self, path: str, question: dict[str, Any] | None) -> bytes:
        """GET `path`, or POST `question` as JSON; raises `AttesterUnavailable`."""


class HttpMetadata:
    """Azure's instance metadata service, reached directly: no proxy of the environment sees it."""

    def __init__(self, base: str = METADATA) -> None:
        self._base = base

    def ask(self, path: str, question: dict[str, Any] | None) -> bytes:
        """GET `path`, or POST `question` as JSON; raises `AttesterUnavailable`."""
        from strongroom.collateral.answers import ask, session

        url = self._base + path
        with session() as direct:
            direct.trust_env = False
            try:
                answer = ask(
                    direct, "GET" if question is None else "POST", url, timeout=TIMEOUT_S, limit=LARGEST_ANSWER,
                    json=question, headers={"Metadata": "true"},
                )  # fmt: skip
            except OSError as error:
                raise AttesterUnavailable(
                    f"no answer from the metadata service at {url}", hint="is this a confidential guest on Azure?"
                ) from error
        if answer.status != 200 or len(answer.body) > LARGEST_ANSWER:
            raise AttesterUnavailable(
                f"the metadata service answered {url} with status {answer.status}", hint="try again later"
            )
        return answer.body


def missing_snp() -> str:
    """What this machine lacks to attest as an SEV-SNP guest on Azure; empty when nothing."""
    return _missing(SNP)


def missing_tdx() -> str:
    """What this machine lacks to attest as a TDX guest on Azure; empty when nothing."""
    return _missing(TDX)


def _missing(kind: int) -> str:
    lacks = missing()
    if lacks:
        return lacks
    try:
        tpm = TpmConnection(default_tcti())
        try:
            found = HclReport.parse(tpm.read_nv(HCL_REPORT_INDEX)).kind
        finally:
            tpm.close()
    except (AttesterUnavailable, EvidenceMalformed) as error:
        return f"no Azure paravisor: {error}"
    return "" if found == kind else f"the paravisor's report is of type {found}, not {kind}"


class _AzureAttester:
    """What both kinds share. One instance serves a process; its methods may be called from any thread."""

    tee: str
    _kind: int

    def __init__(self, tcti: str | None = None, *, metadata: Metadata | None = None) -> None:
        self._metadata = metadata or HttpMetadata()
        self._tpm = TpmConnection(tcti or default_tcti())
        self._key = self._tpm.asked(
            lambda: self._tpm.esapi.tr_from_tpmpublic(ATTESTATION_KEY_HANDLE), "find the paravisor's attestation key"
        )

    def __enter__(self) -> _AzureAttester:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()

    def evidence(self, report_data: bytes) -> Evidence:
        """A quote over the first 48 bytes of `report_data`, the HCL report, and the hardware's own evidence.

        Raises `AttesterUnavailable`.
        """
        if not SHORTEST <= len(report_data) <= 64:
            raise AttesterUnavailable(f"report data has {SHORTEST} to 64 bytes, got {len(report_data)}")
        with self._tpm.lock:
            octets = self._tpm.read_nv(HCL_REPORT_INDEX)
            message, signed, pcrs = self._tpm.quote(self._key, report_data[:NONCE_SIZE], BANK, _ALL)
        try:
            hcl = HclReport.parse(octets)
            signature = TpmSignature.parse(signed).parts[0]
            if hcl.kind != self._kind:
                raise AttesterUnavailable(
                    f"the paravisor's report is of type {hcl.kind}, not {self._kind}",
                    hint='on Azure, tee is "az-snp-vtpm" or "az-tdx-vtpm", as the machine is',
                )
            added = self._added(hcl)
        except (EvidenceMalformed, MalformedInput) as error:
            raise AttesterUnavailable(f"the paravisor or its host answered something odd: {error}") from error
        return Evidence(self.tee, protocol_body(octets, message, signature, pcrs, **added))

    def init_data_state(self) -> bytes:
        """PCR 8 of the virtual TPM; raises `AttesterUnavailable`."""
        return self._tpm.init_data_state()

    def bind_init_data(self, digest: bytes) -> None:
        """Extend PCR 8 by the SHA-256 digest of init-data, once a boot; raises `AttesterUnavailable`."""
        self._tpm.bind_init_data(digest)

    def _added(self, hcl: HclReport) -> dict[str, bytes]:
        raise NotImplementedError


_ALL: Sequence[int] = range(PCRS)


class AzureSnpAttester(_AzureAttester):
    """The attester of an SEV-SNP guest on Azure."""

    tee = "az-snp-vtpm"
    _kind = SNP

    def _added(self, hcl: HclReport) -> dict[str, bytes]:
        """The VCEK of this chip and TCB, from the host's cache (Trusted Hardware Identity Management)."""
        from strongroom.evidence.snp_report import SnpReport

        report = SnpReport.parse(hcl.hardware)
        insist(report.report_data, runtime_digest(hcl.runtime_data), what="the paravisor")
        answer = Fields(
            parse_json(self._metadata.ask("/metadata/THIM/amd/certification", None), where="THIM"), where="THIM"
        )
        pem = answer.text("vcekCert", limit=1 << 16).encode()
        return {"vcek": parse_chain(pem, what="VCEK")[0].public_bytes(Encoding.DER)}


class AzureTdxAttester(_AzureAttester):
    """The attester of a TDX guest on Azure; the host's quoting service signs the TDREPORT."""

    tee = "az-tdx-vtpm"
    _kind = TDX

    def _added(self, hcl: HclReport) -> dict[str, bytes]:
        from strongroom.evidence.dcap import parse_quote

        question = {"report": b64url(hcl.hardware)}
        answer = Fields(parse_json(self._metadata.ask("/acc/tdquote", question), where="tdquote"), where="tdquote")
        quote = unb64url(answer.text("quote", limit=LARGEST_ANSWER).rstrip("="), where="tdquote")
        insist(parse_quote(quote).body.report_data, runtime_digest(hcl.runtime_data), what="the quoting service")
        return {"td_quote": quote}
