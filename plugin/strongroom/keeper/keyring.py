"""One model's request keys: what clients seal to, opened once each, and the evidence over them.

Whose keys these are is the channel's mode. `HostKeys` makes its own, and nobody outside ever has them; they
rotate with an overlap, and the deletion of an old key is the only forward secrecy there is. `fleet.FleetKeys`
shares them with other keepers. Evidence over the key list is cached and remade before half of its lifetime;
over a client's nonce it is made on demand, at a bounded rate, because a quoting device is slow and shared
(docs/protocol.md sections 4 and 5).
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from strongroom.channel.bundle import AdmittedArchive, BundleEvidence, BundleParts, KeyBundle, ServedModel
from strongroom.channel.kem import P256, X25519, XWING
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.channel.replay import DateTerms, ReplayMemory, Reservation
from strongroom.errors import ChannelError, KeyUnknown, NonceRateExceeded, StrongroomError
from strongroom.evidence.types import Attester
from strongroom.keeper.release import Released
from strongroom.launch.config import Channel

_log = logging.getLogger(__name__)

KEMS = {"x-wing": XWING, "x25519": X25519, "p-256": P256}

BUNDLE_LIFETIME = 3600
"""Seconds. The overlap of two key generations is at least as long, so a cached bundle always works."""


class Allowance:
    """A token bucket: `rate` a second, `burst` at once. Thread-safe; monotonic clock."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> None:
        """One piece of it; raises `NonceRateExceeded`."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                raise NonceRateExceeded("fresh evidence was asked for too often", hint="ask without a nonce, or later")
            self._left -= 1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the evidence says beside the keys: all admitted archives, and digests of settings and plugins."""

    admitted: tuple[AdmittedArchive, ...]
    configuration: bytes
    plugins: bytes


class Offer(NamedTuple):
    """What clients are offered: the key list's bytes, the time now, and until when those keys open at most.

    Both times are in seconds since 1970, by the clock that the mode believes.
    """

    ohttp_keys: bytes
    now: float
    until: float


class KeySource(Protocol):
    """Whose keys a model's requests are sealed to: the difference between the channel's modes. Thread-safe."""

    mode: str
    memory: ReplayMemory

    def present(self) -> KeySet:
        """What opens requests now; raises `ModelUnavailable` while there is nothing."""

    def offer(self) -> Offer:
        """What clients are offered now; raises `ModelUnavailable`."""

    def now(self) -> float:
        """Seconds since 1970, by which Dates are judged."""

    def opened(self, released: Released, answered_at: float) -> None:
        """The model key has come and fits, at CLOCK_BOOTTIME `answered_at`; raises `ReleaseError`."""

    def told(self, broker_time: int, asked_at: float, answered_at: float) -> None:
        """The broker told its time with a renewed lease; see `brokertime.BrokerTime`."""

    def closed(self) -> None:
        """The model was withdrawn."""

    def status(self) -> tuple[int | None, StrongroomError | None]:
        """The epoch on offer, and why there are no keys, where that is so."""


class HostKeys:
    """Mode ``host``: keys made here, of this keeper's life. Opening and closing the model changes nothing."""

    mode = "host"

    def __init__(self, settings: Channel, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._keys = KeySet(tuple(KEMS[name] for name in settings.kems))
        self._rotation, self._overlap = settings.rotation, max(settings.overlap, BUNDLE_LIFETIME)
        self._rotated = time.monotonic()
        self._lock = threading.Lock()
        self.memory = ReplayMemory(window=settings.date_window)

    def present(self) -> KeySet:
        """The one set there is, rotated if that is due."""
        now = time.monotonic()
        with self._lock:
            self._begin_anew_if_set_back(now)
            if now - self._rotated >= self._rotation:
                self._keys.rotate(now, self._overlap)
                self._rotated = now
            if over := self._keys.forget(now):
                self.memory.forget(over)
        return self._keys

    def offer(self) -> Offer:
        """What is on offer; the overlap is at least a bundle's lifetime, so its end cuts no bundle short."""
        return Offer(self.present().ohttp_keys, self.now(), math.inf)

    def now(self) -> float:
        """The host's clock."""
        return self._clock()

    def opened(self, released: Released, answered_at: float) -> None:
        """Nothing: these keys owe nothing to the model key."""

    def told(self, broker_time: int, asked_at: float, answered_at: float) -> None:
        """Nothing."""

    def closed(self) -> None:
        """Nothing: without the model nothing is opened anyway."""

    def status(self) -> tuple[int | None, StrongroomError | None]:
        """There are always keys, and no epochs."""
        return None, None

    def _begin_anew_if_set_back(self, now: float) -> None:
        """A wall clock set back by more than the window: keys and memory go together (docs/protocol.md section 5)."""
        wall, latest = self._clock(), self.memory.latest
        if wall >= latest - self.memory.window:
            return
        _log.warning("the clock was set back by %.0f s: a model has new request keys", latest - wall)
        self._keys.rotate(now, 0)
        self._keys.forget(float("inf"))
        self.memory.start_over(wall)
        self._rotated = now


class _Cached(NamedTuple):
    """A bundle without a nonce: when it was made on the monotonic clock, from what, for how many seconds it serves."""

    at: float
    made: Offer
    seconds: float
    bundle: bytes

    def serves(self, offer: Offer) -> bool:
        """Clients hold a bundle's times against their clocks, so a clock that was set makes it useless too."""
        same = offer.ohttp_keys == self.made.ohttp_keys
        return same and time.monotonic() - self.at < self.seconds and 0 <= offer.now - self.made.now < self.seconds


@dataclass(slots=True)
class RequestKeys:
    """The keys, the replay memory and the cached bundle of one model. Thread-safe."""

    model: ServedModel
    surroundings: Surroundings
    attester: Attester
    source: KeySource
    allowance: Allowance
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _cached: _Cached | None = field(init=False, default=None)

    def bundle(self, nonce: bytes | None) -> bytes:
        """The key bundle's JSON: cached without a nonce, freshly attested with one (32 bytes).

        Raises `NonceRateExceeded`, `ModelUnavailable`, or what the attester raises.
        """
        if nonce is not None:
            self.allowance.take()
            return self._attested(nonce, self.source.offer())[1]
        with self._lock:
            offer, cached = self.source.offer(), self._cached
            if cached is None or not cached.serves(offer):
                seconds, octets = self._attested(None, offer)
                cached = self._cached = _Cached(time.monotonic(), offer, seconds / 2, octets)
            return cached.bundle

    def _attested(self, nonce: bytes | None, offer: Offer) -> tuple[float, bytes]:
        """For how many seconds it holds, and a bundle."""
        seconds = min(BUNDLE_LIFETIME, int(offer.until - offer.now)) if offer.until < math.inf else BUNDLE_LIFETIME
        parts = BundleParts(
            ohttp_keys=offer.ohttp_keys,
            not_before=int(offer.now),
            not_after=int(offer.now) + seconds,
            model=self.model,
            admitted=self.surroundings.admitted,
            configuration=self.surroundings.configuration,
            plugins=self.surroundings.plugins,
            mode=self.source.mode,
            nonce=nonce,
        )
        evidence = self.attester.evidence(parts.binding())
        return seconds, KeyBundle(parts, BundleEvidence(evidence.tee, evidence.body)).serialise()

    def open(self, head: bytes, enc: bytes, form: Form) -> tuple[Reservation, bytes]:
        """One request's reservation and its HPKE context, serialised for the worker.

        Raises `KeyUnknown`, `EncapsulationInvalid`, `ReplayRefused` or `ModelUnavailable`.
        """
        parsed = _head(head)
        keys, memory = self.source.present(), self.source.memory
        reservation = memory.reserve(enc, keys.generation_of(parsed), self.source.now())
        try:
            return reservation, keys.decapsulate(parsed, enc, form).serialise()
        except ChannelError:
            memory.settle(reservation, opened=False, date=None, now=self.source.now())
            raise

    def terms(self) -> DateTerms:
        """Which inner Dates are taken now."""
        return self.source.memory.terms()

    def settle(self, reservation: Reservation, *, opened: bool, date: int | None) -> None:
        """What became of it; raises `DateRefused` or `ReplayRefused` where it must not be acted on."""
        self.source.memory.settle(reservation, opened=opened, date=date, now=self.source.now())

    def record(self, reservation: Reservation, *, opened: bool, date: int | None) -> None:
        """What became of it, from a worker that held the Date against `terms`; raises `ReplayRefused`."""
        self.source.memory.record(reservation, opened=opened, date=date, now=self.source.now())

    def abandon(self, reservation: Reservation) -> None:
        """The worker that held it is gone."""
        self.source.memory.abandon(reservation)


@functools.lru_cache(maxsize=64)
def _head(octets: bytes) -> RequestHead:
    if len(octets) != 7:
        raise KeyUnknown("an encapsulated request's head has 7 bytes")
    ids = (int.from_bytes(octets[at : at + 2], "big") for at in (1, 3, 5))
    return RequestHead(octets[0], *ids)
