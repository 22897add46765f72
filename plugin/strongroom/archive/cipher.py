"""Keys derived from the model key, and AES-256-GCM over chunks and the index (docs/format.md sections 3, 6, 7).

Nonces are deterministic: this module never repeats one for two plaintexts only because `seal` takes a
fresh model key and archive id for every sealing and encrypts each chunk once.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from strongroom.archive.blocks import TAG, Chunk, Suite
from strongroom.errors import ArchiveTampered, WrongKey
from strongroom.keys import ModelKey

PREFIX = b"strongroom archive v1\0"
INDEX_AAD = b"strongroom archive v1 index"

SEAL_AGAIN = "`strongroom verify` tells whether a copy is what was signed; if it is, its author has to seal again"
"""The hint for what stands under the author's signature and is wrong all the same: another copy will not help."""


class KeySchedule:
    """Everything that follows from one model key for one archive."""

    __slots__ = ("_prk", "_suite")

    def __init__(self, key: ModelKey, archive_id: bytes, suite: Suite) -> None:
        self._prk = HKDF.extract(algorithm=SHA512(), salt=archive_id, key_material=key.reveal())
        self._suite = suite

    def derive(self, purpose: str, number: int, length: int) -> bytes:
        """HKDF-Expand with the info of section 3."""
        info = PREFIX + purpose.encode("ascii") + b"\0" + self._suite.to_bytes(2, "big") + number.to_bytes(4, "big")
        return HKDFExpand(algorithm=SHA512(), length=length, info=info).derive(self._prk)

    @property
    def commitment(self) -> bytes:
        """32 octets that only this model key gives."""
        return self.derive("commitment", 0, 32)

    @property
    def slot_key(self) -> bytes:
        """The HMAC key of the slot area."""
        return self.derive("slots", 0, 32)

    def check(self, commitment: bytes) -> None:
        """Raise `WrongKey` where the core commits to another model key."""
        if not hmac.compare_digest(self.commitment, commitment):
            raise WrongKey(
                "this key did not seal this archive",
                hint="the key's archive digest must be the one that `strongroom inspect` prints",
            )

    def seal_index(self, plaintext: bytes) -> bytes:
        """The encrypted index; called once for a model key."""
        material = self.derive("index", 0, 44)
        return AESGCM(material[:32]).encrypt(material[32:], plaintext, INDEX_AAD)

    def open_index(self, sealed: bytes) -> bytes:
        """The index's plaintext; raises `ArchiveTampered`."""
        material = self.derive("index", 0, 44)
        try:
            return AESGCM(material[:32]).decrypt(material[32:], sealed, INDEX_AAD)
        except InvalidTag as error:
            raise ArchiveTampered("the encrypted index does not authenticate", hint=SEAL_AGAIN) from error

    def member(self, number: int) -> MemberCipher:
        """The cipher of one member, by its place in the index."""
        return MemberCipher(number, self.derive("member", number, 44))


class MemberCipher:
    """Seals and opens the chunks of one member; usable from many threads at once."""

    __slots__ = ("_aead", "_base", "_number")

    def __init__(self, number: int, material: bytes) -> None:
        self._number = number
        self._aead = AESGCM(material[:32])
        self._base = int.from_bytes(material[32:], "big")

    def _nonce(self, chunk: Chunk) -> bytes:
        return (self._base ^ chunk.number).to_bytes(12, "big")

    def _aad(self, chunk: Chunk) -> bytes:
        return self._number.to_bytes(4, "big") + chunk.number.to_bytes(8, "big") + bytes([chunk.last])

    def seal_into(self, chunk: Chunk, plaintext: memoryview | bytes | bytearray, into: memoryview) -> None:
        """Encrypt one chunk into a buffer of exactly `chunk.sealed_size` octets. Once per chunk, ever."""
        self._aead.encrypt_into(self._nonce(chunk), plaintext, self._aad(chunk), into)

    def open_into(self, chunk: Chunk, sealed: memoryview, into: memoryview) -> None:
        """Decrypt one chunk into a buffer of exactly `chunk.size` octets.

        Raises `ArchiveTampered`; the buffer then holds unverified octets and must be thrown away.
        """
        try:
            self._aead.decrypt_into(self._nonce(chunk), sealed, self._aad(chunk), into)
        except InvalidTag as error:
            raise ArchiveTampered(
                f"chunk {chunk.number} of member {self._number} does not authenticate",
                hint=SEAL_AGAIN,
            ) from error

    def open(self, chunk: Chunk, sealed: memoryview) -> bytearray:
        """Decrypt one chunk into memory of its own; raises `ArchiveTampered`."""
        plaintext = bytearray(len(sealed) - TAG)
        self.open_into(chunk, sealed, memoryview(plaintext))
        return plaintext
