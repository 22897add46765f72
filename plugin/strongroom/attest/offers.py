"""The attesters of this package, offered through the same hook as anybody's."""

from __future__ import annotations

from strongroom.evidence.types import Attester
from strongroom.hookspecs import AttesterOffer, hookimpl


def _simulated() -> Attester:
    from strongroom.attest.simulated import SimulatedAttester

    return SimulatedAttester()


def _tpm_missing() -> str:
    from strongroom.attest.tpm import missing

    return missing()


def _tpm() -> Attester:
    from strongroom.attest.tpm import TpmAttester

    return TpmAttester()


@hookimpl
def strongroom_attesters() -> list[AttesterOffer]:
    """In the order in which `strongroom doctor` considers them; the simulated TEE is never chosen."""
    return [
        AttesterOffer("tpm", _tpm_missing, _tpm),
        AttesterOffer("simulated", lambda: "", _simulated),
    ]
