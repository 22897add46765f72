"""A second writer of docs/format.md, beside `plain_reader`: what it writes, ours must open or refuse.

`Recipe.edits` breaks one thing on purpose: a function for a stage gets that stage's value and gives
another one back. Stages before ``sign`` are what a malicious author can do; stages after it, everybody.
"""

from __future__ import annotations

import hmac
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from archive.plain_reader import (
    MANIFEST,
    PARTS,
    chunks,
    digest_of,
    hkdf,
    hpke_suite,
    identity_keys,
    labelled,
    merkle,
    outer,
    recipient_id,
    sha256,
    slot_info,
)
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id


def u(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


class Author:
    """An author from two fixed seeds."""

    def __init__(self, name: str, kind: int = 1) -> None:
        self.kind = kind
        self.curve = Ed25519PrivateKey.from_private_bytes(sha256(b"ed25519 " + name.encode()))
        self.lattice = MLDSA65PrivateKey.from_seed_bytes(sha256(b"mldsa " + name.encode()))
        self.keys = self.curve.public_key().public_bytes_raw()
        if kind == 2:
            self.keys += self.lattice.public_key().public_bytes_raw()
        self.id = sha256(labelled("strongroom author v1", u(kind, 2), self.keys))

    def sign(self, core: bytes) -> bytes:
        message = labelled("strongroom archive v1 signature", u(self.kind, 2), core)
        return self.curve.sign(message) + (self.lattice.sign(message) if self.kind == 2 else b"")


def key_slot(kind: int, seed: bytes) -> Callable[[bytes, bytes], tuple[int, bytes, bytes]]:
    def wrap(key: bytes, digest: bytes) -> tuple[int, bytes, bytes]:
        private, public = identity_keys(kind, seed)
        name = recipient_id(kind, digest, public)
        target = private.public_key()
        assert isinstance(target, hpke.MLKEM768X25519PublicKey) or kind == 1
        return kind, name, hpke_suite(kind).encrypt(key, target, slot_info(kind, digest, name))

    return wrap


def phrase_slot(phrase: str, salt: bytes, memory: int = 64, passes: int = 1, lanes: int = 1):
    def wrap(key: bytes, digest: bytes) -> tuple[int, bytes, bytes]:
        octets = unicodedata.normalize("NFC", phrase).encode()
        stretched = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(octets)
        name = recipient_id(3, digest, salt)
        sealed = AESGCM(stretched).encrypt(bytes(12), key, slot_info(3, digest, name))
        return 3, name, salt + u(memory, 4) + u(passes, 4) + u(lanes, 1) + sealed

    return wrap


def generation(
    sequence: int, slots: list[tuple[int, bytes, bytes]], mac_key: bytes, digest: bytes, capacity: int
) -> bytes:
    raw = b"".join(u(kind, 2) + u(len(body), 2) + recipient + body for kind, recipient, body in slots)
    message = labelled("strongroom archive v1 slots", digest, u(sequence, 8), raw)
    fixed = b"SRSL" + u(sequence, 8) + u(len(slots), 2) + u(len(raw), 4) + hmac.digest(mac_key, message, "sha256")
    octets = fixed + sha256(fixed + raw) + raw
    assert len(octets) <= capacity
    return octets.ljust(capacity, b"\0")


@dataclass
class Recipe:
    """What to write. `files` are (name, plaintext) in payload order."""

    files: list[tuple[str, bytes]]
    author: Author
    key: bytes
    archive_id: bytes
    suite: int = 1
    n: int = 12
    pages: int = 1
    flags: int = 0
    directory: bool = False
    model: tuple[str, str] = ("tiny", "1.0")
    config: str = "responseTimeout: 120\nstartupTimeout: 120\n"
    extensions: dict[int, bytes] = field(default_factory=dict)
    padding: int | None = None
    slots: list[Callable[[bytes, bytes], tuple[int, bytes, bytes]]] = field(default_factory=list)
    edits: dict[str, Callable[[Any], Any]] = field(default_factory=dict)

    def edit(self, stage: str, value: Any) -> Any:
        return self.edits.pop(stage)(value) if stage in self.edits else value

    def derive(self, purpose: str, i: int, size: int) -> bytes:
        return hkdf(self.key, self.archive_id, self.suite, purpose, i, size)

    def index(self) -> bytes:
        of = digest_of(self.suite)
        entries = [(0, name.encode("utf-8", "surrogatepass"), len(octets), of(octets)) for name, octets in self.files]
        if self.padding is not None:
            entries.append((1, b"", self.padding, bytes(32)))
        entries = self.edit("entries", entries)
        plain = u(len(entries), 4)
        for kind, name, size, digest in entries:
            plain += u(kind, 1) + u(len(name), 2) + name + u(size, 8) + digest
        return self.edit("index", plain + bytes(-len(plain) % 512))

    def payload(self) -> bytes:
        members = [octets for _, octets in self.files] + ([] if self.padding is None else [bytes(self.padding)])
        out = b""
        # Room that no member uses is random in the format; here it is a fixed pattern, which readers accept.
        for i, plain in enumerate(members):
            material = self.derive("member", i, 44)
            base, offset = int.from_bytes(material[32:], "big"), 0
            plan = self.edit(f"plan {i}", [(k, *each) for k, each in enumerate(chunks(self.n, len(out), len(plain)))])
            for k, at, size, last in plan:
                out = out.ljust(at, b"\xa5")
                nonce, aad = u(base ^ k, 12), u(i, 4) + u(k, 8) + u(last, 1)
                out += AESGCM(material[:32]).encrypt(nonce, plain[offset : offset + size], aad)
                offset += size
        return self.edit("payload", out)

    def core(self, clear: list[bytes], payload: bytes, digests: list[bytes]) -> bytes:
        material = self.derive("index", 0, 44)
        index = AESGCM(material[:32]).encrypt(material[32:], self.index(), b"strongroom archive v1 index")
        index = self.edit("sealed index", index)
        part = payload + b"".join(digests)
        named = labelled("strongroom archive v1 clear", PARTS[0].encode(), clear[0], PARTS[1].encode(), clear[1])
        fields = {
            "magic": b"STRONGR1", "suite": u(self.suite, 2), "n": u(self.n, 1), "pages": u(self.pages, 1),
            "flags": u(self.flags, 4), "id": self.archive_id, "P": u(len(payload), 8), "crc": u(zlib.crc32(part), 4),
            "I": u(len(index), 4), "commitment": self.derive("commitment", 0, 32), "payload root": merkle(digests),
            "clear root": sha256(named), "index": index,
        }  # fmt: skip
        fields = self.edit("fields", fields)
        extensions = {0x8001: b"default", 0x8002: b"tiny", 0x8003: u(1, 8), 0x8004: self.author.id} | self.extensions
        listed = self.edit("extensions", sorted(extensions.items(), key=lambda each: each[0] & 0x7FFF))
        return b"".join(fields.values()) + b"".join(u(kind, 2) + u(len(value), 2) + value for kind, value in listed)

    def build(self) -> dict[str, bytes]:
        """``{"": file}``, or the files of the directory form by path."""
        clear = self.edit("clear", [(MANIFEST % self.model).encode(), self.config.encode()])
        payload, block = self.payload(), 2**self.n + 16
        of = digest_of(self.suite)
        digests = [of(payload[at : at + block]) for at in range(0, len(payload), block)]
        core = self.edit("core", self.core(clear, payload, digests))
        signature = self.edit("signature", self.author.sign(core))  # everything after this line needs no author
        core = self.edit("signed core", core)
        header = u(len(core), 4) + core + u(self.author.kind, 2) + self.author.keys + signature
        header = self.edit("header", header)
        digest, capacity = sha256(core), 4096 * self.pages
        slots = self.edit("slots", [wrap(self.key, digest) for wrap in self.slots])
        first = generation(1, slots, self.derive("slots", 0, 32), digest, capacity)
        area = self.edit("area", first + bytes(capacity))
        clear = self.edit("found clear", clear)
        part = self.edit("part", payload + b"".join(digests))
        if self.directory:
            files = dict(zip(PARTS, [*clear, header, area, part], strict=True))
            return self.edit("folder", files)
        numbers = {"pages": self.pages, "crc": int.from_bytes(core[56:60], "big")}
        before, _, middle, _, tail = outer(clear, header, numbers, len(payload) + 32 * len(digests))
        pieces = self.edit("pieces", [before, area, middle, part, tail])
        return {"": self.edit("file", b"".join(pieces))}
