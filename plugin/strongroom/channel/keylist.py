"""Request keys on offer: the list that a client reads.

`KeyConfig` and `KeyList` are RFC 9458 section 3, exact to the byte, because the evidence binds the very
bytes of the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.channel.hpke import AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, HKDF_SHA256
from strongroom.channel.kem import KEMS, P256, X25519, XWING
from strongroom.encoding import Reader
from strongroom.errors import KeyUnknown, MalformedInput

Pair = tuple[int, int]
"""(kdf_id, aead_id)."""

_STRONG_FIRST = (AES_256_GCM, AES_128_GCM, CHACHA20_POLY1305)
_SIMPLE_FIRST = (AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305)
OFFERED: dict[int, tuple[Pair, ...]] = {
    XWING: tuple((HKDF_SHA256, aead) for aead in _STRONG_FIRST),
    X25519: tuple((HKDF_SHA256, aead) for aead in _SIMPLE_FIRST),
    P256: tuple((HKDF_SHA256, aead) for aead in _SIMPLE_FIRST),
}
"""The pairs each KEM is offered with, in this order.

Many clients take the first pair, and one panics on a response nonce of 32 bytes: so AES-128-GCM
is first where clients that others wrote come (docs/protocol.md section 3).
"""


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """One public key on offer: key_id (8 bits), kem_id (16), the key (Npk bytes), its pairs."""

    key_id: int
    kem_id: int
    public_key: bytes
    pairs: tuple[Pair, ...]

    @classmethod
    def parse(cls, octets: bytes) -> KeyConfig:
        """From one configuration without its outer length; `KeyUnknown` for an unknown KEM, else `MalformedInput`."""
        reader = Reader(octets, where="key configuration")
        key_id, kem_id = reader.uint(1), reader.uint(2)
        if kem_id not in KEMS:
            raise KeyUnknown(f"KEM {kem_id:#06x} is not known")
        public_key = reader.take(KEMS[kem_id].public_size)
        size = reader.uint(2)
        if size < 4 or size % 4 or size != reader.left:
            raise MalformedInput(f"key configuration: a pair list of {size} bytes, {reader.left} are there")
        pairs = tuple((reader.uint(2), reader.uint(2)) for _ in range(size // 4))
        reader.done()
        return cls(key_id, kem_id, public_key, pairs)

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        pairs = b"".join(kdf.to_bytes(2, "big") + aead.to_bytes(2, "big") for kdf, aead in self.pairs)
        front = bytes([self.key_id]) + self.kem_id.to_bytes(2, "big") + self.public_key
        return front + len(pairs).to_bytes(2, "big") + pairs


@dataclass(frozen=True, slots=True)
class KeyList:
    """`application/ohttp-keys`: the configurations whose KEM is known, in the server's order."""

    configs: tuple[KeyConfig, ...]

    @classmethod
    def parse(cls, octets: bytes) -> KeyList:
        """Skip unknown KEMs by their length; any wrong length discards the whole list with `MalformedInput`.

        Taking part of a broken list would let a server tell clients apart (RFC 9458 section 3.2).
        """
        reader = Reader(octets, where="key list")
        configs = []
        while reader.left:
            size = reader.uint(2)
            if size < 3:
                raise MalformedInput(f"key list: a configuration of {size} bytes")
            octets = reader.take(size)
            if int.from_bytes(octets[1:3], "big") in KEMS:
                configs.append(KeyConfig.parse(octets))
        return cls(tuple(configs))

    def serialise(self) -> bytes:
        """The list's bytes; the inverse of `parse` where every KEM is known."""
        parts = (config.serialise() for config in self.configs)
        return b"".join(len(part).to_bytes(2, "big") + part for part in parts)

    def choose(self, kems: Sequence[int] = (XWING,)) -> tuple[KeyConfig, Pair]:
        """The configuration of the first of `kems` on offer, and the first of its pairs that we compute.

        Raises `KeyUnknown` if there is none; a client that wants X-Wing gets X-Wing or nothing.
        """
        for kem_id in kems:
            for config in self.configs:
                known = [pair for pair in config.pairs if pair in OFFERED.get(kem_id, ())]
                if config.kem_id == kem_id and known:
                    return config, known[0]
        wanted = ", ".join(KEMS[kem_id].name for kem_id in kems)
        offered = ", ".join(KEMS[config.kem_id].name for config in self.configs) or "nothing known"
        raise KeyUnknown(
            f"the server offers {offered}, this client accepts {wanted}",
            hint="accept another KEM in the client's configuration, if that is what you want",
        )
