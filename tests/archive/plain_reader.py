"""A second reader of docs/format.md: plain, slow, whole files in memory, and nothing of ours imported.

It was written from the page alone, so that the page, and not our code, is what archives follow. Section
numbers are those of the page. `Refused.word` is the class of section 1.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
import unicodedata
import zlib
from pathlib import Path

import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

PARTS = ["MAR-INF/MANIFEST.json", "model-config.yaml", "SEALED-INF/header", "SEALED-INF/slots", "SEALED-INF/payload"]


class Refused(Exception):
    def __init__(self, word: str, why: str = "") -> None:
        super().__init__(f"{word}: {why}")
        self.word = word


def need(condition: object, word: str, why: str = "") -> None:
    if not condition:
        raise Refused(word, why)


def sha256(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()


def number(octets: bytes) -> int:
    return int.from_bytes(octets, "big")


def labelled(label: str, *parts: bytes) -> bytes:  # section 1
    out = len(label).to_bytes(2, "big") + label.encode()
    for part in parts:
        out += len(part).to_bytes(8, "big") + part
    return out


class Cut:
    """Cuts a byte string into pieces."""

    def __init__(self, octets: bytes) -> None:
        self.octets, self.at = octets, 0

    def __call__(self, size: int) -> bytes:
        piece = self.octets[self.at : self.at + size]
        need(len(piece) == size, "malformed", "too short")
        self.at += size
        return piece

    @property
    def rest(self) -> bytes:
        return self.octets[self.at :]


# -- section 3


def hkdf(key: bytes, archive_id: bytes, suite: int, purpose: str, i: int, length: int) -> bytes:
    prk = hmac.digest(archive_id, key, "sha512")
    info = b"strongroom archive v1\0" + purpose.encode() + b"\0" + suite.to_bytes(2, "big") + i.to_bytes(4, "big")
    return hmac.digest(prk, info + b"\x01", "sha512")[:length]


def digest_of(suite: int):
    return {1: lambda octets: blake3.blake3(octets).digest(), 2: sha256}[suite]


# -- section 5

EXTENSIONS = {
    0x8001: "tenant", 0x8002: "lineage", 0x8003: "version", 0x8004: "author",
    0x0005: "created", 0x8006: "expiry", 0x0007: "broker key", 0x0008: "owner",
}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def read_core(core: bytes) -> dict:
    need(len(core) <= 2**24 + 65536, "malformed", "core length")
    cut = Cut(core)
    magic = cut(8)
    need(magic[:7] == b"STRONGR", "malformed", "magic")
    need(magic == b"STRONGR1", "unsupported", "version")
    c: dict = {"suite": number(cut(2)), "n": number(cut(1)), "pages": number(cut(1)), "flags": number(cut(4))}
    need(c["suite"] in (1, 2), "unsupported", "suite")
    need(c["flags"] in (0, 1), "unsupported", "flags")
    need(12 <= c["n"] <= 26 and 1 <= c["pages"] <= 32, "malformed", "n or pages")
    c["id"], c["P"], c["crc"], c["I"] = cut(32), number(cut(8)), number(cut(4)), number(cut(4))
    need(1 <= c["P"] <= 2**48, "malformed", "P")
    need(528 <= c["I"] <= 2**24 and (c["I"] - 16) % 512 == 0, "malformed", "I")
    c["commitment"], c["payload root"], c["clear root"] = cut(32), cut(32), cut(32)
    c["index"] = cut(c["I"])
    before = -1
    while cut.rest:
        kind = number(cut(2))
        value = cut(number(cut(2)))
        need(kind % 0x8000 > before, "malformed", "order of extensions")
        before = kind % 0x8000
        if kind in EXTENSIONS:
            c[EXTENSIONS[kind]] = value
        else:
            need(kind ^ 0x8000 not in EXTENSIONS, "malformed", "critical bit")
            need(kind < 0x8000, "unsupported", "critical extension")
    for name in ("tenant", "lineage"):
        need(NAME.match(c.get(name, b"").decode("latin-1")), "malformed", name)
    for name in ("version", "created", "expiry"):
        if name in c:
            need(len(c[name]) == 8, "malformed", name)
            c[name] = number(c[name])
    need(c.get("version", 0) >= 1, "malformed", "version")
    need(len(c.get("author", b"")) == 32, "malformed", "author")
    if "owner" in c:
        try:
            owner = c["owner"].decode()
        except UnicodeDecodeError as error:
            raise Refused("malformed", "owner") from error
        need(1 <= len(c["owner"]) <= 256 and not CONTROL.search(owner), "malformed", "owner")
    if "broker key" in c:
        need(1 <= len(c["broker key"]) <= 4096, "malformed", "broker key")
    return c


def read_header(header: bytes) -> dict:
    cut = Cut(header)
    raw = cut(number(cut(4)))
    core = read_core(raw)
    kind = number(cut(2))
    need(kind in (1, 2), "unsupported", "signature kind")
    keys, signature = cut(32 if kind == 1 else 1984), cut(64 if kind == 1 else 3373)
    need(not cut.rest, "malformed", "after the signature")
    author = sha256(labelled("strongroom author v1", kind.to_bytes(2, "big"), keys))
    need(author == core["author"], "tampered", "author id")
    return core | {"raw": raw, "digest": sha256(raw), "kind": kind, "keys": keys, "signature": signature}


def check_signature(h: dict) -> None:
    message = labelled("strongroom archive v1 signature", h["kind"].to_bytes(2, "big"), h["raw"])
    try:
        Ed25519PublicKey.from_public_bytes(h["keys"][:32]).verify(h["signature"][:64], message)
        if h["kind"] == 2:
            MLDSA65PublicKey.from_public_bytes(h["keys"][32:]).verify(h["signature"][64:], message)
    except (InvalidSignature, ValueError) as error:
        raise Refused("tampered", "signature") from error


# -- section 8

TRUTHS = ["asyncCommunication", "continuousBatching", "sequenceBatching", "useJobTicket"]
NUMBERS = [
    "batchSize",
    "clientTimeoutInMills",
    "jobQueueSize",
    "maxBatchDelay",
    "maxNumSequence",
    "maxRetryTimeoutInSec",
    "maxSequenceJobQueueSize",
    "maxWorkers",
    "minWorkers",
    "sequenceMaxIdleMSec",
    "sequenceTimeoutMSec",
    "responseTimeout",
    "startupTimeout",
]
MANIFEST = """{
  "archiverVersion": "1",
  "createdOn": "sealed",
  "model": {
    "configFile": "model-config.yaml",
    "handler": "strongroom_handlers.sealed",
    "modelName": "%s",
    "modelVersion": "%s"
  },
  "runtime": "python"
}
"""


def check_clear(manifest: bytes, config: bytes) -> None:
    try:
        model = json.loads(manifest)["model"]
        name, version = model["modelName"], model["modelVersion"]
        assert NAME.match(name)
        assert re.match(r"[A-Za-z0-9._+-]{1,64}\Z", version)
        assert (MANIFEST % (name, version)).encode() == manifest
        text = config.decode("ascii")
        assert text.endswith("\n")
        lines = text[:-1].split("\n")
        keys = [line.split(": ")[0] for line in lines]
        assert keys == sorted(set(keys))
        assert {"responseTimeout", "startupTimeout"} <= set(keys)
        for line in lines:
            key, value = line.split(": ")
            decimal = re.match(r"(0|[1-9][0-9]*)\Z", value) and int(value) < 2**31
            if key in TRUTHS:
                assert value in ("true", "false")
            elif key in NUMBERS:
                assert decimal
            elif key == "deviceType":
                assert value in ("cpu", "gpu", "neuron")
            else:
                assert key == "deviceIds"
                inside = re.match(r"\[(.+)\]\Z", value)[1].split(", ")
                assert len(inside) <= 64
                assert all(re.match(r"(0|[1-9][0-9]*)\Z", each) and int(each) < 2**31 for each in inside)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise Refused("malformed", "readable members") from error


# -- section 9


def local(name: str, octets: bytes) -> bytes:
    return (
        struct.pack(
            "<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0x21, zlib.crc32(octets), len(octets), len(octets), len(name), 0
        )
        + name.encode()
        + octets
    )


def outer(clear: list[bytes], header: bytes, h: dict, part_size: int) -> tuple[bytes, int, bytes, int, bytes]:
    """Octets before the slots, their offset, octets after them, the payload's offset, the tail."""
    entries = list(zip(PARTS[:3], [*clear, header], strict=True))
    front, offsets = b"", []
    for name, octets in entries:
        offsets.append(len(front))
        front += local(name, octets)
    front += b"SRGP"
    front += bytes(-len(front) % 4096)
    name, big = b"SEALED-INF/payload", 0xFFFFFFFF
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0x21, h["crc"], big, big, len(name), 20)
    middle = bytes(4028) + head + name + struct.pack("<2H2Q", 1, 16, part_size, part_size)
    payload_at = len(front) + 2 * 4096 * h["pages"] + 4096
    central = b""
    for (each, octets), offset in zip(entries, offsets, strict=True):
        central += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 0x0314, 20, 0, 0, 0, 0x21, zlib.crc32(octets), len(octets), len(octets),
            len(each), 0, 0, 0, 0, 0x81A40000, offset,
        ) + each.encode()  # fmt: skip
    central += struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 0x032D, 45, 0, 0, 0, 0x21, h["crc"], big, big, len(name), 28, 0, 0, 0, 0x81A40000, big
    )
    central += name + struct.pack("<2H3Q", 1, 24, part_size, part_size, payload_at - 68)
    start = payload_at + part_size
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x032D, 45, 0, 0, 4, 4, len(central), start)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, start + len(central), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 4, 4, big, big, 0)
    return front, len(front), middle, payload_at, central + end


def first_entries(file: bytes) -> tuple[list[bytes], bytes]:
    at, found = 0, []
    for name, limit in zip(PARTS[:3], (65536, 65536, 2**24 + 65536 + 8192), strict=True):
        head = file[at : at + 30]
        need(len(head) == 30, "truncated")
        magic, size, name_size, extra = head[:4], *struct.unpack("<IHH", head[18:22] + head[26:30])
        at += 30
        need(magic == b"PK\3\4" and file[at : at + name_size] == name.encode() and extra == 0, "malformed", name)
        at += name_size
        need(size <= limit, "malformed", "entry size")
        found.append(file[at : at + size])
        need(len(found[-1]) == size, "truncated")
        at += size
    need(len(file) >= at + 4, "truncated")
    need(file[at : at + 4] == b"SRGP", "malformed", "gap")
    return found[:2], found[2]


# -- section 10


def read_generation(octets: bytes) -> dict | None:
    size = number(octets[14:18])
    slots = octets[82 : 82 + size]
    if octets[:4] != b"SRSL" or len(slots) != size or sha256(octets[:50] + slots) != octets[50:82]:
        return None
    sequence, count = number(octets[4:12]), number(octets[12:14])
    need(sequence >= 1 and count <= 64, "malformed", "generation")
    cut, found = Cut(slots), []
    for _ in range(count):
        kind, length, recipient = number(cut(2)), number(cut(2)), cut(32)
        found.append((kind, recipient, cut(length)))
    need(not cut.rest, "malformed", "after the slots")
    need(len({recipient for _, recipient, _ in found}) == count, "malformed", "recipient twice")
    need(sum(kind == 3 for kind, _, _ in found) <= 4, "malformed", "passphrases")
    return {"sequence": sequence, "slots": found, "raw": slots, "mac": octets[18:50]}


def read_area(area: bytes) -> dict:
    half = len(area) // 2
    both = [each for each in (read_generation(area[:half]), read_generation(area[half:])) if each]
    need(both, "malformed", "no generation")
    need(len(both) == 1 or both[0]["sequence"] != both[1]["sequence"], "malformed", "equal sequences")
    return max(both, key=lambda each: each["sequence"])


def identity_keys(kind: int, seed: bytes):
    if kind == 1:
        key = X25519PrivateKey.from_private_bytes(seed)
        return key, key.public_key().public_bytes_raw()
    wide = hashlib.shake_256(seed).digest(96)
    lattice, curve = MLKEM768PrivateKey.from_seed_bytes(wide[:64]), X25519PrivateKey.from_private_bytes(wide[64:])
    public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
    return hpke.MLKEM768X25519PrivateKey(lattice, curve), public


def hpke_suite(kind: int) -> hpke.Suite:
    kem = hpke.KEM.X25519 if kind == 1 else hpke.KEM.MLKEM768_X25519
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def recipient_id(kind: int, digest: bytes, public: bytes) -> bytes:
    return sha256(labelled("strongroom archive v1 recipient", kind.to_bytes(2, "big"), digest, public))


def slot_info(kind: int, digest: bytes, recipient: bytes) -> bytes:
    return labelled("strongroom archive v1 slot", kind.to_bytes(2, "big"), digest, recipient)


def open_slot(slots: list, digest: bytes, identity: tuple[str, bytes]) -> bytes:
    name, secret = identity
    if name in ("x25519", "xwing"):
        kind = 1 if name == "x25519" else 2
        private, public = identity_keys(kind, secret)
        mine = recipient_id(kind, digest, public)
        for each, recipient, body in slots:
            if each == kind and recipient == mine:
                need(len(body) == (80 if kind == 1 else 1168), "malformed", "slot length")
                try:
                    return hpke_suite(kind).decrypt(body, private, slot_info(kind, digest, mine))
                except (InvalidTag, ValueError) as error:
                    raise Refused("tampered", "slot") from error
    else:
        phrase = unicodedata.normalize("NFC", secret.decode()).encode()
        for each, recipient, body in slots:
            if each != 3:
                continue
            need(len(body) == 73, "malformed", "slot length")
            salt, memory, passes, lanes = body[:16], number(body[16:20]), number(body[20:24]), body[24]
            fits = 1 <= lanes <= 16 and 1 <= passes <= 16 and 8 * lanes <= memory <= 2**21
            need(fits, "malformed", "argon2id parameters")
            need(recipient == recipient_id(3, digest, salt), "tampered", "recipient id")
            key = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(phrase)
            try:
                return AESGCM(key).decrypt(bytes(12), body[25:], slot_info(3, digest, recipient))
            except InvalidTag:
                continue
    raise Refused("no recipient")


# -- sections 6 and 7


def merkle(digests: list[bytes]) -> bytes:
    if len(digests) == 1:
        return sha256(b"\0" + digests[0])
    k = 1
    while k * 2 < len(digests):
        k *= 2
    return sha256(b"\1" + merkle(digests[:k]) + merkle(digests[k:]))


def good_name(name: str) -> bool:
    parts = name.split("/")
    return (
        len(name.encode()) <= 1024
        and unicodedata.normalize("NFC", name) == name
        and not CONTROL.search(name)
        and "\\" not in name
        and ":" not in name
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
        and parts[0].casefold() != "sealed-inf"
    )


def read_index(octets: bytes) -> tuple[list[tuple[str, int, bytes]], int | None]:
    cut = Cut(octets)
    count = number(cut(4))
    need(1 <= count <= 100_000, "malformed", "count")
    files, padding = [], None
    for _ in range(count):
        need(padding is None, "malformed", "padding is not last")
        kind, raw = number(cut(1)), cut(number(cut(2)))
        size, digest = number(cut(8)), cut(32)
        need(size <= 2**44, "malformed", "size")
        if kind == 0:
            try:
                files.append((raw.decode(), size, digest))
            except UnicodeDecodeError as error:
                raise Refused("malformed", "name") from error
        else:
            need(kind == 1 and not raw and digest == bytes(32), "malformed", "entry")
            padding = size
    need(len(cut.rest) < 512 and len(octets) % 512 == 0 and not any(cut.rest), "malformed", "index padding")
    need(files, "malformed", "no file")
    folded = [name.casefold() for name, _, _ in files]
    need(all(good_name(name) for name, _, _ in files), "malformed", "name")
    need(len(set(folded)) == len(folded), "malformed", "name twice")
    need(not any(a.startswith(b + "/") for a in folded for b in folded), "malformed", "file is a folder")
    return files, padding


def chunks(n: int, at: int, size: int):
    """(position in the payload, plaintext size, last) of each chunk of a member whose predecessor ends at `at`."""
    block = 2**n + 16
    room = block - at % block
    if room < 17:
        at += room
        room = block
    piece = min(size, room - 16)
    while True:
        size -= piece
        yield at, piece, size == 0
        at += piece + 16
        if size == 0:
            return
        piece = min(size, 2**n)


class Plain:
    """One archive, whole. `authors` are (kind, public keys); `steps` run in the order of section 11."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            wanted = {*PARTS, "MAR-INF", "SEALED-INF"}
            found = {each.relative_to(path).as_posix() for each in path.rglob("*")}
            need(not wanted - found, "malformed", "a part is missing")
            need(found == wanted, "tampered", "a file that does not belong there")
            need(all((path / each).is_file() and not (path / each).is_symlink() for each in PARTS), "malformed")
            manifest, config, self.header, area, part = ((path / each).read_bytes() for each in PARTS)
            self.clear, self.file = [manifest, config], None
        else:
            self.file = path.read_bytes()
            self.clear, self.header = first_entries(self.file)
        self.h = h = read_header(self.header)
        check_clear(*self.clear)
        block = 2 ** h["n"] + 16
        self.blocks = -(-h["P"] // block)
        size = h["P"] + 32 * self.blocks
        if self.file is not None:
            before, slots_at, middle, payload_at, tail = outer(self.clear, self.header, h, size)
            self.slots_end = slots_at + 2 * 4096 * h["pages"]
            whole = payload_at + size + len(tail)
            need(len(self.file) >= whole, "truncated")
            need(len(self.file) == whole, "tampered", "after the end")
            area, part = self.file[slots_at : self.slots_end], self.file[payload_at : payload_at + size]
            self.outer = before + area + middle + part + tail
        else:
            for octets, wanted_size in ((area, 2 * 4096 * h["pages"]), (part, size)):
                need(len(octets) >= wanted_size, "truncated")
                need(len(octets) == wanted_size, "tampered", "after the end")
        self.part = part
        self.area = read_area(area)

    def verify(self, authors: list[tuple[int, bytes]], now: int, demand: int) -> None:
        h = self.h
        check_signature(h)
        need((h["kind"], h["keys"]) in authors, "author unknown")
        need(h["kind"] >= demand, "downgraded")
        need("expiry" not in h or now < h["expiry"], "expired")
        named = [PARTS[0].encode(), self.clear[0], PARTS[1].encode(), self.clear[1]]
        need(sha256(labelled("strongroom archive v1 clear", *named)) == h["clear root"], "tampered", "clear root")
        need(self.file is None or self.file == self.outer, "tampered", "outer octets")

    def check_list(self) -> None:
        length = self.h["P"]
        listed = self.part[length:]
        self.digests = [listed[at : at + 32] for at in range(0, len(listed), 32)]
        need(merkle(self.digests) == self.h["payload root"], "tampered", "payload root")

    def check_block(self, i: int) -> None:
        block = 2 ** self.h["n"] + 16
        octets = self.part[i * block : min(self.h["P"], i * block + block)]
        need(digest_of(self.h["suite"])(octets) == self.digests[i], "tampered", f"block {i}")

    def check_payload(self) -> None:
        for i in range(self.blocks):
            self.check_block(i)
        need(zlib.crc32(self.part) == self.h["crc"], "tampered", "crc")

    def unlock(self, key: bytes | None, identity: tuple[str, bytes] | None) -> None:
        h = self.h
        found = key
        if found is None:
            assert identity is not None
            found = open_slot(self.area["slots"], h["digest"], identity)
        derive = lambda purpose, i, size: hkdf(found, h["id"], h["suite"], purpose, i, size)  # noqa: E731
        self.derive = derive
        fits = hmac.compare_digest(derive("commitment", 0, 32), h["commitment"])
        need(fits, "wrong key" if key is not None else "tampered", "commitment")
        material = derive("index", 0, 44)
        try:
            index = AESGCM(material[:32]).decrypt(material[32:], h["index"], b"strongroom archive v1 index")
        except InvalidTag as error:
            raise Refused("tampered", "index") from error
        self.files, self.padding = read_index(index)
        at, self.places = 0, []
        sizes = [size for _, size, _ in self.files] + ([] if self.padding is None else [self.padding])
        for size in sizes:
            self.places.append(list(chunks(h["n"], at, size)))
            last_at, last_size, _ = self.places[-1][-1]
            at = last_at + last_size + 16
        need(at == h["P"], "malformed", "payload length")
        if key is None:
            message = labelled(
                "strongroom archive v1 slots", h["digest"], self.area["sequence"].to_bytes(8, "big"), self.area["raw"]
            )
            need(
                hmac.compare_digest(hmac.digest(derive("slots", 0, 32), message, "sha256"), self.area["mac"]),
                "tampered",
            )

    def read(self, released: list[bytes]) -> dict[str, bytes]:
        """All members; each chunk is appended to `released` after it was authenticated. The padding is opened too."""
        found = {}
        for i, (name, _, digest) in enumerate(self.files):
            plaintext = b""
            for piece in self.pieces(i, name):
                released.append(piece)
                plaintext += piece
            need(digest_of(self.h["suite"])(plaintext) == digest, "tampered", "member digest")
            found[name] = plaintext
        if self.padding is not None:
            need(not any(map(any, self.pieces(len(self.files), "padding"))), "malformed", "padding")
        return found

    def pieces(self, i: int, name: str):
        """The plaintext of member i, chunk by chunk."""
        material = self.derive("member", i, 44)
        base = number(material[32:])
        for k, (at, size, last) in enumerate(self.places[i]):
            aad = i.to_bytes(4, "big") + k.to_bytes(8, "big") + bytes([last])
            self.check_block(at // (2 ** self.h["n"] + 16))
            sealed = self.part[at : at + size + 16]
            try:
                yield AESGCM(material[:32]).decrypt((base ^ k).to_bytes(12, "big"), sealed, aad)
            except InvalidTag as error:
                raise Refused("tampered", f"{name}, chunk {k}") from error
