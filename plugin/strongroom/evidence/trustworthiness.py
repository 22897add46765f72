"""A verdict as AR4SI numbers: what the checks of an accepted submodule support, and nothing more.

draft-ietf-rats-ar4si section 2.3. `executables` is affirming only where the checks that say *which software runs* were
made, by TEE: `EXECUTABLES` names them. Reference values for something else (a host's data, a module's signer, one
register among many) are good to have and say nothing about the software. What another verifier concluded (`ear`) is
passed on as that verifier said it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from strongroom.evidence.judge import Submodule
from strongroom.evidence.types import Word

GENUINE, SIMULATED = 2, 32
"""Of `hardware`: genuine; and a warning, for what is never genuine."""
APPROVED, NOT_RECOGNISED = 3, 33
"""Of `executables`: on the relying party's list; not on any list."""
NO_KNOWN_VULNERABILITY, UNAVAILABLE, NO_CLAIM = 3, 36, 0
"""Of `configuration`; `NO_CLAIM` does not count."""
AFFIRMING = range(2, 32)
WARNING = range(32, 96)
TIERS = ("none", "affirming", "warning", "contraindicated")
CLAIMS = ("hardware", "executables", "configuration")

_BOOT_PCR = r"pcr([0-9]|1[0-5])"  # 16 and 23 can be reset by anybody, 17 to 22 by a dynamic launch
_SNP_IDENTITY = r"snp\.(measurement|id-key-digest|author-key-digest)"
EXECUTABLES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "snp": ((_SNP_IDENTITY,),),
    "tdx": ((r"tdx\.mr-td",),),
    "sgx": ((r"sgx\.mr-enclave",), (r"sgx\.mr-signer", r"sgx\.isv-prod-id")),
    # On Azure the hardware measures the paravisor, and the paravisor's TPM the guest: one is nothing without the other.
    "az-snp-vtpm": ((_SNP_IDENTITY, rf"azure\.{_BOOT_PCR}"),),
    "az-tdx-vtpm": ((r"tdx\.mr-td", rf"azure\.{_BOOT_PCR}"),),
    "cca": ((r"cca\.initial-measurement",),),
    "tpm": ((rf"tpm\.{_BOOT_PCR}",),),
    "aws-nitro": ((r"nitro\.pcr0",), (r"nitro\.pcr8",), (r"nitro\.pcr1", r"nitro\.pcr2")),
    "simulated": ((r"simulated\.measurement",),),
}
"""TEE → alternatives, each a set of patterns of names of checks that all have to be there."""
_RIMS = {"gpu": ("driver", "vbios"), "switch": ("vbios",)}
_SETTINGS = frozenset({Word.DEBUG, Word.POLICY_BITS, Word.LIFECYCLE, Word.RIM})


def tier(value: int) -> str:
    """The AR4SI tier of one trustworthiness claim: ``none``, ``affirming``, ``warning`` or ``contraindicated``."""
    size = value if value >= 0 else -value - 1
    if size < 2:
        return "none"
    return "affirming" if size in AFFIRMING else "warning" if size in WARNING else "contraindicated"


def status(vector: Mapping[str, int]) -> str:
    """The worst tier of a vector; claims of 0 do not count."""
    return max((tier(value) for value in vector.values()), key=TIERS.index, default="none")


def trust_vector(submodule: Submodule) -> dict[str, int]:
    """AR4SI numbers for an accepted submodule.

    `hardware` 2 (genuine) after hardware signatures held; 32 for the simulated TEE. `executables` 3 (approved) where
    the software was held against reference values, else 33 (not recognised). `configuration` 3 (no known
    vulnerability) where debug and the like were looked at, else 36 (unavailable); a TPM's only where secure boot was.
    """
    tee = submodule.claims.tee
    if tee == "ear":
        return _as_said(submodule)
    return {
        "hardware": SIMULATED if tee == "simulated" else GENUINE,
        "executables": APPROVED if _approved(submodule) else NOT_RECOGNISED,
        "configuration": _configuration(submodule),
    }


def _approved(submodule: Submodule) -> bool:
    tee, made = submodule.claims.tee, {check.name for check in submodule.checks if check.ok}
    if tee == "nvidia":
        return all(f"nvidia.{rim}-rim.values" in made for rim in _RIMS[submodule.claims.device_class])
    if tee not in EXECUTABLES:  # a plugin's TEE: its own measurement checks are all there is to go by
        return any(check.ok and check.word is Word.MEASUREMENT for check in submodule.checks)
    return any(
        all(any(re.fullmatch(pattern, name) for name in made) for pattern in wanted) for wanted in EXECUTABLES[tee]
    )


def _configuration(submodule: Submodule) -> int:
    if submodule.claims.tee == "tpm":  # what a TPM always shows is about its key, not about the machine
        looked = any(check.ok and check.name == "tpm.secure-boot" for check in submodule.checks)
        return NO_KNOWN_VULNERABILITY if looked else NO_CLAIM
    looked = any(check.ok and check.word in _SETTINGS for check in submodule.checks)
    return NO_KNOWN_VULNERABILITY if looked else UNAVAILABLE


def _as_said(submodule: Submodule) -> dict[str, int]:
    """The vector of the other verifier's CPU; a token without one (MAA and its kind) says only that it was believed."""
    payload = submodule.claims.get("claims", {})
    submodules = payload.get("submods")
    if not isinstance(submodules, Mapping) or not submodules:
        return {"hardware": GENUINE, "executables": NOT_RECOGNISED, "configuration": UNAVAILABLE}
    vectors = [
        each.get("ear.trustworthiness-vector") if isinstance(each, Mapping) else None
        for name, each in submodules.items()
        if str(name).startswith("cpu") or len(submodules) == 1
    ]
    found = {claim: [_said(vector, claim) for vector in vectors] for claim in CLAIMS}
    return {claim: max(values, key=_worse, default=NO_CLAIM) for claim, values in found.items()}


def _said(vector: object, claim: str) -> int:
    value = vector.get(claim) if isinstance(vector, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and -128 <= value <= 127 else NO_CLAIM


def _worse(value: int) -> int:
    """None before affirming: of two CPUs the one about which nothing is said is the worse."""
    return ("affirming", "none", "warning", "contraindicated").index(tier(value))
