"""Reference values: what a policy has to list so that one known guest is accepted.

The values are read out of evidence of a guest that its owner knows to be right. Nothing is verified
here: whoever measures vouches for the guest, and the evidence may lack its endorsements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.types import Checklist, Claims, Endorsements, Evidence, Verifier

_LISTS: dict[str, dict[str, str]] = {  # TEE → policy key → claim
    "snp": {"measurements": "measurement", "host_data": "host_data", "id_key_digests": "id_key_digest"},
    "tdx": {
        "measurements": "mr_td", "mr_config_ids": "mr_config_id", "rtmr0": "rtmr0", "rtmr1": "rtmr1", "rtmr2": "rtmr2",
    },
    "sgx": {"measurements": "mr_enclave", "mr_signers": "mr_signer"},
    "cca": {"measurements": "initial_measurement", "implementation_ids": "implementation_id"},
    "az-snp-vtpm": {"measurements": "measurement"},
    "az-tdx-vtpm": {"measurements": "mr_td"},
    "nvidia": {"driver_versions": "driver_version", "vbios_versions": "vbios_version"},
    "simulated": {"measurements": "measurement"},
}  # fmt: skip
_REGISTERS = {  # TEE → the PCRs that belong to firmware, boot loader and image rather than to one boot
    "tpm": ("0", "2", "4", "7", "9"),
    "az-snp-vtpm": ("4", "7", "9", "11"),
    "az-tdx-vtpm": ("4", "7", "9", "11"),
    "aws-nitro": ("0", "1", "2"),
}
_REVOCATION = {"require_revocation_status": True}
"""Stands in every table that knows it. CCA has no lists, and DCAP's are demanded whatever a policy says."""
_ALWAYS: dict[str, dict[str, Any]] = {
    "simulated": {"protects_nothing": True},
    **dict.fromkeys(("snp", "az-snp-vtpm", "nvidia", "tpm", "aws-nitro"), _REVOCATION),
}


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """A policy text to look at and keep. `values` is the TEE's table: lists of hex, ``pcrs`` and the like.

    `notes` are sentences about what the evidence cannot say and its owner still has to fill in.
    """

    name: str
    tee: str
    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_measurement(cls, name: str, tee: str, measurement: bytes) -> ReferencePolicy:
        """A policy for a measurement that was computed, before any machine of it ran."""
        return cls(name, tee, {**_ALWAYS.get(tee, {}), "measurements": [measurement.hex()]})

    @property
    def compared(self) -> int:
        """How many reference values there are; what every policy of this TEE says is none."""
        return len(set(self.values) - set(_ALWAYS.get(self.tee, {})))

    def serialise(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"name": self.name, "tee": self.tee, "values": dict(self.values), "notes": list(self.notes)}

    def toml(self) -> str:
        """The policy file; `Policy.parse` reads it. Notes stand in front, as comments."""
        lines = [*(f"# {note}" for note in self.notes), f"name = {json.dumps(self.name)}", "", f"[{self.tee}]"]
        tables = {key: value for key, value in self.values.items() if isinstance(value, Mapping)}
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.values.items() if key not in tables]
        for key, table in tables.items():
            lines += ["", f"[{self.tee}.{key}]"]
            lines += [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in table.items()]
        return "\n".join(lines) + "\n"


def reference_policy(evidence: Evidence, verifiers: Mapping[str, Verifier], *, name: str) -> ReferencePolicy:
    """The values of `evidence` as a policy; raises `EvidenceMalformed` where there is nothing to list."""
    tee = evidence.tee
    verifier = verifiers.get(tee)
    if verifier is None or (tee not in _LISTS and tee not in _REGISTERS):
        raise EvidenceMalformed(f"no reference values are known for {tee!r}", hint="docs/attestation/ has a page a TEE")
    claims = claims_of(evidence, verifier)
    values: dict[str, Any] = dict(_ALWAYS.get(tee, {}))
    for key, claim in _LISTS.get(tee, {}).items():
        value = _text(claims.get(claim))
        if value.strip("0"):
            values[key] = [value]
    registers = claims.get("pcrs") or {}
    found = {index: [_text(registers[index])] for index in _REGISTERS.get(tee, ()) if _text(registers.get(index))}
    if found:
        values["pcrs"] = found
    notes: tuple[str, ...] = ()
    if tee == "tpm":
        notes = _trust_in_the_key(evidence, claims, values)
    if tee in ("tdx", "sgx", "az-tdx-vtpm"):
        notes = _platform(claims)
    if tee == "cca":
        instance = _text(claims.get("instance_id"))
        notes = (f'Whose platform it is: its maker\'s key, a JWK, under [cca.cpaks] as "{instance}".',)
    if not set(values) - {*_ALWAYS.get(tee, {}), "ak_trust", "pinned_aks"}:
        raise EvidenceMalformed(f"this {tee} evidence holds nothing to compare with")
    return ReferencePolicy(name, tee, values, notes)


def _platform(claims: Claims) -> tuple[str, ...]:
    """How to accept this very platform: a guest may move, so the values are told and not demanded."""
    named = {"platform_instance_ids": "platform_instance_id", "ppids": "ppid", "fmspcs": "fmspc"}
    known = [(key, _text(claims.get(claim))) for key, claim in named.items()]
    listed = [f'{key} = ["{value}"]' for key, value in known if value.strip("0")]
    return (f"If you want no other platform than this one, add one of: {', '.join(listed)}.",) if listed else ()


def _trust_in_the_key(evidence: Evidence, claims: Claims, values: dict[str, Any]) -> tuple[str, ...]:
    """Adds to `values` why the key of a TPM would be believed and what `launch` extended; gives what is missing.

    Where nobody certified the key, a policy of registers alone would refuse the machine it was made from.
    """
    launch = {name.removeprefix("launch."): [str(claims[name])] for name in claims.values if name.startswith("launch.")}
    if launch:
        values["launch"] = launch
    if "ak_cert" in evidence.body:
        return ("Whose machine it is: add gce_projects or gce_instance_ids, or keep PCR values that only you have.",)
    if claims.get("ak_name") is None:
        return ()
    values |= {"ak_trust": "pinned", "pinned_aks": [_text(claims["ak_name"])]}
    notes = ['For a broker, which can challenge the TPM: ak_trust = "activated" in place of the pinned key.']
    if "ek_cert" in evidence.body:
        notes.append("This TPM shows an EK certificate: add its maker's certificates, PEM, as ek_roots.")
    return tuple(notes)


def claims_of(evidence: Evidence, verifier: Verifier) -> Claims:
    """What a piece of evidence says, not verified; raises `EvidenceMalformed`."""
    settings = {"protects_nothing": True, "any_measurement": True} if evidence.tee == "simulated" else {}
    try:
        policy = verifier.policy(Fields(settings, where=evidence.tee))
        return verifier.verify(evidence, Endorsements(), datetime.now(UTC), policy, Checklist())
    except MalformedInput as error:
        raise EvidenceMalformed(str(error)) from error


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str) else ""
