"""One model's request keys: what clients seal to, opened once each, and the evidence over them.

Mode ``host``: keys are made here and nobody outside ever has them. They rotate with an overlap, and the
deletion of an old key is the only forward secrecy there is. Evidence over the key list is cached and
remade before half of its lifetime; over a client's nonce it is made on demand, at a bounded rate, because
a quoting device is slow and shared (docs/protocol.md sections 4 and 5).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from strongroom.channel.bundle import AdmittedArchive, BundleEvidence, BundleParts, KeyBundle, ServedModel
from strongroom.channel.kem import P256, X25519, XWING
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.channel.replay import DateTerms, ReplayMemory, Reservation
from strongroom.errors import ChannelError, KeyUnknown, NonceRateExceeded
from strongroom.evidence.types import Attester
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


class _Cached(NamedTuple):
    """A bundle without a nonce; `until` on the monotonic clock, `made` by the wall clock, in seconds."""

    until: float
    made: float
    bundle: bytes


@dataclass(slots=True)
class RequestKeys:
    """The keys, the replay memory and the cached bundle of one model. Thread-safe."""

    model: ServedModel
    surroundings: Surroundings
    attester: Attester
    settings: Channel
    allowance: Allowance
    clock: Callable[[], float] = time.time
    _keys: KeySet = field(init=False)
    _replays: ReplayMemory = field(init=False)
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)
    _rotated: float = field(init=False)
    _cached: _Cached | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._keys = KeySet(tuple(KEMS[name] for name in self.settings.kems))
        self._replays = ReplayMemory(window=self.settings.date_window)
        self._rotated = time.monotonic()

    def bundle(self, nonce: bytes | None) -> bytes:
        """The key bundle's JSON: cached without a nonce, freshly attested with one (32 bytes).

        Raises `NonceRateExceeded`, or what the attester raises.
        """
        if nonce is not None:
            self.allowance.take()
            return self._attested(nonce)
        with self._lock:
            self._rotate_if_due()
            now, made, half = time.monotonic(), self.clock(), BUNDLE_LIFETIME / 2
            # Clients hold the bundle's times against their clocks, so a wall clock that was set makes it useless.
            if self._cached is None or now >= self._cached.until or not 0 <= made - self._cached.made < half:
                self._cached = _Cached(now + half, made, self._attested(None))
            return self._cached.bundle

    def _attested(self, nonce: bytes | None) -> bytes:
        with self._lock:
            self._rotate_if_due()
            now = int(self.clock())
            parts = BundleParts(
                ohttp_keys=self._keys.ohttp_keys,
                not_before=now,
                not_after=now + BUNDLE_LIFETIME,
                model=self.model,
                admitted=self.surroundings.admitted,
                configuration=self.surroundings.configuration,
                plugins=self.surroundings.plugins,
                nonce=nonce,
            )
        evidence = self.attester.evidence(parts.binding())
        return KeyBundle(parts, BundleEvidence(evidence.tee, evidence.body)).serialise()

    def open(self, head: bytes, enc: bytes, form: Form) -> tuple[Reservation, bytes]:
        """One request's reservation and its HPKE context, serialised for the worker.

        Raises `KeyUnknown`, `EncapsulationInvalid` or `ReplayRefused`.
        """
        parsed = _head(head)
        with self._lock:
            self._rotate_if_due()
            generation = self._keys.generation_of(parsed)
        reservation = self._replays.reserve(enc, generation, self.clock())
        try:
            return reservation, self._keys.decapsulate(parsed, enc, form).serialise()
        except ChannelError:
            self._replays.settle(reservation, opened=False, date=None, now=self.clock())
            raise

    def terms(self) -> DateTerms:
        """Which inner Dates are taken now."""
        return self._replays.terms()

    def settle(self, reservation: Reservation, *, opened: bool, date: int | None) -> None:
        """What became of it; raises `DateRefused` or `ReplayRefused` where it must not be acted on."""
        self._replays.settle(reservation, opened=opened, date=date, now=self.clock())

    def record(self, reservation: Reservation, *, opened: bool, date: int | None) -> None:
        """What became of it, from a worker that held the Date against `terms`; raises `ReplayRefused`."""
        self._replays.record(reservation, opened=opened, date=date, now=self.clock())

    def abandon(self, reservation: Reservation) -> None:
        """The worker that held it is gone."""
        self._replays.abandon(reservation)

    def _rotate_if_due(self) -> None:
        now = time.monotonic()
        self._begin_anew_if_set_back(now)
        if now - self._rotated >= self.settings.rotation:
            self._keys.rotate(now, max(self.settings.overlap, BUNDLE_LIFETIME))
            self._rotated = now
            self._cached = None
        self._replays.forget(self._keys.forget(now))

    def _begin_anew_if_set_back(self, now: float) -> None:
        """A wall clock set back by more than the window: keys and memory go together (docs/protocol.md section 5)."""
        wall, latest = self.clock(), self._replays.terms().latest
        if wall >= latest - self.settings.date_window or self.settings.mode != "host":
            return
        _log.warning("the clock was set back by %.0f s: model %s has new request keys", latest - wall, self.model.name)
        self._keys.rotate(now, 0)
        self._keys.forget(float("inf"))
        self._replays.start_over(wall)
        self._rotated, self._cached = now, None


def _head(octets: bytes) -> RequestHead:
    if len(octets) != 7:
        raise KeyUnknown("an encapsulated request's head has 7 bytes")
    ids = (int.from_bytes(octets[at : at + 2], "big") for at in (1, 3, 5))
    return RequestHead(octets[0], *ids)
