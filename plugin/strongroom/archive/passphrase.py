"""A passphrase as a recipient of the model key: Argon2id, then AES-256-GCM (docs/format.md section 10.1, type 3)."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from strongroom.archive.recipients import WRAPPED, exact_body, recipient_id, slot_info, slot_tampered
from strongroom.archive.slots import PASSPHRASE, SLOT_HEAD, Slot
from strongroom.errors import ArchiveMalformed, SealRefused
from strongroom.keys import ArchiveDigest, ModelKey

SALT = 16


@dataclass(frozen=True, slots=True)
class Cost:
    """Argon2id parameters: memory in KiB, iterations, lanes. The defaults are RFC 9106's second choice, times four."""

    memory: int = 256 * 1024
    iterations: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        fits = 1 <= self.lanes <= 16 and 1 <= self.iterations <= 16 and 8 * self.lanes <= self.memory <= 1 << 21
        if not fits:
            raise ArchiveMalformed("a passphrase slot's Argon2id parameters are out of range")


class Passphrase:
    """A passphrase as recipient and as identity."""

    __slots__ = ("_cost", "_octets")
    kind = PASSPHRASE
    slot_size = SLOT_HEAD + SALT + 9 + WRAPPED

    def __init__(self, passphrase: str, cost: Cost | None = None) -> None:
        if not passphrase:
            raise SealRefused("an empty passphrase protects nothing", hint="type one, or give it on standard input")
        try:
            self._octets = unicodedata.normalize("NFC", passphrase).encode("utf-8")
        except UnicodeEncodeError:  # which would carry the passphrase along
            raise SealRefused("the passphrase is no text in UTF-8", hint="give it in UTF-8") from None
        self._cost = cost or Cost()

    def _aead(self, salt: bytes, cost: Cost) -> AESGCM:
        stretch = Argon2id(salt=salt, length=32, iterations=cost.iterations, lanes=cost.lanes, memory_cost=cost.memory)
        return AESGCM(stretch.derive(self._octets))

    def __call__(self, key: ModelKey, digest: ArchiveDigest) -> Slot:
        """Wrap `key`; the salt is fresh, so the cipher's key is used once."""
        salt, cost = secrets.token_bytes(SALT), self._cost
        name = recipient_id(PASSPHRASE, digest, salt)
        sealed = self._aead(salt, cost).encrypt(bytes(12), key.reveal(), slot_info(PASSPHRASE, digest, name))
        numbers = cost.memory.to_bytes(4, "big") + cost.iterations.to_bytes(4, "big") + bytes([cost.lanes])
        return Slot(PASSPHRASE, name, salt + numbers + sealed)

    def unwrap(self, slots: Iterable[Slot], digest: ArchiveDigest) -> ModelKey | None:
        """See `Identity`; None where no passphrase slot opens, since any of them may be somebody else's."""
        for slot in slots:
            if slot.kind != PASSPHRASE:
                continue
            exact_body(slot, SALT + 9 + WRAPPED)
            salt, body = slot.body[:SALT], slot.body[SALT:]
            cost = Cost(int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big"), body[8])
            if slot.recipient != recipient_id(PASSPHRASE, digest, salt):
                raise slot_tampered()
            try:
                info = slot_info(PASSPHRASE, digest, slot.recipient)
                return ModelKey(self._aead(salt, cost).decrypt(bytes(12), body[9:], info))
            except InvalidTag:
                continue
        return None

    def __repr__(self) -> str:
        return "Passphrase(...)"
