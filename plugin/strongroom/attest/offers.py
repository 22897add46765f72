"""The attesters of this package, offered through the same hook as anybody's."""

from __future__ import annotations

from strongroom.evidence.types import Attester
from strongroom.hookspecs import AttesterOffer, hookimpl


def _simulated() -> Attester:
    from strongroom.attest.simulated import SimulatedAttester

    return SimulatedAttester()


@hookimpl
def strongroom_attesters() -> list[AttesterOffer]:
    """In the order in which `strongroom doctor` considers them; the simulated TEE is never chosen."""
    return [AttesterOffer("simulated", lambda: "", _simulated)]
