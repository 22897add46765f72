"""The replay memory: each encapsulated request opens once (docs/protocol.md section 5).

The memory belongs to the holder of the private keys and lives as long as they do. A request is
known by a hash of its enc. `reserve` comes before the context leaves the key holder, `settle`
after the one who opened it reported back; in between, a second copy is refused.

No clock of its own: `now` is the caller's, in seconds since the epoch. It may not run backwards
here: the latest `now` ever seen counts, or a host that sets the clock back could send old
requests again. Only `start_over` turns it back, for one who dropped every key.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from typing import NamedTuple

from strongroom.errors import DateRefused, ReplayRefused

WINDOW = 300.0
"""Seconds that a request's Date may be off, either way."""

_BUCKET = 30.0  # seconds of remembered requests that are forgotten together


class Reservation(NamedTuple):
    """One request that was handed out to be opened; goes back to `settle` or `abandon`."""

    digest: bytes
    generation: int


class DateTerms(NamedTuple):
    """Which Dates are taken at a moment; times in seconds since the epoch.

    A Date may lie `window` seconds behind and `ahead` seconds before us. `undated` is how many more requests
    without a Date are taken.
    """

    latest: float
    window: float
    not_before: float
    undated: int
    ahead: float

    def check(self, date: float | None) -> None:
        """Raises `DateRefused` for a request that opened and must not be processed."""
        if date is None:
            if self.undated <= 0:
                raise self._refused("no requests without a Date field are taken", "send a Date field in the request")
            return
        if not -self.window <= date - self.latest <= self.ahead:
            raise self._refused(
                f"the Date field is {date - self.latest:+.0f} seconds off, "
                f"allowed are {-self.window:.0f} to {self.ahead:+.0f}",
                "set the client's clock",
            )
        if date < self.not_before:
            raise self._refused("the Date field lies before this server started", "send the request anew")

    def _refused(self, why: str, hint: str) -> DateRefused:
        return DateRefused(why, now=self.latest, hint=hint)


class ReplayMemory:
    """Remembers what was opened; thread-safe.

    With a Date, a request is remembered until its Date leaves the window. Without one, until its
    key's generation is forgotten, and of those at most `undated_limit` are taken: past that, requests
    without a Date are refused. `dated_limit` bounds the rest; past that, everything is refused
    until the window moves on.

    `ahead` is how many seconds a Date may be ahead of us, the window where it is None. That,
    `not_before` (seconds since the epoch) and `require_date` are for mode ``fleet``: this process
    cannot know what others answered before it started.
    """

    def __init__(
        self,
        *,
        window: float = WINDOW,
        undated_limit: int = 100_000,
        dated_limit: int = 2_000_000,
        require_date: bool = False,
        not_before: float = 0.0,
        ahead: float | None = None,
    ) -> None:
        self._window = window
        self._ahead = window if ahead is None else ahead
        self._undated_limit = undated_limit
        self._dated_limit = dated_limit
        self._require_date = require_date
        self._not_before = not_before
        self._lock = threading.Lock()
        self._latest = 0.0
        self._pending: set[Reservation] = set()
        self._undated: dict[int, set[bytes]] = defaultdict(set)
        self._dated: dict[int, set[bytes]] = {}  # by the number of the bucket in which they are forgotten
        self._dated_count = 0

    @property
    def window(self) -> float:
        """Seconds that a Date may be off, either way."""
        return self._window

    def __len__(self) -> int:
        """How many requests are remembered or pending."""
        with self._lock:
            undated = sum(map(len, self._undated.values()))
            return len(self._pending) + undated + sum(map(len, self._dated.values()))

    def reserve(self, enc: bytes, generation: int, now: float) -> Reservation:
        """Take note that `enc` is about to be opened under a key of `generation`.

        Raises `ReplayRefused` if it was opened before, or is being opened, or the memory is full.
        """
        # 16 bytes of SHA-256: an attacker gains nothing from two of its own requests that collide.
        reservation = Reservation(hashlib.sha256(enc).digest()[:16], generation)
        with self._lock:
            self._move(now)
            if reservation in self._pending or self._seen(reservation):
                raise ReplayRefused(
                    "this encapsulated request was seen before",
                    hint="every attempt needs an encapsulation of its own; send the request anew",
                )
            if len(self._pending) + self._dated_count >= self._dated_limit:
                raise ReplayRefused(
                    "the replay memory is full",
                    hint=f"try again {2 * self._window:.0f} seconds later",
                )
            self._pending.add(reservation)
        return reservation

    def begin(self, not_before: float) -> None:
        """From now on, Dates before `not_before` are refused, and later ones are not for that reason."""
        with self._lock:
            self._not_before = not_before

    @property
    def latest(self) -> float:
        """The latest time that was told, in seconds since the epoch."""
        return self._latest

    def terms(self) -> DateTerms:
        """Which Dates are taken now, for whoever opens what was reserved."""
        with self._lock:
            return self._terms()

    def _terms(self) -> DateTerms:
        undated = 0 if self._require_date else self._undated_limit - sum(map(len, self._undated.values()))
        return DateTerms(self._latest, self._window, self._not_before, undated, self._ahead)

    def settle(self, reservation: Reservation, *, opened: bool, date: float | None, now: float) -> None:
        """Report what became of a reservation. `date` is the inner Date (seconds since the epoch) or None.

        What did not open is forgotten: its sender may try again. What opened is remembered, or, if its
        Date forbids it, refused with `DateRefused`; then it must not be processed. Raises
        `ReplayRefused` for a reservation that is not pending.
        """
        with self._lock:
            self._take(reservation, now)
            if opened:
                self._terms().check(date)
                self._remember(reservation, date)

    def record(self, reservation: Reservation, *, opened: bool, date: float | None, now: float) -> None:
        """As `settle`, from one who held the Date against `terms` already and acts on what opened.

        So it is remembered in any case: terms may have changed meanwhile, by a batch's requests at most.
        """
        with self._lock:
            self._take(reservation, now)
            if opened:
                self._remember(reservation, date)

    def _take(self, reservation: Reservation, now: float) -> None:
        self._move(now)
        if reservation not in self._pending:
            raise ReplayRefused("this request was settled before")
        self._pending.remove(reservation)

    def _remember(self, reservation: Reservation, date: float | None) -> None:
        if date is None:
            self._undated[reservation.generation].add(reservation.digest)
            return
        # A Date out of all bounds was refused by whoever looked at it; it must not stay here for ever.
        date = min(max(date, self._latest - self._window), self._latest + self._window)
        forget = int((date + self._window) // _BUCKET) + 1  # its whole bucket lies behind its last valid moment
        self._dated.setdefault(forget, set()).add(reservation.digest)
        self._dated_count += 1

    def abandon(self, reservation: Reservation) -> None:
        """The one who held this reservation is gone: nobody knows whether it was processed, so it counts as opened."""
        with self._lock:
            if reservation in self._pending:
                self._pending.remove(reservation)
                self._undated[reservation.generation].add(reservation.digest)

    def forget(self, generations: frozenset[int]) -> None:
        """The keys of these generations are gone, and nothing sent to them opens any more."""
        with self._lock:
            for generation in generations:
                self._undated.pop(generation, None)

    def start_over(self, now: float) -> None:
        """Every key there was is gone, so nothing that was ever sent opens again: forget all, and begin at `now`.

        What is pending may still be settled; it was opened already.
        """
        with self._lock:
            self._undated.clear()
            self._dated.clear()
            self._dated_count = 0
            self._latest = now

    def _seen(self, reservation: Reservation) -> bool:
        digest = reservation.digest
        for bucket in self._dated.values():
            if digest in bucket:
                return True
        return digest in self._undated.get(reservation.generation, ())

    def _move(self, now: float) -> None:
        """Let time pass, forwards only, and forget what no Date window holds any more."""
        if now <= self._latest:
            return
        self._latest = now
        over = [bucket for bucket in self._dated if bucket * _BUCKET < now]
        for bucket in over:
            self._dated_count -= len(self._dated.pop(bucket))
