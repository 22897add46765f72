"""Key encapsulation mechanisms: X-Wing, DHKEM over X25519 and P-256, and ML-KEM-768.

All arithmetic is `cryptography`'s. What stands here is the plumbing of RFC 9180 section 4.1
and of the X-Wing combiner (draft-connolly-cfrg-xwing-kem section 5.4), which `cryptography`
has only behind its single-shot `hpke.Suite` (docs/adr/0020).

A private key object keeps the parsed key and its public bytes, because parsing an X-Wing seed
costs a key generation. Lengths are checked here, at the door; whatever does not decapsulate
raises `EncapsulationInvalid`.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.errors import ConfigurationInvalid, EncapsulationInvalid, MalformedInput

XWING = 0x647A
X25519 = 0x0020
P256 = 0x0010
MLKEM768 = 0x0041

_XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")  # the six characters \.//^\ which stand last in the hash
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class KemPublicKey(ABC):
    """A recipient's public key; `octets` is its wire form (Npk bytes)."""

    __slots__ = ("octets",)

    def __init__(self, octets: bytes) -> None:
        self.octets = octets

    @abstractmethod
    def encapsulate(self, *, ephemeral: bytes | None = None) -> tuple[bytes, bytes]:
        """A fresh (shared secret of 32 bytes, enc of Nenc bytes).

        `ephemeral` fixes the ephemeral private key of a DHKEM; only test vectors pass it.
        """


class KemPrivateKey(ABC):
    """A recipient's private key with its parsed form and its public bytes; never printed or pickled."""

    __slots__ = ("public_octets",)
    public_octets: bytes

    @abstractmethod
    def __init__(self, octets: bytes) -> None: ...

    @abstractmethod
    def decapsulate(self, enc: bytes) -> bytes:
        """The shared secret (32 bytes) of `enc`; raises `EncapsulationInvalid`."""

    @abstractmethod
    def reveal(self) -> bytes:
        """The raw private key (Nsk bytes). Each call is a place to look at in review."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


@dataclass(frozen=True, slots=True)
class Kem:
    """One row of the HPKE KEM registry: sizes in bytes, and the types that do the work."""

    id: int
    name: str
    enc_size: int
    public_size: int
    private_size: int
    _public: type[KemPublicKey]
    _private: type[KemPrivateKey]

    def public_key(self, octets: bytes) -> KemPublicKey:
        """Parse a public key of `public_size` bytes; raises `MalformedInput`."""
        if len(octets) != self.public_size:
            raise MalformedInput(f"{self.name} public key: {self.public_size} bytes expected, found {len(octets)}")
        try:
            return self._public(octets)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise MalformedInput(f"{self.name} public key: not a valid key") from error

    def private_key(self, octets: bytes) -> KemPrivateKey:
        """Parse a private key of `private_size` bytes; raises `MalformedInput`."""
        if len(octets) != self.private_size:
            raise MalformedInput(f"{self.name} private key: {self.private_size} bytes expected, found {len(octets)}")
        try:
            return self._private(octets)
        except UnsupportedAlgorithm as error:
            raise ConfigurationInvalid(
                f"this build of `cryptography` has no {self.name}",
                hint="install cryptography 50 or later from a published wheel, or configure the x25519 key only",
            ) from error
        except ValueError as error:
            raise MalformedInput(f"{self.name} private key: not a valid key") from error

    def generate(self) -> KemPrivateKey:
        """A fresh private key from the operating system's generator."""
        if self.id == P256:
            number = 1 + secrets.randbelow(_P256_ORDER - 1)
            return self.private_key(number.to_bytes(32, "big"))
        return self.private_key(secrets.token_bytes(self.private_size))

    def derive(self, ikm: bytes) -> KemPrivateKey:
        """DeriveKeyPair (RFC 9180 section 7.1.3; draft-ietf-hpke-pq for the lattice KEMs).

        `ikm` has at least `private_size` bytes of entropy; raises `MalformedInput` if it is shorter.
        """
        if len(ikm) < self.private_size:
            raise MalformedInput(f"{self.name}: key material of {len(ikm)} bytes, at least {self.private_size} needed")
        suite_id = b"KEM" + self.id.to_bytes(2, "big")
        if self.id in (XWING, MLKEM768):
            label = len(b"DeriveKeyPair").to_bytes(2, "big") + b"DeriveKeyPair"
            shaken = ikm + b"HPKE-v1" + suite_id + label + self.private_size.to_bytes(2, "big")
            return self.private_key(hashlib.shake_256(shaken).digest(self.private_size))
        prk = labelled_extract("sha256", suite_id, b"", b"dkp_prk", ikm)
        if self.id == X25519:
            return self.private_key(labelled_expand("sha256", suite_id, prk, b"sk", b"", 32))
        for counter in range(256):
            candidate = labelled_expand("sha256", suite_id, prk, b"candidate", bytes([counter]), 32)
            if 0 < int.from_bytes(candidate, "big") < _P256_ORDER:
                return self.private_key(candidate)
        raise MalformedInput("P-256: no valid key in 256 candidates")  # probability 2^-8192


# -- HKDF (RFC 5869) and its labelled forms (RFC 9180 section 4) ------------------


def extract(name: str, salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract with the hash `name`; an empty salt stands for Nh zero bytes, as HMAC pads it anyway."""
    return hmac.digest(salt, ikm, name)


def expand(name: str, prk: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand with the hash `name` to `size` bytes, at most 255 hash lengths."""
    block = hmac.digest(prk, info + b"\x01", name)
    out = block
    counter = 2
    while len(out) < size:
        if counter > 255:
            raise ValueError("HKDF-Expand gives at most 255 blocks")
        block = hmac.digest(prk, block + info + bytes([counter]), name)
        out += block
        counter += 1
    return out[:size]


def labelled_extract(name: str, suite_id: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """LabeledExtract of RFC 9180 section 4."""
    return extract(name, salt, b"HPKE-v1" + suite_id + label + ikm)


def labelled_expand(name: str, suite_id: bytes, prk: bytes, label: bytes, info: bytes, size: int) -> bytes:
    """LabeledExpand of RFC 9180 section 4."""
    return expand(name, prk, size.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info, size)


def _dhkem_secret(kem_id: int, dh: bytes, kem_context: bytes) -> bytes:
    """ExtractAndExpand of RFC 9180 section 4.1; the hash is the KEM's own, SHA-256 for both curves here."""
    suite_id = b"KEM" + kem_id.to_bytes(2, "big")
    prk = labelled_extract("sha256", suite_id, b"", b"eae_prk", dh)
    return labelled_expand("sha256", suite_id, prk, b"shared_secret", kem_context, 32)


def _check_enc(enc: bytes, size: int) -> None:
    if len(enc) != size:
        raise EncapsulationInvalid(f"an encapsulated key of {len(enc)} bytes, {size} expected")


# -- X25519 ------------------------------------------------------------------------


class X25519PublicKey(KemPublicKey):
    """DHKEM(X25519, HKDF-SHA256): 32 bytes."""

    __slots__ = ("_key",)

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        self._key = x25519.X25519PublicKey.from_public_bytes(octets)

    def encapsulate(self, *, ephemeral: bytes | None = None) -> tuple[bytes, bytes]:
        """See `KemPublicKey.encapsulate`."""
        generate = x25519.X25519PrivateKey.generate
        key = generate() if ephemeral is None else x25519.X25519PrivateKey.from_private_bytes(ephemeral)
        enc = key.public_key().public_bytes_raw()
        try:
            dh = key.exchange(self._key)
        except ValueError as error:  # the all-zero result of RFC 9180 section 7.1.4
            raise EncapsulationInvalid("the server's X25519 key has a small order") from error
        return _dhkem_secret(X25519, dh, enc + self.octets), enc


class X25519PrivateKey(KemPrivateKey):
    """DHKEM(X25519, HKDF-SHA256): 32 bytes."""

    __slots__ = ("_key",)

    def __init__(self, octets: bytes) -> None:
        self._key = x25519.X25519PrivateKey.from_private_bytes(octets)
        self.public_octets = self._key.public_key().public_bytes_raw()

    def decapsulate(self, enc: bytes) -> bytes:
        """See `KemPrivateKey.decapsulate`."""
        _check_enc(enc, 32)
        try:
            dh = self._key.exchange(x25519.X25519PublicKey.from_public_bytes(enc))
        except ValueError as error:
            raise EncapsulationInvalid("the encapsulated X25519 key has a small order") from error
        return _dhkem_secret(X25519, dh, enc + self.public_octets)

    def reveal(self) -> bytes:
        """See `KemPrivateKey.reveal`."""
        return self._key.private_bytes_raw()


# -- P-256 -------------------------------------------------------------------------


def _p256_point(octets: bytes) -> ec.EllipticCurvePublicKey:
    """An uncompressed point; other forms are refused before a library sees them, since several accept them."""
    if len(octets) != 65 or octets[0] != 4:
        raise ValueError("not an uncompressed P-256 point")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), octets)


class P256PublicKey(KemPublicKey):
    """DHKEM(P-256, HKDF-SHA256): an uncompressed point of 65 bytes."""

    __slots__ = ("_key",)

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        self._key = _p256_point(octets)

    def encapsulate(self, *, ephemeral: bytes | None = None) -> tuple[bytes, bytes]:
        """See `KemPublicKey.encapsulate`."""
        if ephemeral is None:
            key = ec.generate_private_key(ec.SECP256R1())
        else:
            key = ec.derive_private_key(int.from_bytes(ephemeral, "big"), ec.SECP256R1())
        enc = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return _dhkem_secret(P256, key.exchange(ec.ECDH(), self._key), enc + self.octets), enc


class P256PrivateKey(KemPrivateKey):
    """DHKEM(P-256, HKDF-SHA256): a scalar of 32 bytes, big-endian."""

    __slots__ = ("_key",)

    def __init__(self, octets: bytes) -> None:
        self._key = ec.derive_private_key(int.from_bytes(octets, "big"), ec.SECP256R1())
        self.public_octets = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def decapsulate(self, enc: bytes) -> bytes:
        """See `KemPrivateKey.decapsulate`."""
        _check_enc(enc, 65)
        try:
            dh = self._key.exchange(ec.ECDH(), _p256_point(enc))
        except ValueError as error:
            raise EncapsulationInvalid("the encapsulated P-256 key is not a point on the curve") from error
        return _dhkem_secret(P256, dh, enc + self.public_octets)

    def reveal(self) -> bytes:
        """See `KemPrivateKey.reveal`."""
        return self._key.private_numbers().private_value.to_bytes(32, "big")


# -- ML-KEM-768 and X-Wing ---------------------------------------------------------


class Mlkem768PublicKey(KemPublicKey):
    """ML-KEM-768 alone: 1184 bytes. Not offered by any key set here; its vector checks the rest."""

    __slots__ = ("_key",)

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        self._key = mlkem.MLKEM768PublicKey.from_public_bytes(octets)

    def encapsulate(self, *, ephemeral: bytes | None = None) -> tuple[bytes, bytes]:
        """See `KemPublicKey.encapsulate`; the library takes no ephemeral."""
        return self._key.encapsulate()


class Mlkem768PrivateKey(KemPrivateKey):
    """ML-KEM-768 alone: the seed d || z of 64 bytes."""

    __slots__ = ("_key",)

    def __init__(self, octets: bytes) -> None:
        self._key = mlkem.MLKEM768PrivateKey.from_seed_bytes(octets)
        self.public_octets = self._key.public_key().public_bytes_raw()

    def decapsulate(self, enc: bytes) -> bytes:
        """See `KemPrivateKey.decapsulate`."""
        _check_enc(enc, 1088)
        return self._key.decapsulate(enc)

    def reveal(self) -> bytes:
        """See `KemPrivateKey.reveal`."""
        return self._key.private_bytes_raw()


def _combine(ss_mlkem: bytes, ss_x25519: bytes, ct_x25519: bytes, pk_x25519: bytes) -> bytes:
    """The X-Wing combiner. The ML-KEM ciphertext is deliberately not hashed (draft section 5.3)."""
    return hashlib.sha3_256(ss_mlkem + ss_x25519 + ct_x25519 + pk_x25519 + _XWING_LABEL).digest()


class XWingPublicKey(KemPublicKey):
    """X-Wing: ML-KEM-768 public key (1184) || X25519 public key (32)."""

    __slots__ = ("_mlkem", "_x25519")

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        self._mlkem = mlkem.MLKEM768PublicKey.from_public_bytes(octets[:1184])
        self._x25519 = x25519.X25519PublicKey.from_public_bytes(octets[1184:])

    def encapsulate(self, *, ephemeral: bytes | None = None) -> tuple[bytes, bytes]:
        """See `KemPublicKey.encapsulate`; `ephemeral` would fix the X25519 half only, so it is refused."""
        if ephemeral is not None:
            raise ValueError("X-Wing encapsulation cannot be derandomised here")
        ss_mlkem, ct_mlkem = self._mlkem.encapsulate()
        key = x25519.X25519PrivateKey.generate()
        ct_x25519 = key.public_key().public_bytes_raw()
        try:
            ss_x25519 = key.exchange(self._x25519)
        except ValueError as error:
            raise EncapsulationInvalid("the X25519 half of the server's X-Wing key has a small order") from error
        return _combine(ss_mlkem, ss_x25519, ct_x25519, self.octets[1184:]), ct_mlkem + ct_x25519


class XWingPrivateKey(KemPrivateKey):
    """X-Wing: a seed of 32 bytes; SHAKE256 makes of it the ML-KEM seed (64) and the X25519 key (32)."""

    __slots__ = ("_mlkem", "_pk_x25519", "_seed", "_x25519")

    def __init__(self, octets: bytes) -> None:
        expanded = hashlib.shake_256(octets).digest(96)
        self._seed = octets
        self._mlkem = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self._x25519 = x25519.X25519PrivateKey.from_private_bytes(expanded[64:])
        self._pk_x25519 = self._x25519.public_key().public_bytes_raw()
        self.public_octets = self._mlkem.public_key().public_bytes_raw() + self._pk_x25519

    def decapsulate(self, enc: bytes) -> bytes:
        """See `KemPrivateKey.decapsulate`. A wrong ML-KEM half gives a random secret (implicit rejection)."""
        _check_enc(enc, 1120)
        ct_x25519 = enc[1088:]
        ss_mlkem = self._mlkem.decapsulate(enc[:1088])
        try:
            ss_x25519 = self._x25519.exchange(x25519.X25519PublicKey.from_public_bytes(ct_x25519))
        except ValueError as error:
            raise EncapsulationInvalid("the X25519 half of the encapsulated key has a small order") from error
        return _combine(ss_mlkem, ss_x25519, ct_x25519, self._pk_x25519)

    def reveal(self) -> bytes:
        """See `KemPrivateKey.reveal`."""
        return self._seed


KEMS: dict[int, Kem] = {
    kem.id: kem
    for kem in (
        Kem(XWING, "X-Wing", 1120, 1216, 32, XWingPublicKey, XWingPrivateKey),
        Kem(X25519, "X25519", 32, 32, 32, X25519PublicKey, X25519PrivateKey),
        Kem(P256, "P-256", 65, 65, 32, P256PublicKey, P256PrivateKey),
        Kem(MLKEM768, "ML-KEM-768", 1088, 1184, 64, Mlkem768PublicKey, Mlkem768PrivateKey),
    )
}
"""Every KEM this package can compute, by its registered id. Which are offered is a key set's choice."""


@functools.cache
def kem_named(name: str) -> Kem:
    """The KEM a configuration calls ``x-wing``, ``x25519`` or ``p-256``; raises `ConfigurationInvalid`."""
    for kem_id in (XWING, X25519, P256):
        if KEMS[kem_id].name.lower() == name.lower():
            return KEMS[kem_id]
    raise ConfigurationInvalid(f"no KEM is called {name!r}", hint="write x-wing, x25519 or p-256")
