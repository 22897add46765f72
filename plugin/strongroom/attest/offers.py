"""The attesters of this package, offered through the same hook as anybody's.

Each module is imported when its TEE is looked for: none of them needs another's packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from strongroom.evidence.types import Attester
from strongroom.hookspecs import AttesterOffer, hookimpl

_ATTESTERS = {  # TEE → module and class, in the order in which `strongroom doctor` considers them
    "snp": ("strongroom.attest.snp", "SnpAttester"),
    "tdx": ("strongroom.attest.tdx", "TdxAttester"),
    "cca": ("strongroom.attest.cca", "CcaAttester"),
    "sgx": ("strongroom.attest.sgx", "SgxAttester"),
    "aws-nitro": ("strongroom.attest.nitro", "NitroAttester"),
    "nvidia": ("strongroom.attest.nvidia", "NvidiaAttester"),
    "tpm": ("strongroom.attest.tpm", "TpmAttester"),
}


def _offer(tee: str, module: str, name: str) -> AttesterOffer:
    def missing() -> str:
        lacks: Callable[[], str] = importlib.import_module(module).missing
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
