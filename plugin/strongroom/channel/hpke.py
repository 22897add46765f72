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
import struct
from dataclasses import dataclass, field
from typing import NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from strongroom.channel.kem import KEMS, KemPrivateKey, KemPublicKey, labelled_expand, labelled_extract
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
_IDS = struct.Struct(">HHH")


@dataclass(frozen=True, slots=True)
class Suite:
    """A KEM, a KDF and an AEAD by their registered ids (16 bits each)."""

    kem_id: int
    kdf_id: int
    aead_id: int
    octets: bytes = field(init=False, repr=False, compare=False)
    suite_id: bytes = field(init=False, repr=False, compare=False)
    hash_name: str = field(init=False, repr=False, compare=False)
    hash_size: int = field(init=False, repr=False, compare=False)
    key_size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Look up what the ids stand for; raises `KeyUnknown` for what this package cannot compute.

        `octets` are the three ids (6 bytes); `suite_id` is the key schedule's (10 bytes, the one inside a
        KEM is another); `hash_name` is the KDF's hash as `hmac` calls it, `hash_size` Nh, `key_size` Nk.
        """
        if self.kem_id not in KEMS or self.kdf_id not in HASHES or self.aead_id not in AEADS:
            raise KeyUnknown(f"HPKE suite {self.kem_id:#06x}, {self.kdf_id:#06x}, {self.aead_id:#06x} is not known")
        octets = b"".join(each.to_bytes(2, "big") for each in (self.kem_id, self.kdf_id, self.aead_id))
        name, size = HASHES[self.kdf_id]
        found = {
            "octets": octets,
            "suite_id": b"HPKE" + octets,
            "hash_name": name,
            "hash_size": size,
            "key_size": AEADS[self.aead_id][1],
        }
        for attribute, value in found.items():
            object.__setattr__(self, attribute, value)

    def aead(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        """The AEAD under `key` (Nk bytes)."""
        return AEADS[self.aead_id][0](key)

    def schedule(self, shared_secret: bytes, info: bytes) -> _Secrets:
        """KeySchedule of RFC 9180 section 5.1 in base mode, without a PSK."""
        name, suite_id = self.hash_name, self.suite_id
        context = _schedule_context(name, suite_id, info)
        secret = labelled_extract(name, suite_id, shared_secret, b"secret", b"")
        return _Secrets(
            key=labelled_expand(name, suite_id, secret, b"key", context, self.key_size),
            base_nonce=labelled_expand(name, suite_id, secret, b"base_nonce", context, NONCE_SIZE),
            exporter_secret=labelled_expand(name, suite_id, secret, b"exp", context, self.hash_size),
        )


@functools.lru_cache(maxsize=64)
def suite_of(kem_id: int, kdf_id: int, aead_id: int) -> Suite:
    """The suite of these ids, made once; raises `KeyUnknown`."""
    return Suite(kem_id, kdf_id, aead_id)


@functools.lru_cache(maxsize=256)
def _schedule_context(name: str, suite_id: bytes, info: bytes) -> bytes:
    """Made once for many requests: `info` names a key that is on offer, and nothing of a request."""
    psk_id_hash = labelled_extract(name, suite_id, b"", b"psk_id_hash", b"")
    return b"\x00" + psk_id_hash + labelled_extract(name, suite_id, b"", b"info_hash", info)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Secrets:
    """What a key schedule gives: AEAD key (Nk), base nonce (12), exporter secret (Nh)."""

    key: bytes
    base_nonce: bytes
    exporter_secret: bytes


class _Context:
    """What a sender's and a recipient's context have in common: a nonce sequence and an exporter."""

    __slots__ = ("_base_nonce", "_cipher", "_secrets", "_seq", "suite")

    def __init__(self, suite: Suite, secrets: _Secrets) -> None:
        self.suite = suite
        self._secrets = secrets
        self._base_nonce = int.from_bytes(secrets.base_nonce, "big")
        self._cipher: AESGCM | ChaCha20Poly1305 | None = None
        self._seq = 0

    @property
    def _aead(self) -> AESGCM | ChaCha20Poly1305:
        """Made at the first message: whoever only hands a context over does without."""
        if self._cipher is None:
            self._cipher = self.suite.aead(self._secrets.key)
        return self._cipher

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
        try:
            suite = suite_of(*_IDS.unpack_from(octets))
        except (struct.error, KeyUnknown) as error:
            raise MalformedInput("recipient context: it does not begin with a known suite") from error
        key = 6 + suite.key_size
        nonce = key + NONCE_SIZE
        if len(octets) != nonce + suite.hash_size:
            raise MalformedInput(f"recipient context: {len(octets)} bytes, {nonce + suite.hash_size} expected")
        return cls(suite, _Secrets(octets[6:key], octets[key:nonce], octets[nonce:]))
