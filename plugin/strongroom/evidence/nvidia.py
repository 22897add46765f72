"""Verify an NVIDIA GPU's or NVSwitch's attestation: its SPDM report, its certificates, its RIMs.

docs/attestation/nvidia.md is the page for people. Evidence body (tee ``nvidia``), as the key broker
protocol has it: ``{"device_evidence_list": [{"arch", "uuid", "evidence": base64, "certificate": base64 of
PEM}]}``; `NvidiaVerifier.split` takes a list of several apart. ``arch`` and ``uuid`` are the sender's words
and decide nothing: what kind of device this is stands in its certificate.

Endorsements: ``driver_rim`` and ``vbios_rim`` (XML; a switch's RIM is its ``vbios_rim``), and, where revocation is
to be judged, ``crl`` and ``ocsp`` (DER). Of each several may be given, as ``driver_rim:<anything>``; a RIM is then
picked by the version that the report states.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.x509 import Certificate
from cryptography.x509.oid import NameOID

from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.certificates import extension, name_of, parse_chain, public_key_info, verify_chain
from strongroom.evidence.door import Der, at_the_door, base64_field
from strongroom.evidence.ecdsa import verifies
from strongroom.evidence.nvidia_policy import NvidiaPolicy, appraise_device
from strongroom.evidence.nvidia_rim import ALGORITHMS, Rim, SignedRim
from strongroom.evidence.nvidia_spdm import (
    BOARD_ID,
    CHIP_INFO,
    CHIP_SKU,
    DIGEST_SIZE,
    FWID,
    LONGEST_REPORT,
    NVDEC0_STATUS,
    PROJECT,
    PROJECT_SKU,
    PROTECTED_PCIE,
    SpdmReport,
)
from strongroom.evidence.revocation import Lists, check_status
from strongroom.evidence.roots import root
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, Word

_SPDM = "DMTF DSP0274 1.1, section 10.11 (MEASUREMENTS)"
_RIM = "NVIDIA reference integrity manifest (TCG RIM information model)"
_DSIG = "W3C XML Signature 1.1"
_HOPPER_FWID, _TCB_INFO = "2.23.133.5.4.1", "2.23.133.5.4.1.1"
UNDERSTOOD = frozenset({_HOPPER_FWID, _TCB_INFO})
"""Critical extensions of device certificates that are read here."""
LONGEST_PEM = 1 << 16
MOST_DEVICES = 64
NVDEC0_INDEX = 34
"""The one measurement that NVIDIA's own verifier leaves out while the report says that NVDEC0 is disabled."""


@dataclass(frozen=True, slots=True)
class NvidiaClaims(Claims):
    """Claims of one device, and whether its report was believed."""

    genuine: bool = False


class NvidiaVerifier:
    """The verifier of GPUs and switches; the roots are NVIDIA's unless tests hand in others."""

    tee = "nvidia"

    def __init__(self, *, device_root: Certificate | None = None, rim_root: Certificate | None = None) -> None:
        self._device_root, self._rim_root = device_root, rim_root

    def policy(self, table: Fields) -> NvidiaPolicy:
        """Parse the ``[nvidia]`` table of a policy file; raises `MalformedInput`."""
        policy = NvidiaPolicy.read(table)
        table.done()
        return policy

    def split(self, evidence: Evidence) -> tuple[Evidence, ...]:
        """One `Evidence` a device, in the order given; raises `EvidenceMalformed`."""
        return tuple(Evidence(evidence.tee, {"device_evidence_list": [device]}) for device in _devices(evidence))

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: NvidiaPolicy, checks: Checklist
    ) -> NvidiaClaims:
        """The report, its chain, and the RIMs that `policy` requires; raises `EvidenceMalformed`."""
        devices = _devices(evidence)
        if len(devices) != 1:
            raise EvidenceMalformed(f"NVIDIA evidence: {len(devices)} devices where one is judged at a time")
        report, chain = _parse_device(devices[0])
        lists = Lists.parse(endorsements.items)
        if report.trailing and not policy.allow_trailing_bytes:
            raise EvidenceMalformed(
                f"NVIDIA evidence: {len(report.trailing)} bytes after the SPDM response",
                hint="cut the evidence to its own length, or set allow_trailing_bytes",
            )
        path = verify_chain(
            chain, roots=(self._device_root or root("nvidia_device_identity_root.pem"),), now=now, checks=checks,
            name="nvidia.device", understood=UNDERSTOOD,
        )  # fmt: skip
        genuine = path is not None
        if path is not None:
            check_status(
                path, lists, now=now, checks=checks, name="nvidia.device", required=policy.require_revocation_status
            )
        genuine &= checks.that(
            verifies(chain[0].public_key(), report.signature, report.signed, hashes.SHA384()), "nvidia.signature",
            Word.SIGNATURE, expected="request and response, signed by the device's attestation key",
            found=name_of(chain[0]), source=_SPDM,
            hint="the report was altered, or these are another device's certificates: fetch both again",
        )  # fmt: skip
        if genuine:
            genuine = _check_fwid(report, chain[0], checks)
        claims = _claims(report, chain, genuine=genuine)
        if genuine:
            for kind in policy.rims_for(claims.device_class):
                self._check_required(kind, report, claims, endorsements, lists, now, policy, checks)
        return claims

    def verify_endorsements(
        self, endorsements: Endorsements, now: datetime, policy: NvidiaPolicy, checks: Checklist
    ) -> None:
        """Judge RIMs alone, where there is no report: signature, chain, dates.

        Records `Word.COLLATERAL_MISSING` where there is no RIM at all.
        """
        lists = Lists.parse(endorsements.items)
        found = [role for role in sorted(endorsements.items) if role.split(":")[0] in ("driver_rim", "vbios_rim")]
        for role in found:
            name = f"nvidia.{role.replace('_', '-')}"
            self._verified_rim(endorsements.items[role], name, lists, now, policy, checks)
        checks.that(
            bool(found), "nvidia.rim-present", Word.COLLATERAL_MISSING, expected="a RIM",
            found=", ".join(found) or "none", source=_RIM, hint="get RIMs with: strongroom collateral fetch EVIDENCE",
        )  # fmt: skip

    def appraise(self, claims: Claims, policy: NvidiaPolicy, checks: Checklist) -> None:
        """Product, versions and identity, against `policy`. Nothing is read out of a broken report."""
        if not isinstance(claims, NvidiaClaims):
            raise EvidenceMalformed(f"claims of {claims.tee} are not those of an NVIDIA device")
        if claims.genuine:
            appraise_device(claims, policy, checks)

    # -- reference manifests ---------------------------------------------------

    def _check_required(
        self, kind: str, report: SpdmReport, claims: NvidiaClaims, endorsements: Endorsements, lists: Lists,
        now: datetime, policy: NvidiaPolicy, checks: Checklist,
    ) -> None:  # fmt: skip
        name, version = f"nvidia.{kind}-rim", claims[f"{kind}_version"]
        octets = _pick(kind, version, endorsements)
        if not checks.that(
            octets is not None, f"{name}.present", Word.COLLATERAL_MISSING,
            expected=f"the {kind} RIM of version {version or '(not stated)'}", found="given" if octets else "none",
            source=_RIM,
            hint=f"get it with: strongroom collateral fetch EVIDENCE (or leave {kind!r} out of required_rims)",
        ):  # fmt: skip
            return
        rim = self._verified_rim(octets or b"", name, lists, now, policy, checks)
        if rim is not None:
            _check_values(rim, claims, report, policy, name, checks)

    def _verified_rim(
        self, octets: bytes, name: str, lists: Lists, now: datetime, policy: NvidiaPolicy, checks: Checklist
    ) -> Rim | None:
        """A RIM whose signature holds, read from the octets that were signed; else None."""
        signed = SignedRim.parse(octets)
        if not checks.that(
            signed is not None, f"{name}.enveloped", Word.SIGNATURE, expected="one signature over the whole document",
            found="one" if signed else "none, several, or over a part of it", source=_DSIG,
            hint="this file is not as NVIDIA published it: fetch the RIM again",
        ) or signed is None:  # fmt: skip
            return None
        good = checks.that(
            signed.algorithms == ALGORITHMS, f"{name}.algorithms", Word.ALGORITHM,
            expected="C14N 1.1, ECDSA with SHA-384, enveloped signature", source=_DSIG,
            found=", ".join(each.rpartition("/")[2] for _, each in signed.algorithms), hint="no other is accepted",
        )  # fmt: skip
        path = verify_chain(
            signed.chain, roots=(self._rim_root or root("nvidia_rim_root.pem"),), now=now, checks=checks, name=name
        )
        if path is not None:
            check_status(path, lists, now=now, checks=checks, name=name, required=policy.require_revocation_status)
        good &= checks.that(
            signed.whole, f"{name}.digest", Word.SIGNATURE, expected=signed.digest.hex(),
            found=hashlib.sha384(signed.content).hexdigest(), source=_DSIG,
            hint="the RIM was altered after it was signed: fetch it again",
        )  # fmt: skip
        good &= checks.that(
            signed.signed, f"{name}.signature", Word.SIGNATURE, expected=f"signed by {name_of(signed.chain[0])}",
            found=f"{len(signed.signature)} bytes of signature", source=_DSIG,
            hint="the RIM's signature is not its signer's: fetch it again",
        )  # fmt: skip
        return Rim.parse(signed.content) if good and path is not None else None


def _pick(kind: str, version: str, endorsements: Endorsements) -> bytes | None:
    """The RIM in role ``<kind>_rim``; of several, the one that says it is for `version`."""
    role = f"{kind}_rim"
    found = [octets for name, octets in sorted(endorsements.items.items()) if name.split(":")[0] == role]
    if len(found) < 2:
        return found[0] if found else None
    for octets in found:
        signed = SignedRim.parse(octets)
        if signed is not None and Rim.parse(signed.content).version.upper() == version.upper():
            return octets
    return None


def _check_values(
    rim: Rim, claims: NvidiaClaims, report: SpdmReport, policy: NvidiaPolicy, name: str, checks: Checklist
) -> None:
    # A genuine manifest of another kind, chip or release must not stand in for the one that is asked for.
    version = claims["driver_version"] if name == "nvidia.driver-rim" else claims["vbios_version"]
    chips = {_chip(claims["product"]), _chip(claims["chip_info"])}
    same = checks.that(
        rim.version.upper() == version.upper() and _chip(rim.product) in chips, f"{name}.version", Word.RIM,
        expected=f"a RIM for {claims['product']} {version}", found=f"{rim.product} {rim.version}", source=_RIM,
        hint="fetch the RIM of the chip and version that the device runs",
    )  # fmt: skip
    left_out = policy.skip_disabled_nvdec and claims["nvdec0"] == "disabled"
    wrong = [
        f"{reference.name or 'measurement'} (index {index})"
        for index, reference in sorted(rim.references.items())
        if report.measurements.get(index + 1) not in reference.alternatives and not (left_out and index == NVDEC0_INDEX)
    ]
    if same or wrong:
        checks.that(
            bool(rim.references) and not wrong, f"{name}.values", Word.RIM,
            expected=f"{len(rim.references)} active values, all as measured",
            found="all match" if not wrong else "different: " + ", ".join(wrong[:4]) + (" …" if len(wrong) > 4 else ""),
            source=_RIM, hint="the device runs firmware or a driver other than this RIM describes: update the device, "
            "or fetch the newest edition of the RIM",
        )  # fmt: skip


def _chip(product: str) -> str:
    """``LS_10`` and ``LS10`` are one chip."""
    return product.replace("_", "").upper()


# -- the report ----------------------------------------------------------------


def _devices(evidence: Evidence) -> list[object]:
    with at_the_door("NVIDIA evidence"):
        read = Fields(evidence.body, where="NVIDIA evidence")
        devices = read.value("device_evidence_list")
        read.done()
        if not isinstance(devices, list) or not 1 <= len(devices) <= MOST_DEVICES:
            raise MalformedInput(f"device_evidence_list is not a list of 1 to {MOST_DEVICES} devices")
    return devices


def _parse_device(value: object) -> tuple[SpdmReport, tuple[Certificate, ...]]:
    with at_the_door("NVIDIA evidence"):
        read = Fields(value, where="NVIDIA device")
        for name in ("arch", "uuid"):
            read.text(name, limit=128, default="")
        report = SpdmReport.parse(base64_field(read, "evidence", limit=LONGEST_REPORT))
        pem = base64_field(read, "certificate", limit=LONGEST_PEM)
        read.done()
    return report, parse_chain(pem, what="NVIDIA device chain")


def _check_fwid(report: SpdmReport, leaf: Certificate, checks: Checklist) -> bool:
    """The firmware id that the boot ROM certified is the one that the firmware reports."""
    certified, reported = _certified_fwids(leaf), report.opaque.get(FWID)
    if not certified or reported is None:
        return True  # a leaf without one, or firmware that does not report it (535 and older)
    return checks.that(
        reported in certified, "nvidia.fwid", Word.IDENTITY, expected=" or ".join(each.hex() for each in certified),
        found=reported.hex(), source="TCG DICE certificate profiles, FWID",
        hint="the report was made by other firmware than its certificate vouches for",
    )  # fmt: skip


def _certified_fwids(leaf: Certificate) -> tuple[bytes, ...]:
    """FWIDs in the leaf: one in Hopper's CompositeDeviceID form, a list in the TCG DiceTcbInfo form.

    Raises `EvidenceMalformed` where an extension that ought to hold them cannot be read.
    """
    with at_the_door("NVIDIA device certificate"):
        octets = extension(leaf, _HOPPER_FWID)
        if octets is not None:
            outer = Der(octets, where="FWID extension")
            identity = outer.inside()
            outer.done()
            identity.integer()
            identity.take(Der.SEQUENCE)  # the device's public key
            found = (_fwid(identity.inside()),)
            identity.done()
            return found
        octets = extension(leaf, _TCB_INFO)
        if octets is None:
            return ()
        outer = Der(octets, where="DiceTcbInfo extension")
        members = outer.inside()
        outer.done()
        while members.left:
            tag, contents = members.any()
            if tag == 0xA6:  # fwids [6] IMPLICIT
                listed = Der(contents, where="DiceTcbInfo extension")
                fwids = []
                while listed.left:
                    fwids.append(_fwid(listed.inside()))
                return tuple(each for each in fwids if any(each))
    return ()


def _fwid(pair: Der) -> bytes:
    pair.oid()
    digest = pair.take(Der.OCTET_STRING)
    pair.done()
    if len(digest) != DIGEST_SIZE:
        raise MalformedInput(f"FWID of {len(digest)} bytes")
    return digest


def _claims(report: SpdmReport, chain: tuple[Certificate, ...], *, genuine: bool) -> NvidiaClaims:
    names = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    product = str(names[0].value).split(" ")[0] if names else ""
    # The boot ROM's certificate is the device's lasting identity; the leaf's key changes with the firmware.
    identity = hashlib.sha256(public_key_info(chain[min(1, len(chain) - 1)])).hexdigest()
    values = {
        "product": product,
        "driver_version": report.driver_version,
        "vbios_version": report.vbios_version,
        "chip_info": report.text(CHIP_INFO),
        "board_id": report.opaque.get(BOARD_ID, b"").hex(),
        "chip_sku": report.text(CHIP_SKU),
        "project": report.text(PROJECT),
        "project_sku": report.text(PROJECT_SKU),
        "nvdec0": report.switch(NVDEC0_STATUS),
        "protected_pcie": report.switch(PROTECTED_PCIE),
        "fwid": report.opaque.get(FWID, b"").hex(),
        "measurements": {str(index): value.hex() for index, value in sorted(report.measurements.items())},
        "report_data": report.nonce.hex(),
    }
    return NvidiaClaims(
        tee="nvidia",
        values={name: Claim(value) for name, value in values.items()},
        report_data=report.nonce,
        binding_word=Word.NONCE,
        device_class="switch" if re.match(r"LS_?\d", product) else "gpu",
        device_id=f"nvidia:{product}:{identity}",
        genuine=genuine,
    )
