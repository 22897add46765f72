"""What a policy asks of the events that `strongroom launch` extended: the same words for a PCR and an RTMR.

``launch = { configuration = ["…"] }``: docs/attestation/init-data.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from strongroom.encoding import Fields
from strongroom.evidence.allowlist import HexSet, hex_set
from strongroom.evidence.types import Checklist, Claims, Provenance, Word

SOURCE = "docs/attestation/init-data.md, launch events"


@dataclass(frozen=True, slots=True)
class LaunchPolicy:
    """Event → the digests that it may have, in hex. An event that is not named may be anything, or absent.

    Only what a log that replays says counts.
    """

    demanded: Mapping[str, HexSet] = field(default_factory=dict)

    @classmethod
    def read(cls, table: Fields) -> LaunchPolicy:
        """Take ``launch`` out of a TEE's table; raises `MalformedInput`."""
        if not table.has("launch"):
            return cls()
        inner = table.table("launch")
        return cls({name: hex_set(inner, name, sizes=(32,)) or frozenset() for name in inner.left()})

    def appraise(self, claims: Claims, checks: Checklist, *, name: str) -> None:
        """One check for each event that is demanded."""
        for event, allowed in self.demanded.items():
            claim = claims.values.get(f"launch.{event}")
            found = claim.value if claim is not None and claim.provenance is Provenance.EVENT_LOG else ""
            checks.that(
                found in allowed, f"{name}.launch-{event}", Word.MEASUREMENT,
                expected=" or ".join(sorted(allowed)) or "nothing is allowed: the list is empty",
                found=found or "not extended", source=SOURCE,
                hint="this host was launched with another configuration than the one you know",
            )  # fmt: skip


def orderly(events: Collection[tuple[int, str]], expected: int, checks: Checklist, *, name: str, kind: str) -> bool:
    """Each event once, and in the one register that the policy names; `events` are (register, name).

    Else whoever comes after `launch` could state its events again, with other digests or in a register that
    was still untouched.
    """
    names = [event for _, event in events]
    registers = sorted({register for register, _ in events})
    return checks.that(
        len(set(names)) == len(names) and registers == [expected], f"{name}.launch-events", Word.EVENT_LOG,
        expected=f"each event once, in {kind} {expected}",
        found=f"{', '.join(names)} in {kind} {', '.join(map(str, registers))}", source=SOURCE,
        hint="launch and policy must name the same register, and nothing else may extend it",
    )  # fmt: skip
