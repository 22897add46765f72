"""The private request keys that a key holder serves.

`KeySet` holds the private keys of one process: the present generation, and older ones for their overlap. It
hands out one request's HPKE context at a time and never a private key.

No clock: whoever rotates says what time it is (seconds on one monotonic clock of the caller's).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strongroom.channel.fleet import epoch_keys
from strongroom.channel.hpke import RecipientContext
from strongroom.channel.kem import KEMS, X25519, XWING, KemPrivateKey
from strongroom.channel.keylist import OFFERED, KeyConfig, KeyList
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import ConfigurationInvalid, KeyUnknown


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Held:
    """One private key, its public configuration, and the generation it belongs to."""

    config: KeyConfig
    private_key: KemPrivateKey
    generation: int


class KeySet:
    """The private keys of one key holder; thread-safe for readers, rotated by one writer.

    A generation has one key per KEM. Its key ids follow on those of the generation before it, modulo
    256, so that a wrong host mostly says "unknown key"; the first is random, or given by the epoch.
    """

    def __init__(self, kems: Sequence[int] = (XWING, X25519), *, first_key_id: int | None = None) -> None:
        """Fresh keys from the operating system's generator; raises `ConfigurationInvalid`."""
        self._kems = _checked(kems)
        self._next_id = secrets.randbelow(256) if first_key_id is None else first_key_id % 256
        self._generation = 0
        self._held: tuple[_Held, ...] = ()
        self._retiring: dict[int, float] = {}
        self._present: tuple[_Held, ...] = ()
        self._install([KEMS[kem_id].generate() for kem_id in self._kems])

    @classmethod
    def of_epochs(
        cls, seeds: Mapping[int, bytes], offered: int, secret: bytes, kems: Sequence[int] = (XWING, X25519)
    ) -> KeySet:
        """The set of mode ``fleet``: opens with the keys of every epoch in `seeds`, offers those of one of them.

        Each seed (32 bytes) comes signed from the key broker, `secret` from the model key; every replica
        computes the same (docs/protocol.md section 7.2). Such a set is not rotated: another one replaces it.
        """
        keyset = cls.__new__(cls)
        keyset._kems = _checked(kems)
        keyset._generation, keyset._next_id, keyset._retiring = offered, 0, {}
        of = {
            epoch: _generation(epoch, epoch * len(kems), kems, epoch_keys(epoch, seeds[epoch], secret, kems))
            for epoch in sorted(seeds, reverse=True)
        }
        if offered not in of:
            raise ConfigurationInvalid(f"epoch {offered} cannot be offered without its seed")
        keyset._present = of[offered]
        keyset._held = tuple(held for generation in of.values() for held in generation)
        return keyset

    def _install(self, keys: Sequence[KemPrivateKey]) -> None:
        self._generation += 1
        self._present = _generation(self._generation, self._next_id, self._kems, keys)
        self._next_id = (self._next_id + len(keys)) % 256
        # A wrapped-around id names the newer key: the older of the two is past any honest overlap.
        self._held = self._present + self._held

    @property
    def generation(self) -> int:
        """The number of the present generation; in mode ``fleet`` this is the epoch."""
        return self._generation

    @property
    def generations(self) -> frozenset[int]:
        """Every generation whose keys are still held."""
        return frozenset(held.generation for held in self._held)

    @property
    def keys(self) -> KeyList:
        """What is on offer: the present generation."""
        return KeyList(tuple(held.config for held in self._present))

    @property
    def ohttp_keys(self) -> bytes:
        """The exact `application/ohttp-keys` bytes that evidence binds."""
        return self.keys.serialise()

    def rotate(self, now: float, overlap: float) -> None:
        """Offer fresh keys; the present ones open for `overlap` seconds more, then `forget` drops them."""
        keys = [KEMS[kem_id].generate() for kem_id in self._kems]
        self._retiring[self._generation] = now + overlap
        self._install(keys)

    def forget(self, now: float) -> frozenset[int]:
        """Drop every generation whose overlap is over; gives their numbers, for the replay memory.

        This deletion is the only forward secrecy there is (RFC 9458 section 6.6).
        """
        over = frozenset([generation for generation, until in self._retiring.items() if until <= now])
        if not over:
            return over
        self._held = tuple(held for held in self._held if held.generation not in over)
        for generation in over:
            del self._retiring[generation]
        return over

    def _find(self, head: RequestHead) -> _Held:
        for held in self._held:
            config = held.config
            if (config.key_id, config.kem_id) == (head.key_id, head.kem_id):
                if (head.kdf_id, head.aead_id) not in config.pairs:
                    raise KeyUnknown(f"key {head.key_id} is not offered with this KDF and AEAD")
                return held
        raise KeyUnknown(f"no key {head.key_id} with KEM {head.kem_id:#06x} is held")

    def generation_of(self, head: RequestHead) -> int:
        """The generation of the key that `head` names; raises `KeyUnknown`."""
        return self._find(head).generation

    def decapsulate(self, head: RequestHead, enc: bytes, form: Form) -> RecipientContext:
        """The HPKE context of one request; raises `KeyUnknown` or `EncapsulationInvalid`. Never tries two keys."""
        held = self._find(head)
        return RecipientContext.setup(head.suite, held.private_key, enc, head.info(form))


def _generation(number: int, first_id: int, kems: Sequence[int], keys: Sequence[KemPrivateKey]) -> tuple[_Held, ...]:
    return tuple(
        _Held(KeyConfig((first_id + place) % 256, kem_id, key.public_octets, OFFERED[kem_id]), key, number)
        for place, (kem_id, key) in enumerate(zip(kems, keys, strict=True))
    )


def _checked(kems: Sequence[int]) -> tuple[int, ...]:
    if not kems or len(set(kems)) != len(kems) or any(kem_id not in OFFERED for kem_id in kems):
        raise ConfigurationInvalid(
            "the request keys must name each of x-wing, x25519 and p-256 at most once, and one of them at least"
        )
    return tuple(kems)
