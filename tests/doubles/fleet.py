"""A key broker on paper and keepers of a fleet on a clock of the test's own: no socket, no thread, no waiting."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from strongroom.broker.epochs import EPOCH_S, EpochSeed
from strongroom.channel import ohttp
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import BrokerUnreachable, ResourceMissing
from strongroom.keeper.fleet import FleetKeys
from strongroom.keeper.release import Released
from strongroom.keys import ArchiveDigest, ModelKey
from strongroom.launch.config import Channel

ARCHIVE = ArchiveDigest(bytes([3]) * 32)
MODEL_KEY = ModelKey(bytes([4]) * 32)
MIDNIGHT = 20_800 * EPOCH_S
"""Where epoch 20,799 ends and 20,800 begins."""


class Clock:
    """CLOCK_BOOTTIME of a machine, moved by hand."""

    def __init__(self, now: float = 5000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class PaperBroker:
    """Gives real signed seeds, at a time that runs with `clock`; `delay` is how long each question takes."""

    def __init__(self, clock: Clock, begins: float) -> None:
        self.clock, self.offset = clock, begins - clock.now
        self.identity = Ed25519PrivateKey.generate()
        self.down, self.delay, self.life, self.asked = False, 0.2, b"first", []
        self.key = MODEL_KEY
        self.tells_time = True
        self.bend = lambda seed: seed

    @property
    def now(self) -> float:
        return self.clock.now + self.offset

    def _answer(self) -> int:
        """The broker's time in the middle of a question that takes `delay`."""
        if self.down:
            raise BrokerUnreachable("nobody answers")
        self.clock.now += self.delay / 2
        told = int(self.now)
        self.clock.now += self.delay / 2
        return told

    def seed(self, epoch: int) -> EpochSeed:
        self.asked.append(epoch)
        told = self._answer()
        if abs(epoch - told // EPOCH_S) > 1:
            raise ResourceMissing("neither the present epoch nor its neighbour")
        octets = hashlib.sha256(self.life + epoch.to_bytes(8, "big")).digest()
        return self.bend(EpochSeed.make(self.identity, ARCHIVE, epoch, octets, told))

    def release(self) -> Released:
        asked_at, told = self.clock.now, self._answer()
        return Released(ARCHIVE, self.key, asked_at, broker_time=told if self.tells_time else None)


class ByHand(FleetKeys):
    """A keeper's fleet keys, asked for when the test says so and not by a thread."""

    def __init__(self, broker: PaperBroker, *, overlap: int = 7200, window: int = 300, opened: bool = True) -> None:
        settings = Channel(("x-wing", "x25519"), "fleet", 86400, overlap, window)
        super().__init__("toy", ARCHIVE, settings, broker.seed, broker.release, clock=broker.clock)
        self.broker = broker
        if opened:
            self.open()

    def _pursue(self, tenure) -> None:
        pass

    def open(self) -> None:
        released = self.broker.release()
        self.opened(released, self._clock())

    def ask(self) -> None:
        """What the thread does whenever it wakes; what goes wrong is told and not raised, as there."""
        from strongroom.errors import ReleaseError

        if self._tenure is not None:
            try:
                self._ask(self._tenure)
            except ReleaseError as error:
                self._trouble(error)

    def holds(self, ohttp_keys: bytes) -> bool:
        """Whether a request that was sealed to that key list opens here."""
        config, pair = KeyList.parse(ohttp_keys).choose()
        message, _ = ohttp.encapsulate(config, pair, b"secret")
        head, enc, sealed = RequestHead.parse(message)
        return bytes(ohttp.open_request(self.present().decapsulate(head, enc, Form.SINGLE), sealed)) == b"secret"
