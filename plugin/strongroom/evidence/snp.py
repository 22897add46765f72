"""Verify an SEV-SNP attestation report: signature, chain, and that certificate and report agree.

docs/attestation/sev-snp.md is the page for people. Evidence bodies (tee ``snp``):

* ours: ``{"report": base64 of 1184 bytes}``;
* the key broker protocol's: ``{"attestation_report": {…}, "cert_chain": [{"cert_type", "data"}] or null}``.

Endorsements: ``vcek`` or ``vlek`` (DER or PEM; what the evidence itself carries is used where they are
absent), ``crl`` (of the ARK; `revocation.Lists`), ``security_policy`` (the text whose SHA-256 is HOST_DATA).

The layout of the report is `snp_report`'s, AMD's certificates are `snp_certificate`'s, judgement is
`snp_policy`'s. Roots are AMD's unless the maker of a verifier hands in others (tests do).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from strongroom.encoding import Fields, unb64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.revocation import Lists
from strongroom.evidence.snp_certificate import PRODUCTS, Issuers, SnpCertificate, amd_issuers
from strongroom.evidence.snp_policy import SnpPolicy, appraise_provider, appraise_report
from strongroom.evidence.snp_report import ABI, SnpReport, Tcb, from_serde, octets_of
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, Word

_ECDSA_P384_SHA384 = 1


class SnpVerifier:
    """The verifier of AMD SEV-SNP guests; see the module for bodies and endorsements."""

    tee = "snp"

    def __init__(self, *, issuers: Issuers = amd_issuers) -> None:
        self._issuers = issuers

    def policy(self, table: Fields) -> SnpPolicy:
        """Parse the ``[snp]`` table of a policy file; raises `MalformedInput`."""
        policy = SnpPolicy.read(table)
        table.done()
        return policy

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: SnpPolicy, checks: Checklist
    ) -> Claims:
        """Signature, chain, dates, identity and TCB of the certificate; raises `EvidenceMalformed`."""
        octets, carried = parse_body(evidence)
        return verify_report(
            octets, {**carried, **endorsements.items}, now=now, policy=policy, checks=checks, issuers=self._issuers
        )

    def verify_endorsements(
        self, endorsements: Endorsements, now: datetime, policy: SnpPolicy, checks: Checklist
    ) -> None:
        """Judge certificates alone, where there is no report yet: chain, dates, revocation, provider.

        Records `Word.COLLATERAL_MISSING` where there is neither a VCEK nor a VLEK.
        """
        provider = ""
        found = [kind for kind in ("VCEK", "VLEK") if endorsements.get(kind.lower()) is not None]
        for kind in found:
            certificate = SnpCertificate.parse(endorsements.items[kind.lower()], kind=kind)
            provider = certificate.csp_id or ""
            certificate.verify(
                kind=kind, issuers=self._issuers, lists=Lists.parse(endorsements.items), now=now, checks=checks,
                require_revocation=policy.require_revocation_status,
            )  # fmt: skip
        if _certificate_given(bool(found), "VCEK", checks):
            appraise_provider(provider, policy, checks)

    def appraise(self, claims: Claims, policy: SnpPolicy, checks: Checklist) -> None:
        """Debug, migration, VMPL, TCB minimums, platform state and allow-lists."""
        if not isinstance(claims, SnpClaims):
            raise EvidenceMalformed(f"claims of {claims.tee} are not those of an SEV-SNP report")
        claims.appraise(policy, checks)


@dataclass(frozen=True, slots=True)
class SnpClaims(Claims):
    """Claims that keep the report they came from, so that `appraise` reads bits and not text."""

    report: SnpReport | None = None
    genuine: bool = False

    def appraise(self, policy: SnpPolicy, checks: Checklist) -> None:
        """Hold the report against the SNP part of a policy; Azure's verifier uses it too.

        Nothing is read out of a report whose signature is wrong: that refusal says it all.
        """
        if self.report is None:
            raise EvidenceMalformed("claims without the report that they were read from")
        if self.genuine:
            appraise_report(self.report, self["product"], self, policy, checks)


def parse_body(evidence: Evidence) -> tuple[bytes, dict[str, bytes]]:
    """The report's bytes, and the certificates that came with it by role; raises `EvidenceMalformed`."""
    try:
        read = Fields(evidence.body, where="SNP evidence")
        if read.has("report"):
            octets = unb64(read.text("report"), where="SNP evidence: report")
            carried = {}
        else:
            octets = from_serde(read.value("attestation_report"))
            carried = _carried(read.value("cert_chain") if read.has("cert_chain") else None)
        read.done()
    except MalformedInput as error:
        raise EvidenceMalformed(str(error)) from error
    return octets, carried


def _carried(chain: object) -> dict[str, bytes]:
    """VCEK or VLEK out of a ``cert_chain``. Intermediates and roots that come with it are not used."""
    if chain is None:
        return {}
    if not isinstance(chain, list) or len(chain) > 8:
        raise MalformedInput("cert_chain is not a list of at most 8 certificates")
    carried: dict[str, bytes] = {}
    for entry in chain:
        read = Fields(entry, where="cert_chain")
        kind, data = read.value("cert_type"), octets_of(read.value("data"), where="cert_chain: data")
        read.done()
        if kind in ("VCEK", "VLEK"):
            if kind.lower() in carried:
                raise MalformedInput(f"cert_chain holds two of {kind}")
            carried[kind.lower()] = data
    return carried


def verify_report(
    octets: bytes, items: Mapping[str, bytes], *, now: datetime, policy: SnpPolicy, checks: Checklist,
    issuers: Issuers = amd_issuers,
) -> SnpClaims:  # fmt: skip
    """Everything about a report that is not judgement. `items` are endorsements by role.

    Raises `EvidenceMalformed` where report or certificate cannot be parsed.
    """
    report = SnpReport.parse(octets)
    checks.that(
        True, "snp.format", Word.FORMAT, expected="a report of version 2 to 5",
        found=f"version {report.version}", source=ABI,
    )  # fmt: skip
    _check_algorithm(report, checks)
    kind = "VLEK" if report.signing_key == "VLEK" else "VCEK"
    certificate, genuine = None, False
    der = items.get(kind.lower())
    if _certificate_given(der is not None, kind, checks) and der is not None:
        certificate = SnpCertificate.parse(der, kind=kind)
        certificate.verify(
            kind=kind, issuers=issuers, lists=Lists.parse(items), now=now, checks=checks,
            require_revocation=policy.require_revocation_status,
        )  # fmt: skip
        genuine = _check_signature(report, certificate, checks)
        _check_identity(report, certificate, kind, checks)
    product = (certificate.product if certificate else report.product) or "unknown"
    _check_tcb(report, certificate, checks)
    _check_security_policy(report, items.get("security_policy"), checks)
    return _claims(report, certificate, product, genuine)


def _certificate_given(given: bool, kind: str, checks: Checklist) -> bool:
    return checks.that(
        given, "snp.certificate", Word.COLLATERAL_MISSING, expected=f"the {kind} that signed the report",
        found=f"a {kind}" if given else f"no {kind}", source="AMD 57230 section 4.1",
        hint="fetch it from AMD's key service with the report's chip id and TCB: strongroom collateral fetch EVIDENCE",
    )  # fmt: skip


def _check_algorithm(report: SnpReport, checks: Checklist) -> bool:
    return checks.that(
        report.signature_algorithm == _ECDSA_P384_SHA384, "snp.algorithm", Word.ALGORITHM,
        expected="1 (ECDSA P-384 with SHA-384)", found=str(report.signature_algorithm),
        source="AMD 56860 section 10.3", hint="no firmware that is known here writes another algorithm",
    )  # fmt: skip


def _check_signature(report: SnpReport, certificate: SnpCertificate, checks: Checklist) -> bool:
    key, good = certificate.public_key, False
    if key is not None and report.signature_algorithm == _ECDSA_P384_SHA384 and report.signing_key != "none":
        r, s = int.from_bytes(report.r, "little"), int.from_bytes(report.s, "little")
        try:
            key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(SHA384()))
            good = True
        except InvalidSignature:
            good = False
    return checks.that(
        good, "snp.signature", Word.SIGNATURE, expected=f"signed by {certificate}",
        found=f"signed by that {report.signing_key}" if good else f"not its signature (key: {report.signing_key})",
        source="AMD 56860 section 7.3, bytes 0 to 0x29F",
        hint="the report was changed, or this certificate belongs to another chip or TCB: fetch the right one",
    )  # fmt: skip


def _check_identity(report: SnpReport, certificate: SnpCertificate, kind: str, checks: Checklist) -> None:
    if report.product is not None:
        checks.that(
            report.product == certificate.product, "snp.product-line", Word.IDENTITY, expected=certificate.product,
            found=f"{report.product}, CPUID family {report.cpuid[0]:#x} model {report.cpuid[1]:#x}",
            source="AMD 57230 section 1.4", hint="the certificate is of another kind of processor: fetch the right one",
        )  # fmt: skip
    if kind == "VLEK":
        checks.that(
            certificate.csp_id is not None and certificate.hwid is None, "snp.vlek", Word.IDENTITY,
            expected="a csp_id and no hwid", found=f"csp_id {certificate.csp_id}", source="AMD 57230 section 3.1",
            hint="this is not a VLEK certificate: ask the cloud provider's host for the one it loaded",
        )  # fmt: skip
        return
    hwid = certificate.hwid
    padded = None if hwid is None else hwid.ljust(64, b"\0")  # 8 bytes on Turin, the rest of chip_id is zero
    checks.that(
        padded == report.chip_id, "snp.hwid", Word.IDENTITY,
        expected=f"chip id {'(none)' if hwid is None else hwid.hex()}", found=report.chip_id.hex(),
        source="AMD 57230 section 3.1",
        hint="the certificate is another chip's, or the host masks the chip id: fetch the VCEK of this chip",
    )  # fmt: skip


def _check_tcb(report: SnpReport, certificate: SnpCertificate | None, checks: Checklist) -> None:
    """A layout that the report itself names has to fit; one that only the certificate names may be another chip's."""
    tcbs = [report.current_tcb, report.committed_tcb, report.launch_tcb, report.reported_tcb]
    named = report.product if report.product in PRODUCTS else None
    product = named or (certificate.product if certificate else "")
    reported: Tcb | None = None
    try:
        reported = [Tcb.parse(each, product=product) for each in tcbs][-1]
    except EvidenceMalformed:
        if named is not None:
            raise
    if certificate is not None:
        checks.that(
            reported == certificate.tcb, "snp.certificate-tcb", Word.TCB, expected=str(certificate.tcb),
            found=str(reported or f"no TCB of {product}: {report.reported_tcb.hex()}"), source="AMD 57230 section 3.1",
            hint="the certificate is for another firmware level of this chip: fetch it with the report's reported TCB",
        )  # fmt: skip


def _check_security_policy(report: SnpReport, text: bytes | None, checks: Checklist) -> None:
    if text is not None:
        digest = hashlib.sha256(text).hexdigest()
        checks.that(
            digest == report.host_data.hex(), "snp.security-policy", Word.MEASUREMENT, expected=digest,
            found=report.host_data.hex(), source="AMD 56860 section 7.3, HOST_DATA",
            hint="the guest was launched with another policy than the one at hand",
        )  # fmt: skip


def _claims(report: SnpReport, certificate: SnpCertificate | None, product: str, genuine: bool) -> SnpClaims:
    values = {
        "report_version": report.version,
        "product": product,
        "guest_svn": report.guest_svn,
        "guest_policy": f"{report.policy:#x}",
        "debug_allowed": report.debug_allowed,
        "migrate_ma_allowed": report.migration_allowed,
        "smt_allowed": report.smt_allowed,
        "vmpl": report.vmpl,
        "signing_key": report.signing_key,
        "current_tcb": report.current_tcb.hex(),
        "reported_tcb": report.reported_tcb.hex(),
        "committed_tcb": report.committed_tcb.hex(),
        "launch_tcb": report.launch_tcb.hex(),
        "firmware": str(report.current),
        "platform_info": f"{report.platform_info:#x}",
        "ciphertext_hiding": report.ciphertext_hiding,
        "alias_check": report.alias_check,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "chip_id": report.chip_id.hex(),
        "csp_id": (certificate.csp_id if certificate else None) or "",
    }
    masked = not any(report.chip_id)
    return SnpClaims(
        tee="snp",
        values={name: Claim(value) for name, value in values.items()},
        report_data=report.report_data,
        device_id="" if masked else report.chip_id.hex(),
        report=report,
        genuine=genuine,
    )
