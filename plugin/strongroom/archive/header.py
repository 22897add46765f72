"""The signed core and the header around it (docs/format.md section 5)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag

from strongroom.archive.blocks import DIGEST, Grid, Suite
from strongroom.archive.manifest import NAME
from strongroom.archive.signature import AuthorPublic, SignatureKind
from strongroom.encoding import Reader
from strongroom.errors import ArchiveMalformed, ArchiveTampered, ArchiveUnsupported, MalformedInput
from strongroom.keys import ArchiveDigest, AuthorId

MAGIC = b"STRONGR1"
FIXED = 160
PAYLOAD_LIMIT = 1 << 48
INDEX_LIMIT = 1 << 24
CORE_LIMIT = INDEX_LIMIT + 65_536
HEADER_LIMIT = CORE_LIMIT + 8192
CHUNK_LOG2 = range(12, 27)
SLOT_PAGES = range(1, 33)
OWNER = re.compile(r"[^\x00-\x1f\x7f-\x9f]+\Z")
BROKER_KEY_LIMIT = 4096


class Flag(IntFlag):
    """The flags of the core; a set bit that is not named here is refused."""

    LEASE_REQUIRED = 1


class Extension:
    """The extension types of section 5.1, critical bit included."""

    TENANT = 0x8001
    LINEAGE = 0x8002
    VERSION = 0x8003
    AUTHOR = 0x8004
    CREATED = 0x0005
    EXPIRY = 0x8006
    BROKER_KEY = 0x0007
    OWNER = 0x0008
    CRITICAL = 0x8000


_KNOWN = {value for name, value in vars(Extension).items() if name.isupper() and name != "CRITICAL"}


def _number(value: int) -> bytes:
    if not 0 <= value < 1 << 64:
        raise ArchiveMalformed(
            f"signed core: {value} is no number of 64 bits", hint="look at the version and the dates"
        )
    return value.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class SignedCore:
    """Everything the author's signature covers; the rest of an archive hangs from these values.

    `created` and `expiry` are seconds since 1970 UTC. `broker_key` is a DER SubjectPublicKeyInfo.
    `other` holds extensions of unknown, not critical types, so that they survive re-encoding.
    """

    suite: Suite
    chunk_log2: int
    slot_pages: int
    flags: Flag
    archive_id: bytes
    payload_length: int
    payload_crc: int
    commitment: bytes
    payload_root: bytes
    clear_root: bytes
    index: bytes = field(repr=False)
    tenant: str
    lineage: str
    version: int
    author: AuthorId
    created: int | None = None
    expiry: int | None = None
    broker_key: bytes | None = None
    owner: str | None = None
    other: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> ArchiveDigest:
        """SHA-256 of the core: the archive's one name."""
        return ArchiveDigest(hashlib.sha256(self.serialise()).digest())

    @property
    def resource(self) -> tuple[str, str, str]:
        """Where a key broker keeps the model key: tenant, lineage, ``version-digest``."""
        return self.tenant, self.lineage, f"{self.version}-{self.digest}"

    @property
    def lease_required(self) -> bool:
        """Whether the key may be used only while a broker's lease on it runs."""
        return Flag.LEASE_REQUIRED in self.flags

    @property
    def grid(self) -> Grid:
        """The blocks of the payload."""
        return Grid(self.chunk_log2)

    @property
    def digests_length(self) -> int:
        """Octets of the list of block digests."""
        return DIGEST * self.grid.blocks(self.payload_length)

    @property
    def generation(self) -> int:
        """Octets of one slot generation."""
        return 4096 * self.slot_pages

    def serialise(self) -> bytes:
        """The octets that are signed; the exact inverse of `parse`."""
        fixed = b"".join(
            (
                MAGIC,
                self.suite.to_bytes(2, "big"),
                bytes([self.chunk_log2, self.slot_pages]),
                self.flags.to_bytes(4, "big"),
                self.archive_id,
                self.payload_length.to_bytes(8, "big"),
                self.payload_crc.to_bytes(4, "big"),
                len(self.index).to_bytes(4, "big"),
                self.commitment,
                self.payload_root,
                self.clear_root,
            )
        )
        extensions: dict[int, bytes] = {
            Extension.TENANT: self.tenant.encode("ascii"),
            Extension.LINEAGE: self.lineage.encode("ascii"),
            Extension.VERSION: _number(self.version),
            Extension.AUTHOR: bytes(self.author),
            **self.other,
        }
        if self.created is not None:
            extensions[Extension.CREATED] = _number(self.created)
        if self.expiry is not None:
            extensions[Extension.EXPIRY] = _number(self.expiry)
        if self.broker_key is not None:
            extensions[Extension.BROKER_KEY] = self.broker_key
        if self.owner is not None:
            extensions[Extension.OWNER] = self.owner.encode("utf-8")
        encoded = b"".join(
            kind.to_bytes(2, "big") + len(extensions[kind]).to_bytes(2, "big") + extensions[kind]
            for kind in sorted(extensions, key=lambda kind: kind & 0x7FFF)
        )
        return fixed + self.index + encoded

    @classmethod
    def parse(cls, octets: bytes) -> SignedCore:
        """Strictly; raises `ArchiveMalformed` or `ArchiveUnsupported`."""
        if len(octets) > CORE_LIMIT:
            raise ArchiveMalformed(f"signed core: {len(octets)} bytes, the limit is {CORE_LIMIT}")
        try:
            core = cls._read(Reader(octets, where="signed core"))
        except MalformedInput as error:
            raise ArchiveMalformed(str(error)) from error
        if core.serialise() != octets:
            raise ArchiveMalformed("signed core: not in its canonical form")
        return core

    @classmethod
    def _read(cls, read: Reader) -> SignedCore:
        magic = read.take(8)
        if magic != MAGIC:
            if magic[:7] == MAGIC[:7]:
                raise ArchiveUnsupported(
                    "this archive has another format version", hint="use a release of strongroom that knows it"
                )
            raise ArchiveMalformed("signed core: it does not begin with the magic")
        suite_number, chunk_log2, slot_pages, flags = read.uint(2), read.uint(1), read.uint(1), read.uint(4)
        if suite_number not in set(Suite):
            raise ArchiveUnsupported(f"suite {suite_number} is not known here", hint="use a newer strongroom")
        if flags & ~sum(Flag):
            raise ArchiveUnsupported(f"flags {flags:#010x} are not all known here", hint="use a newer strongroom")
        if chunk_log2 not in CHUNK_LOG2 or slot_pages not in SLOT_PAGES:
            raise ArchiveMalformed("signed core: chunk size or slot pages out of range")
        archive_id = read.take(32)
        payload_length, payload_crc, index_length = read.uint(8), read.uint(4), read.uint(4)
        if not 1 <= payload_length <= PAYLOAD_LIMIT:
            raise ArchiveMalformed("signed core: payload length out of range")
        if index_length > INDEX_LIMIT or index_length < 528 or (index_length - 16) % 512:
            raise ArchiveMalformed("signed core: index length out of range")
        commitment, payload_root, clear_root = read.take(32), read.take(32), read.take(32)
        index = read.take(index_length)
        values = _extensions(read)
        tenant, lineage = (_name(values, each) for each in (Extension.TENANT, Extension.LINEAGE))
        version = _uint(values, Extension.VERSION)
        if version is None or version < 1:
            raise ArchiveMalformed("signed core: the version is missing or 0")
        owner = values.pop(Extension.OWNER, None)
        broker_key = values.pop(Extension.BROKER_KEY, None)
        if broker_key is not None and not 1 <= len(broker_key) <= BROKER_KEY_LIMIT:
            raise ArchiveMalformed("signed core: the broker key's length is out of range")
        return cls(
            suite=Suite(suite_number),
            chunk_log2=chunk_log2,
            slot_pages=slot_pages,
            flags=Flag(flags),
            archive_id=archive_id,
            payload_length=payload_length,
            payload_crc=payload_crc,
            commitment=commitment,
            payload_root=payload_root,
            clear_root=clear_root,
            index=index,
            tenant=tenant,
            lineage=lineage,
            version=version,
            author=AuthorId(values.pop(Extension.AUTHOR, b"")),
            created=_uint(values, Extension.CREATED),
            expiry=_uint(values, Extension.EXPIRY),
            broker_key=broker_key,
            owner=None if owner is None else check_owner(owner),
            other=values,
        )


def check_name(name: str, what: str) -> str:
    """A tenant or lineage; raises `ArchiveMalformed` unless it is a *name* of section 5.1."""
    if not NAME.match(name):
        raise ArchiveMalformed(f"{what} {name[:80]!r}: letters, digits and ._- only, at most 64, the first no sign")
    return name


def check_owner(octets: bytes) -> str:
    """An owner text; raises `ArchiveMalformed`."""
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArchiveMalformed("signed core: the owner is not UTF-8") from error
    if not 1 <= len(octets) <= 256 or not OWNER.match(text):
        raise ArchiveMalformed("signed core: the owner is empty, too long, or has control characters")
    return text


def _extensions(read: Reader) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    before = -1
    while read.left:
        kind, value = read.uint(2), read.take(read.uint(2))
        if kind & 0x7FFF <= before:
            raise ArchiveMalformed("signed core: extensions are not in ascending order")
        before = kind & 0x7FFF
        if kind not in _KNOWN:
            if kind ^ Extension.CRITICAL in _KNOWN:
                raise ArchiveMalformed(f"signed core: extension {before} has the wrong critical bit")
            if kind & Extension.CRITICAL:
                raise ArchiveUnsupported(
                    f"the archive has a critical extension {before} that is not known here",
                    hint="use a newer strongroom",
                )
        values[kind] = value
    return values


def _name(values: dict[int, bytes], kind: int) -> str:
    return check_name(values.pop(kind, b"").decode("latin-1"), "signed core: tenant or lineage")


def _uint(values: dict[int, bytes], kind: int) -> int | None:
    octets = values.pop(kind, None)
    if octets is not None and len(octets) != 8:
        raise ArchiveMalformed("signed core: a number does not have 8 bytes")
    return None if octets is None else int.from_bytes(octets, "big")


@dataclass(frozen=True, slots=True)
class Header:
    """The part ``SEALED-INF/header``: the core, who signed it, and the signature (section 5.2)."""

    core: SignedCore
    author: AuthorPublic
    signature: bytes = field(repr=False)

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        core = self.core.serialise()
        kind = self.author.kind.to_bytes(2, "big")
        return len(core).to_bytes(4, "big") + core + kind + self.author.keys + self.signature

    @classmethod
    def parse(cls, octets: bytes) -> Header:
        """Strictly, without checking the signature.

        Raises `ArchiveMalformed`, `ArchiveUnsupported`, and `ArchiveTampered` where the keys beside
        the signature are not those that the core names.
        """
        try:
            read = Reader(octets, where="header")
            core = SignedCore.parse(read.take(read.uint(4)))
            number = read.uint(2)
            if number not in set(SignatureKind):
                raise ArchiveUnsupported(f"signature kind {number} is not known here", hint="use a newer strongroom")
            kind = SignatureKind(number)
            author = AuthorPublic(kind, read.take(kind.public_size))
            signature = read.take(kind.signature_size)
            read.done()
        except MalformedInput as error:
            raise ArchiveMalformed(str(error)) from error
        if author.id != core.author:
            raise ArchiveTampered(
                "the public keys in the header are not those of the author it names",
                hint="get the archive again from its author",
            )
        return cls(core, author, signature)

    def verify(self) -> None:
        """Check the signature under the header's own keys; trust is the caller's question."""
        self.author.verify(self.core.serialise(), self.signature)
