"""The attesters of this package, offered through the same hook as anybody's.

Each module is imported when its TEE is looked for: none of them needs another's packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from strongroom.evidence.types import Attester
from strongroom.hookspecs import AttesterOffer, hookimpl

_ATTESTERS = {  # TEE → module and class, in the order in which `strongroom doctor` considers them
    "az-snp-vtpm": ("strongroom.attest.azure", "AzureSnpAttester"),
    "az-tdx-vtpm": ("strongroom.attest.azure", "AzureTdxAttester"),
    "snp": ("strongroom.attest.snp", "SnpAttester"),
    "tdx": ("strongroom.attest.tdx", "TdxAttester"),
    "cca": ("strongroom.attest.cca", "CcaAttester"),
    "sgx": ("strongroom.attest.sgx", "SgxAttester"),
    "aws-nitro": ("strongroom.attest.nitro", "NitroAttester"),
    "nvidia": ("strongroom.attest.nvidia", "NvidiaAttester"),
    "tpm": ("strongroom.attest.tpm", "TpmAttester"),
}

_MISSING = {"az-snp-vtpm": "missing_snp", "az-tdx-vtpm": "missing_tdx"}
"""Where one module serves two TEEs, the function that says what is missing for each."""


def _offer(tee: str, module: str, name: str) -> AttesterOffer:
    def missing() -> str:
        loaded = importlib.import_module(module)
        lacks: Callable[[], str] = getattr(loaded, _MISSING.get(tee, "missing"))
        return lacks()

    def make() -> Attester:
        attester: Attester = getattr(importlib.import_module(module), name)()
        return attester

    return AttesterOffer(tee, missing, make)


def _simulated() -> Attester:
    from strongroom.attest.simulated import SimulatedAttester

    return SimulatedAttester()


@hookimpl
def strongroom_attesters() -> list[AttesterOffer]:
    """Hardware first; the simulated TEE is never chosen, only named."""
    offers = [_offer(tee, module, name) for tee, (module, name) in _ATTESTERS.items()]
    return [*offers, AttesterOffer("simulated", lambda: "", _simulated)]
