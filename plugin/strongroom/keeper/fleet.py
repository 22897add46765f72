"""The request keys that all keepers of an archive share: mode ``fleet`` (docs/protocol.md section 7).

A thread asks the broker for the seeds of the epochs that are wanted, ahead of time, and again until it has
them. Which of them open, and which one is offered, follows from the broker's time alone, at the moment
somebody asks: a turn of the epoch waits for no thread.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import secrets
import threading
from collections.abc import Callable

from strongroom.broker.epochs import EPOCH_S, EpochSeed
from strongroom.channel.fleet import model_secret
from strongroom.channel.keyset import KeySet
from strongroom.channel.replay import ReplayMemory
from strongroom.errors import (
    AttestationFailed,
    ModelUnavailable,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
    StrongroomError,
)
from strongroom.keeper.asking import Asking
from strongroom.keeper.brokertime import BrokerTime
from strongroom.keeper.keyring import BUNDLE_LIFETIME, KEMS, Offer
from strongroom.keeper.leases import Clock, boottime
from strongroom.keeper.release import Released
from strongroom.keys import ArchiveDigest
from strongroom.launch.config import Channel

_log = logging.getLogger(__name__)

AHEAD_S = 5.0
"""How far ahead of the broker's time a Date may be, and so how long a keeper that just started stays closed."""

TOLERANCE_S = 300.0
"""How far a seed's `broker_time` may be from what we make the broker's time to be."""

REFRESH_S = 3600.0
BUNDLES_END_EARLIER_S = 60.0
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE_AFTER_NO = 1.0, 30.0, 60.0
REFUSALS = (ReleaseDenied, ResourceMissing, AttestationFailed)


class _Tenure:
    """One stretch of time in which the model is open: its secret, and the seeds that came meanwhile."""

    def __init__(self, secret: bytes, fetch: Callable[[int], EpochSeed], release: Callable[[], Released]) -> None:
        self.secret = secret
        self.fetch, self.release = Asking(fetch), Asking(release)
        self.seeds: dict[int, bytes] = {}
        self.refresh_at = 0.0  # CLOCK_BOOTTIME
        self.over = False
        self.wake = threading.Event()

    def end(self) -> None:
        """The thread that asks comes to its end; what it may still bring is not taken."""
        self.over = True
        self.secret, self.seeds = b"", {}
        self.wake.set()

    def pause(self, seconds: float) -> None:
        """Wait, at most a minute: a suspend moves CLOCK_BOOTTIME while a wait sleeps on."""
        self.wake.wait(min(seconds, 60.0))
        if not self.over:
            self.wake.clear()


class FleetKeys:
    """One archive's seeds, the keys that follow from them, and the memory of replays. Thread-safe.

    `fetch` gives the verified seed of an epoch, `release` the model key once more; both raise `ReleaseError`.
    `clock` is CLOCK_BOOTTIME. Until `opened`, and after `closed`, there are no keys.
    """

    mode = "fleet"

    def __init__(
        self,
        name: str,
        archive: ArchiveDigest,
        settings: Channel,
        fetch: Callable[[int], EpochSeed],
        release: Callable[[], Released],
        *,
        clock: Clock = boottime,
    ) -> None:
        self._name, self._archive = name, archive
        self._kems = tuple(KEMS[each] for each in settings.kems)
        self._overlap = float(max(settings.overlap, BUNDLE_LIFETIME))
        self._lead = self._overlap * (1.1 + 0.15 * secrets.randbelow(1000) / 1000)
        self._fetch, self._release = fetch, release
        self._clock = clock
        self._begins = math.inf  # the Date from which on we may answer
        self.memory = ReplayMemory(
            window=settings.date_window, ahead=AHEAD_S, require_date=True, not_before=self._begins
        )
        self._lock = threading.RLock()
        self._time: BrokerTime | None = None
        self._tenure: _Tenure | None = None
        self._keys: KeySet | None = None
        self._known: set[int] = set()  # epochs of which the memory may still hold something
        self._due = math.inf  # CLOCK_BOOTTIME at which `_arrange` has something to do
        self._reason: StrongroomError = _CLOSED
        self._missed: StrongroomError = _AWAITED  # why the last seed did not come

    # -- the model comes and goes -----------------------------------------------------

    def opened(self, released: Released, answered_at: float) -> None:
        """The model key is there, and it is the right one: begin to ask for seeds. Raises `ReleaseError`.

        `answered_at` is CLOCK_BOOTTIME when the key had come.
        """
        time = _time_of(released, answered_at)
        tenure = _Tenure(model_secret(released.key, self._archive), self._fetch, self._release)
        with self._lock:
            self.closed()
            self._tenure, self._missed = tenure, _AWAITED
            self._tell(time)
        threading.Thread(target=self._pursue, args=(tenure,), name=f"seeds of {self._name}", daemon=True).start()

    def told(self, broker_time: int, asked_at: float, answered_at: float) -> None:
        """The broker told its time along with something else: with a renewed lease."""
        with self._lock:
            self._tell(BrokerTime(broker_time, asked_at, answered_at))
            if self._tenure is not None:
                self._tenure.wake.set()  # it may be another day by now

    def closed(self) -> None:
        """The model is withdrawn: its secret, its seeds and its keys go. The memory of replays stays."""
        with self._lock:
            if self._tenure is not None:
                self._tenure.end()
            self._tenure = self._keys = None
            self._reason = _CLOSED

    # -- answering ---------------------------------------------------------------------

    def present(self) -> KeySet:
        """What opens requests now; raises `ModelUnavailable`."""
        with self._lock:
            if self._clock() >= self._due:
                self._arrange()
            if self._keys is None:
                raise ModelUnavailable(
                    f"model {self._name} has no request keys: {type(self._reason).__name__}",
                    hint="the keeper's log has the detail; it keeps asking by itself",
                )
            return self._keys

    def offer(self) -> Offer:
        """What clients are offered now; raises `ModelUnavailable`."""
        with self._lock:
            keys, now = self.present(), self.now()
            until = _end(keys.generation) + self._overlap - BUNDLES_END_EARLIER_S
            if until <= now:
                raise ModelUnavailable(f"model {self._name}: no seed came for the present epoch")
            return Offer(keys.ohttp_keys, now, until)

    def now(self) -> float:
        """The broker's Unix time, by its earlier bound; 0 before it was told."""
        time = self._time
        return 0.0 if time is None else time.earliest(self._clock())

    def status(self) -> tuple[int | None, StrongroomError | None]:
        """The epoch on offer, or why there is none."""
        with self._lock:
            with contextlib.suppress(ModelUnavailable):
                return self.present().generation, None
            return None, self._reason

    # -- which epochs ------------------------------------------------------------------

    def _tell(self, time: BrokerTime) -> None:
        if self._time is None:
            # Whatever was opened before this process began, by whomever, had a Date before this one. No clock of
            # ours is in it. Dates are whole seconds, and so is this, so a client's that is right is not before it.
            self._begins = float(math.ceil(time.told + 1 + AHEAD_S))
            self.memory.begin(self._begins)
        self._time = time
        self._arrange()

    def _arrange(self) -> None:
        """Drop what is over and offer what the time asks for; says in `_due` when that may change next."""
        time, tenure, at = self._time, self._tenure, self._clock()
        if time is None or tenure is None:
            self._due = math.inf
            return
        now, latest = time.earliest(at), time.latest(at)
        over = frozenset(epoch for epoch in self._known if _end(epoch) + self._overlap <= latest)
        self.memory.forget(over)
        self._known -= over
        for epoch in over:
            tenure.seeds.pop(epoch, None)
        offered = max((epoch for epoch in tenure.seeds if epoch <= _epoch(now)), default=None)
        if now < self._begins:
            self._keys, self._reason = None, ModelUnavailable(f"it opens {self._begins - now:.0f} s from now")
        elif offered is None:
            self._keys, self._reason = None, self._missed
        elif self._keys is None or (self._keys.generation, self._keys.generations) != (
            offered,
            frozenset(tenure.seeds),
        ):
            self._keys = KeySet.of_epochs(tenure.seeds, offered, tenure.secret, self._kems)
            held = ", ".join(map(str, sorted(tenure.seeds)))
            _log.info("model %s offers the keys of epoch %d and opens with those of %s", self._name, offered, held)
        moments = [_end(epoch) + self._overlap - latest for epoch in tenure.seeds]
        moments += [self._begins - now, _end(_epoch(now)) - now]
        self._due = at + min(each for each in moments if each > 0)

    def _wanted(self) -> list[int]:
        """Epochs whose seeds should be here, the most urgent first."""
        assert self._time is not None, "a model is opened with a time"
        at = self._clock()
        now, latest = self._time.earliest(at), self._time.latest(at)
        present = _epoch(now)
        wanted = [present]
        if latest >= _end(present) - self._lead:
            wanted.append(present + 1)
        if now < _end(present - 1) + self._overlap:
            wanted.append(present - 1)
        return wanted

    # -- asking ------------------------------------------------------------------------

    def _pursue(self, tenure: _Tenure) -> None:
        pause = FIRST_PAUSE
        while not tenure.over:
            try:
                self._ask(tenure)
                wait, pause = LONGEST_PAUSE, FIRST_PAUSE
            except ReleaseError as error:
                self._trouble(error)
                wait = pause
                pause = min(2 * pause, LONGEST_PAUSE_AFTER_NO if isinstance(error, REFUSALS) else LONGEST_PAUSE)
            except Exception as error:  # a bug of ours may not end the asking
                _log.error("model %s: seeds: %s", self._name, type(error).__name__)
                wait = LONGEST_PAUSE
            tenure.pause(wait)

    def _trouble(self, error: ReleaseError) -> None:
        with self._lock:
            self._missed = error
            self._arrange()
        _log.warning("model %s: a seed did not come: %s: %s", self._name, type(error).__name__, error)

    def _ask(self, tenure: _Tenure) -> None:
        """Ask for what is wanted and not here. Raises the first `ReleaseError`, after everything was asked for."""
        wanted = self._wanted()
        missing = [epoch for epoch in wanted if epoch not in tenure.seeds]
        if not missing and self._clock() >= tenure.refresh_at:
            missing = wanted[:1]
        trouble: list[ReleaseError] = []
        for epoch in missing:
            if tenure.over:
                return
            try:
                self._take(tenure, epoch)
            except ReleaseError as error:
                trouble.append(error)
        if trouble:
            raise trouble[0]

    def _take(self, tenure: _Tenure, epoch: int) -> None:
        """The seed of one epoch, believed only if all of docs/protocol.md section 7.1 holds."""
        asked_at = self._clock()
        try:
            seed = tenure.fetch(epoch)
        except ResourceMissing:
            self._ask_the_time(tenure)  # the broker may not give this epoch because it is another one by now
            raise
        time = BrokerTime(seed.broker_time, asked_at, self._clock())
        if (seed.epoch, seed.not_before, seed.not_after) != (epoch, epoch * EPOCH_S, _end(epoch)):
            raise ReleaseError(f"the broker's seed of epoch {epoch} is dated for another time", hint=_ODD_BROKER)
        known = self._time
        if known is None or known.contradicts(time, TOLERANCE_S):
            known = self._ask_the_time(tenure)
        if known.contradicts(time, TOLERANCE_S):
            raise ReleaseError(
                f"the broker's seed of epoch {epoch} was signed at another time than now: somebody replays it",
                hint=_ODD_BROKER,
            )
        with self._lock:
            if tenure is not self._tenure:
                return
            if not hmac.compare_digest(tenure.seeds.get(epoch, seed.seed), seed.seed):
                _log.warning("model %s: the broker has another seed for epoch %d than before", self._name, epoch)
                self._keys = None
            tenure.seeds[epoch] = seed.seed
            self._known.add(epoch)
            tenure.refresh_at = time.answered_at + REFRESH_S
            self._tell(time)

    def _ask_the_time(self, tenure: _Tenure) -> BrokerTime:
        """From the model key's document, which nobody makes who does not know that key."""
        released = tenure.release()
        time = _time_of(released, self._clock())
        if not hmac.compare_digest(model_secret(released.key, self._archive), tenure.secret):
            raise ReleaseError("the broker gives another key than before", hint=_ODD_BROKER)
        with self._lock:
            if tenure is self._tenure:
                self._tell(time)
        return time


_CLOSED = ModelUnavailable("the model is not open")
_AWAITED = ModelUnavailable("no seed came for the present epoch yet")
_ODD_BROKER = "is this the key owner's broker, and is its clock right? its audit log has each release"


def _epoch(moment: float) -> int:
    return int(moment // EPOCH_S)


def _end(epoch: int) -> int:
    return (epoch + 1) * EPOCH_S


def _time_of(released: Released, answered_at: float) -> BrokerTime:
    if released.broker_time is None:
        raise ReleaseError(
            "mode fleet goes by the broker's time, and this broker does not tell it",
            hint='use a strongroom broker (a stock Trustee has no epochs), or set mode = "host"',
        )
    return BrokerTime(released.broker_time, released.asked_at, answered_at)
