"""What a relying party may ask of an NVIDIA device: the ``[nvidia]`` table of a policy file.

docs/attestation/nvidia.md lists the keys for people. How many devices there have to be is said in the
policy's ``[devices]`` table, since a verifier sees one device at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from strongroom.encoding import Fields
from strongroom.errors import MalformedInput
from strongroom.evidence.allowlist import check_allowed, text_set
from strongroom.evidence.types import Checklist, Claims, Word

RIMS = ("driver", "vbios")
_OPAQUE = "NVIDIA attestation: opaque data of the SPDM report"


@dataclass(frozen=True, slots=True)
class NvidiaPolicy:
    """A parsed ``[nvidia]`` table; the defaults are the strict ones. None asks nothing."""

    required_rims: frozenset[str] | None = None
    """None: driver and vbios for a GPU, vbios for a switch."""
    allow_trailing_bytes: bool = False
    skip_disabled_nvdec: bool = False
    require_revocation_status: bool = False
    products: frozenset[str] | None = None
    driver_versions: frozenset[str] | None = None
    vbios_versions: frozenset[str] | None = None
    device_ids: frozenset[str] | None = None
    min_driver_version: str = ""

    @classmethod
    def read(cls, table: Fields) -> NvidiaPolicy:
        """Take the NVIDIA keys out of `table`; the caller refuses what is left. Raises `MalformedInput`."""
        rims = text_set(table, "required_rims")
        if rims is not None and not rims <= set(RIMS):
            raise MalformedInput(
                f"{table.where}: required_rims knows driver and vbios, found {', '.join(sorted(rims))}"
            )
        least = table.text("min_driver_version", limit=32, default="")
        if least and not re.fullmatch(r"\d+(\.\d+)*", least):
            raise MalformedInput(f'{table.where}: min_driver_version is not of the form "550.90.07"')
        return cls(
            required_rims=rims,
            allow_trailing_bytes=table.truth("allow_trailing_bytes", default=False),
            skip_disabled_nvdec=table.truth("skip_disabled_nvdec", default=False),
            require_revocation_status=table.truth("require_revocation_status", default=False),
            products=text_set(table, "products"),
            driver_versions=text_set(table, "driver_versions"),
            vbios_versions=text_set(table, "vbios_versions"),
            device_ids=text_set(table, "device_ids"),
            min_driver_version=least,
        )

    def rims_for(self, device_class: str) -> tuple[str, ...]:
        """The RIMs that have to be there and match, in a fixed order."""
        wanted = self.required_rims
        if wanted is None:
            wanted = frozenset({"vbios"} if device_class == "switch" else RIMS)
        return tuple(each for each in RIMS if each in wanted)


def appraise_device(claims: Claims, policy: NvidiaPolicy, checks: Checklist) -> None:
    """Hold a verified device's versions and identity against `policy`."""
    for key, claim, word in (
        ("products", "product", Word.IDENTITY),
        ("driver_versions", "driver_version", Word.MEASUREMENT),
        ("vbios_versions", "vbios_version", Word.MEASUREMENT),
    ):
        check_allowed(
            getattr(policy, key), claims[claim], checks, name=f"nvidia.{claim.replace('_', '-')}", word=word,
            key=key, source=_OPAQUE,
        )  # fmt: skip
    check_allowed(
        policy.device_ids, claims.device_id, checks, name="nvidia.device-id", word=Word.IDENTITY, key="device_ids",
        source="public key of the device's identity certificate",
    )  # fmt: skip
    if policy.min_driver_version and claims.device_class != "switch":
        found = claims["driver_version"]
        checks.that(
            _version(found) >= _version(policy.min_driver_version), "nvidia.min-driver-version", Word.TCB,
            expected=f"driver {policy.min_driver_version} or later", found=found or "none", source=_OPAQUE,
            hint=f"update the GPU driver to {policy.min_driver_version} or later",
        )  # fmt: skip


def _version(text: str) -> tuple[int, ...]:
    """``550.90.07`` as numbers; what is no such version sorts below all that are."""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+(\.\d+)*", text) else ()
