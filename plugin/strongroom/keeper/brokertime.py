"""What time it is at the key broker, by a clock that the host's date cannot turn (docs/protocol.md section 7.3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BrokerTime:
    """The broker's Unix time, reckoned on CLOCK_BOOTTIME since it was told in whole seconds.

    An answer takes a while, so there are two bounds: the broker said `told` after `asked_at` and before
    `answered_at` (both CLOCK_BOOTTIME, seconds). `at` is a reading of that clock and may lie before either.
    """

    told: int
    asked_at: float
    answered_at: float

    def earliest(self, at: float) -> float:
        """It is not before this at the broker."""
        return self.told + (at - self.answered_at)

    def latest(self, at: float) -> float:
        """It is not after this at the broker."""
        return self.told + 1 + (at - self.asked_at)

    def contradicts(self, other: BrokerTime, tolerance: float) -> bool:
        """Whether two tellings are further apart than `tolerance` seconds, whatever their bounds."""
        at = other.answered_at
        return not self.earliest(at) - tolerance <= other.told <= self.latest(at) + tolerance
