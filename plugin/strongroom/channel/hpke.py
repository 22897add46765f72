"""HPKE base mode (RFC 9180): the key schedule, and contexts with many messages and an exporter.

`cryptography.hazmat.primitives.hpke.Suite` is single-shot; Oblivious HTTP exports a secret from
every request's context, and its chunked form sends many messages through one (docs/adr/0020).
The AEADs are `cryptography`'s, the KEMs stand in `kem`.

A context is one direction and one owner. `RecipientContext.serialise` exists because the process
that holds the private keys decapsulates and another one decrypts: it can be taken only before the
first message, so that no nonce is ever used by two owners.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from strongroom.channel.kem import KEMS, KemPrivateKey, KemPublicKey, labelled_expand, labelled_extract
from strongroom.encoding import Reader
from strongroom.errors import EncapsulationInvalid, KeyUnknown, MalformedInput

HKDF_SHA256, HKDF_SHA384, HKDF_SHA512 = 0x0001, 0x0002, 0x0003
AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305 = 0x0001, 0x0002, 0x0003

HASHES: dict[int, tuple[str, int]] = {
    HKDF_SHA256: ("sha256", 32),
    HKDF_SHA384: ("sha384", 48),
    HKDF_SHA512: ("sha512", 64),
}
"""The two-stage KDFs: hash name and Nh. OHTTP needs Extract and Expand, so no one-stage KDF is here."""

AEADS: dict[int, tuple[type[AESGCM] | type[ChaCha20Poly1305], int]] = {
    AES_128_GCM: (AESGCM, 16),
    AES_256_GCM: (AESGCM, 32),
    CHACHA20_POLY1305: (ChaCha20Poly1305, 32),
}
"""The AEADs: type and Nk. Nn is 12 and Nt 16 for each."""

NONCE_SIZE = 12
TAG_SIZE = 16


@dataclass(frozen=True, slots=True)
class Suite:
    """A KEM, a KDF and an AEAD by their registered ids (16 bits each)."""

    kem_id: int
    kdf_id: int
    aead_id: int

    def __post_init__(self) -> None:
        """Refuse what this package cannot compute; raises `KeyUnknown`."""
        if self.kem_id not in KEMS or self.kdf_id not in HASHES or self.aead_id not in AEADS:
            raise KeyUnknown(f"HPKE suite {self.kem_id:#06x}, {self.kdf_id:#06x}, {self.aead_id:#06x} is not known")

    @property
    def octets(self) -> bytes:
        """The three ids, 6 bytes."""
        return b"".join(each.to_bytes(2, "big") for each in (self.kem_id, self.kdf_id, self.aead_id))

    @property
    def suite_id(self) -> bytes:
        """``suite_id`` of the key schedule, 10 bytes; the one inside a KEM is another."""
        return b"HPKE" + self.octets

    @property
    def hash_name(self) -> str:
        """The KDF's hash, as `hmac.digest` calls it."""
        return HASHES[self.kdf_id][0]

    @property
    def hash_size(self) -> int:
        """Nh."""
        return HASHES[self.kdf_id][1]

    @property
    def key_size(self) -> int:
        """Nk."""
        return AEADS[self.aead_id][1]

    def aead(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        """The AEAD under `key` (Nk bytes)."""
        return AEADS[self.aead_id][0](key)

    def schedule(self, shared_secret: bytes, info: bytes) -> _Secrets:
        """KeySchedule of RFC 9180 section 5.1 in base mode, without a PSK."""
        name, suite_id = self.hash_name, self.suite_id
        info_hash = labelled_extract(name, suite_id, b"", b"info_hash", info)
        context = b"\x00" + _psk_id_hash(name, suite_id) + info_hash
        secret = labelled_extract(name, suite_id, shared_secret, b"secret", b"")
        return _Secrets(
            key=labelled_expand(name, suite_id, secret, b"key", context, self.key_size),
            base_nonce=labelled_expand(name, suite_id, secret, b"base_nonce", context, NONCE_SIZE),
            exporter_secret=labelled_expand(name, suite_id, secret, b"exp", context, self.hash_size),
        )


@functools.lru_cache(maxsize=16)
def _psk_id_hash(name: str, suite_id: bytes) -> bytes:
    return labelled_extract(name, suite_id, b"", b"psk_id_hash", b"")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Secrets:
    """What a key schedule gives: AEAD key (Nk), base nonce (12), exporter secret (Nh)."""

    key: bytes
    base_nonce: bytes
    exporter_secret: bytes


class _Context:
    """What a sender's and a recipient's context have in common: a nonce sequence and an exporter."""

    __slots__ = ("_aead", "_base_nonce", "_secrets", "_seq", "suite")

    def __init__(self, suite: Suite, secrets: _Secrets) -> None:
        self.suite = suite
        self._secrets = secrets
        self._base_nonce = int.from_bytes(secrets.base_nonce, "big")
        self._aead = suite.aead(secrets.key)
        self._seq = 0

    def _nonce(self) -> bytes:
        return (self._base_nonce ^ self._seq).to_bytes(NONCE_SIZE, "big")

    def export(self, label: bytes, size: int) -> bytes:
        """Export (RFC 9180 section 5.3): `size` bytes under `label`, the same on both sides."""
        suite = self.suite
        return labelled_expand(suite.hash_name, suite.suite_id, self._secrets.exporter_secret, b"sec", label, size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an HPKE context has one owner and is not pickled")


class SenderContext(_Context):
    """The client's side of one request."""

    __slots__ = ()

    @classmethod
    def setup(
        cls, suite: Suite, public_key: KemPublicKey, info: bytes, *, ephemeral: bytes | None = None
    ) -> tuple[bytes, Self]:
        """SetupBaseS: (enc of Nenc bytes, context). `ephemeral` is for test vectors only."""
        shared_secret, enc = public_key.encapsulate(ephemeral=ephemeral)
        return enc, cls(suite, suite.schedule(shared_secret, info))

    def seal(self, aad: bytes, plaintext: bytes | memoryview) -> bytes:
        """The next message: ciphertext and its 16-byte tag."""
        sealed = self._aead.encrypt(self._nonce(), plaintext, aad)
        self._seq += 1
        return sealed

    def seal_into(self, aad: bytes, plaintext: bytes | memoryview, into: memoryview) -> None:
        """As `seal`, written to `into`, which has exactly `len(plaintext) + 16` bytes: saves a copy."""
        self._aead.encrypt_into(self._nonce(), plaintext, aad, into)
        self._seq += 1


class RecipientContext(_Context):
    """The server's side of one request."""

    __slots__ = ()

    @classmethod
    def setup(cls, suite: Suite, private_key: KemPrivateKey, enc: bytes, info: bytes) -> Self:
        """SetupBaseR; raises `EncapsulationInvalid` if `enc` cannot be decapsulated."""
        return cls(suite, suite.schedule(private_key.decapsulate(enc), info))

    def open(self, aad: bytes, ciphertext: bytes | bytearray | memoryview) -> bytes:
        """The next message's plaintext; raises `EncapsulationInvalid`, and then the sequence does not move."""
        try:
            opened = self._aead.decrypt(self._nonce(), ciphertext, aad)
        except (InvalidTag, ValueError) as error:  # ValueError: shorter than a tag
            raise EncapsulationInvalid("an encapsulated message does not open") from error
        self._seq += 1
        return opened

    def serialise(self) -> bytes:
        """The context for its one next owner: suite (6), key (Nk), base nonce (12), exporter secret (Nh).

        Raises `ValueError` once a message was opened: a context moves before its first use or never.
        """
        if self._seq:
            raise ValueError("this context has opened messages and cannot change its owner")
        secrets = self._secrets
        return self.suite.octets + secrets.key + secrets.base_nonce + secrets.exporter_secret

    @classmethod
    def parse(cls, octets: bytes) -> Self:
        """The exact inverse of `serialise`; raises `MalformedInput`."""
        reader = Reader(octets, where="recipient context")
        try:
            suite = Suite(reader.uint(2), reader.uint(2), reader.uint(2))
        except KeyUnknown as error:
            raise MalformedInput(f"recipient context: {error}") from error
        secrets = _Secrets(
            key=reader.take(suite.key_size),
            base_nonce=reader.take(NONCE_SIZE),
            exporter_secret=reader.take(suite.hash_size),
        )
        reader.done()
        return cls(suite, secrets)
