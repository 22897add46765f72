"""How long a keeper may hold a model key, on a clock that the host's date cannot turn back.

A lease counts on CLOCK_BOOTTIME from the moment before the key was asked for, so it never ends later than
the broker meant; suspends count. What the wall clock says has no part in it. A host can still stop a whole
guest and with it this clock: that is a stated residual (docs/threat-model.md), and `Lease.drift` shows it
at the next renewal.

`Tenure` says when to renew and when to drop; whoever holds the key calls it, and drops the key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from strongroom.errors import BrokerUnreachable, LeaseExpired, ReleaseError
from strongroom.keeper.release import Released

Clock = Callable[[], float]

DEFAULT_GRACE_S = 300
"""For how long after a lease's end an unreachable broker changes nothing. A refusal has no grace."""

RETRY_MIN_S = 1.0
RETRY_MAX_S = 60.0


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME: monotonic, and it counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Lease:
    """A right that ends. All times in seconds; `started` is CLOCK_BOOTTIME, `broker_time` Unix time.

    `lease_s` None means that it does not end (a stock Trustee, or a broker that sets no lease).
    """

    lease_s: int | None
    broker_time: int | None
    started: float
    grace_s: int = DEFAULT_GRACE_S
    drift: float = 0.0
    clock: Clock = field(default=boottime, repr=False, compare=False)

    @classmethod
    def start(
        cls,
        lease_s: int | None,
        broker_time: int | None,
        *,
        asked_at: float | None = None,
        grace_s: int = DEFAULT_GRACE_S,
        clock: Clock = boottime,
    ) -> Lease:
        """Begin a lease. `asked_at` is the clock's reading before the key was asked for; now, if it is None."""
        return cls(lease_s, broker_time, clock() if asked_at is None else asked_at, grace_s, 0.0, clock)

    def renewed(self, lease_s: int | None, broker_time: int | None, *, asked_at: float | None = None) -> Lease:
        """The lease after a renewal; `drift` is how much longer the broker's clock ran than ours."""
        started = self.clock() if asked_at is None else asked_at
        drift = 0.0
        if broker_time is not None and self.broker_time is not None:
            drift = (broker_time - self.broker_time) - (started - self.started)
        return Lease(lease_s, broker_time, started, self.grace_s, drift, self.clock)

    @property
    def ends(self) -> float:
        """CLOCK_BOOTTIME at which the lease itself ends; infinity for one without end."""
        return float("inf") if self.lease_s is None else self.started + self.lease_s

    @property
    def renew_at(self) -> float:
        """When to ask again: after two thirds, so that a short outage is over before the end."""
        return float("inf") if self.lease_s is None else self.started + self.lease_s * 2 / 3

    def ended(self) -> bool:
        """Whether the lease itself is over, without grace."""
        return self.clock() >= self.ends

    def left(self) -> float:
        """Seconds until lease and grace are over; infinity for one without end."""
        return self.ends + self.grace_s - self.clock()

    def expired(self) -> bool:
        """Whether lease and grace are over: the key must go."""
        return self.left() <= 0

    def check(self) -> None:
        """Raise `LeaseExpired` where lease and grace are over."""
        if self.expired():
            raise LeaseExpired(
                f"the lease of {self.lease_s} s and its grace of {self.grace_s} s are over",
                hint="the broker has not renewed it; its audit log says why, if it was reached",
            )

    def broker_now(self) -> int | None:
        """The broker's Unix time now, by our clock since it last told; None where it never did."""
        return None if self.broker_time is None else int(self.broker_time + self.clock() - self.started)


class Tenure:
    """Renews one key's lease, and says when the key must go and when it may come back.

    `fetch` makes one whole handshake. `drop` is called once when the right has ended: after a refusal at
    once, after an unreachable broker when lease and grace are over. `restore` gets the key that a later
    handshake brings. `step` does what is due and returns the seconds until something is due again; `run`
    calls it until `stop`.
    """

    def __init__(
        self,
        released: Released,
        fetch: Callable[[], Released],
        *,
        drop: Callable[[ReleaseError], None],
        restore: Callable[[Released], None],
        grace_s: int = DEFAULT_GRACE_S,
        clock: Clock = boottime,
    ) -> None:
        self._fetch = fetch
        self._drop = drop
        self._restore = restore
        self._clock = clock
        self.lease = Lease.start(
            released.lease_s, released.broker_time, asked_at=released.asked_at, grace_s=grace_s, clock=clock
        )
        self.held = True
        self._next = self.lease.renew_at
        self._pause = RETRY_MIN_S
        self._stopped = threading.Event()

    def step(self) -> float:
        """Renew or drop if it is time; seconds until the next call is due."""
        if self._clock() >= self._next:
            self._renew()
        if self.held and self.lease.expired():
            self._end(LeaseExpired("the lease and its grace are over", hint="the broker has not been reached since"))
        due = min(self._next, self.lease.ends + self.lease.grace_s if self.held else float("inf"))
        return max(0.0, due - self._clock())

    def _renew(self) -> None:
        try:
            released = self._fetch()
        except BrokerUnreachable:
            self._later()  # an outage shorter than the grace period changes nothing
        except ReleaseError as error:
            # The broker was reached and said no: a revocation takes effect now.
            if self.held:
                self._end(error)
            self._later()
        else:
            self.lease = self.lease.renewed(released.lease_s, released.broker_time, asked_at=released.asked_at)
            self._next, self._pause = self.lease.renew_at, RETRY_MIN_S
            if not self.held:
                self._restore(released)
                self.held = True

    def _later(self) -> None:
        now = self._clock()
        self._next = now + self._pause
        last_chance = self.lease.ends + self.lease.grace_s - RETRY_MIN_S
        if self.held and now < last_chance < self._next:
            self._next = last_chance
        self._pause = min(self._pause * 2, RETRY_MAX_S)

    def _end(self, error: ReleaseError) -> None:
        self.held = False
        self._drop(error)

    def run(self) -> None:
        """Call `step` whenever something is due, until `stop`; for a thread of its own."""
        while not self._stopped.is_set():
            # At most a minute at a time: a suspend moves CLOCK_BOOTTIME while a wait sleeps on.
            self._stopped.wait(min(self.step(), 60.0))

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()
