"""The simulated TEE: the whole machinery without the hardware, and without its protection.

**Anyone can forge this evidence.** It is signed by a development key whose seed is printed
below, so a signature by it proves nothing about any machine. It exists so that the demo,
the tests and a first evening with strongroom run everywhere. A policy accepts it only by a
``[simulated]`` table that says ``protects_nothing = true``; every claim is self-asserted;
nothing ever falls back to it. The wire form is in docs/attestation/simulated.md.

The attester of this form is `strongroom.attest.simulated`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.encoding import Fields, b64, canonical_json, labelled, unb64, unhex
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.types import (
    Checklist,
    Claim,
    Claims,
    Endorsements,
    Evidence,
    Provenance,
    RevocationStatus,
    Word,
)

TEE = "simulated"
SOURCE = "docs/attestation/simulated.md"
DEVELOPMENT_SEED = hashlib.sha256(b"strongroom development key: anyone can forge what this signs").digest()
DEVELOPMENT_KEY = Ed25519PrivateKey.from_private_bytes(DEVELOPMENT_SEED)
"""Published on purpose. What it signs is worth nothing."""

_DEVELOPMENT_PUBLIC = DEVELOPMENT_KEY.public_key()
_LABEL = "strongroom simulated evidence v1"


@dataclass(frozen=True, slots=True)
class SimulatedReport:
    """The body of simulated evidence.

    `measurement` is 32 bytes, the digest of the attester's installed distributions; `report_data` 64
    bytes; `asserted` further JSON values that the attester says about itself, at most 64 KiB.
    """

    measurement: bytes
    report_data: bytes
    asserted: Mapping[str, Any]
    signature: bytes

    @classmethod
    def sign(cls, measurement: bytes, report_data: bytes, asserted: Mapping[str, Any]) -> SimulatedReport:
        """Make a report with the development key, as anybody can."""
        if len(measurement) != 32 or len(report_data) != 64:
            raise MalformedInput("simulated evidence: 32 bytes of measurement and 64 of report data are expected")
        signature = DEVELOPMENT_KEY.sign(_signed(measurement, report_data, asserted))
        return cls(measurement, report_data, dict(asserted), signature)

    @classmethod
    def parse(cls, body: object) -> SimulatedReport:
        """From the decoded JSON body; raises `EvidenceMalformed`."""
        try:
            read = Fields(body, where="simulated evidence")
            read.number("version", low=1, high=1)
            report = cls(
                measurement=read.hexes("measurement", size=32),
                report_data=unb64(read.text("report_data"), where="simulated evidence: report_data"),
                asserted=_asserted(read),
                signature=unb64(read.text("signature"), where="simulated evidence: signature"),
            )
            read.done()
            if len(report.report_data) != 64 or len(report.signature) != 64:
                raise MalformedInput("simulated evidence: report_data and signature have 64 bytes each")
        except MalformedInput as error:
            raise EvidenceMalformed(str(error)) from error
        return report

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`."""
        return {
            "version": 1,
            "measurement": self.measurement.hex(),
            "report_data": b64(self.report_data),
            "asserted": dict(self.asserted),
            "signature": b64(self.signature),
        }


def _asserted(read: Fields) -> dict[str, Any]:
    asserted = read.value("asserted")
    try:
        fits = isinstance(asserted, Mapping) and len(canonical_json(asserted)) <= 1 << 16
    except RecursionError as error:
        raise MalformedInput("simulated evidence: asserted is nested too deeply") from error
    if not fits:
        raise MalformedInput("simulated evidence: asserted is not an object of at most 64 KiB")
    return {str(name): value for name, value in asserted.items()}


def _signed(measurement: bytes, report_data: bytes, asserted: Mapping[str, Any]) -> bytes:
    return labelled(_LABEL, measurement, report_data, canonical_json(asserted))


@dataclass(frozen=True, slots=True)
class SimulatedPolicy:
    """The ``[simulated]`` table: `measurements` accepted, None for any."""

    measurements: frozenset[bytes] | None

    @classmethod
    def parse(cls, table: Fields) -> SimulatedPolicy:
        """Strictly; raises `MalformedInput` without the acknowledgement that this protects nothing."""
        if not table.has("protects_nothing") or not table.truth("protects_nothing"):
            raise MalformedInput(
                f"{table.where}: simulated evidence can be forged by anyone; "
                "a policy that accepts it has to say so: protects_nothing = true"
            )
        any_measurement = table.truth("any_measurement", default=False)
        listed = table.has("measurements")
        if any_measurement == listed:
            raise MalformedInput(f"{table.where}: give either measurements = [...] or any_measurement = true")
        if not listed:
            return cls(None)
        values = [unhex(each, where=f"{table.where}: measurements") for each in table.texts("measurements")]
        if any(len(each) != 32 for each in values):
            raise MalformedInput(f"{table.where}: a measurement has 32 bytes")
        return cls(frozenset(values))


class SimulatedVerifier:
    """Checks form and signature, so that mistakes show; it cannot show that a TEE was there."""

    tee = TEE

    def policy(self, table: Fields) -> SimulatedPolicy:
        """The ``[simulated]`` table of a policy."""
        return SimulatedPolicy.parse(table)

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: Any, checks: Checklist
    ) -> Claims:
        """Form and development signature; raises `EvidenceMalformed`."""
        report = SimulatedReport.parse(evidence.body)
        try:
            _DEVELOPMENT_PUBLIC.verify(
                report.signature, _signed(report.measurement, report.report_data, report.asserted)
            )
            signed = True
        except InvalidSignature:
            signed = False
        checks.that(
            signed, "simulated.signature", Word.SIGNATURE, expected="the published development key's signature",
            found="that signature, which anyone can make" if signed else "another signature", source=SOURCE,
            hint="the evidence was changed after it was made",
        )  # fmt: skip
        checks.note_revocation(RevocationStatus.NO_LIST)  # there is no certificate
        values = {name: Claim(value, Provenance.SELF_ASSERTED) for name, value in report.asserted.items()}
        values["measurement"] = Claim(report.measurement, Provenance.SELF_ASSERTED)
        return Claims(TEE, values, report.report_data)

    def appraise(self, claims: Claims, policy: Any, checks: Checklist) -> None:
        """Hold the measurement against the list."""
        if not isinstance(policy, SimulatedPolicy):
            raise MalformedInput("the [simulated] table was not parsed by this verifier")
        found: bytes = claims["measurement"]
        allowed = policy.measurements
        if allowed is None:  # any_measurement = true
            return
        checks.that(
            found in allowed, "simulated.measurement", Word.MEASUREMENT,
            expected=" or ".join(sorted(each.hex() for each in allowed)) or "none", found=found.hex(), source=SOURCE,
            hint="this host runs other software than the policy lists; `strongroom measure` prints what it runs",
        )  # fmt: skip
