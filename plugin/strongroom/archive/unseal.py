"""Open a sealed archive, one state after the other: found, verified, unlocked.

    with SealedArchive.open(path) as archive:
        opened = archive.verified(authors, now=now).unlock(key)
        opened.unseal({opened["model.pt"]: buffer})

Each state is a type of its own, so nothing is decrypted that was not verified. Where the plaintext goes is
the caller's choice (a memory file's mapping, as a rule); on any error whatever was written there must be
thrown away unseen. Keys come from the caller as well; nothing here asks anyone for one.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from strongroom.archive.blocks import DIGEST, Chunk, hasher, merkle_root
from strongroom.archive.checksum import crc32_join
from strongroom.archive.cipher import SEAL_AGAIN, KeySchedule, MemberCipher
from strongroom.archive.crew import Crew
from strongroom.archive.header import Header, SignedCore
from strongroom.archive.index import Index, Member
from strongroom.archive.manifest import CONFIG, MANIFEST, ClearMembers
from strongroom.archive.member import MemberFile
from strongroom.archive.recipients import Identity, find_key, slot_tampered
from strongroom.archive.signature import AuthorPublic, SignatureKind, author_among, demand_kind
from strongroom.archive.slots import Generation, SlotArea
from strongroom.archive.storage import Storage, open_storage
from strongroom.errors import (
    ArchiveError,
    ArchiveExpired,
    ArchiveMalformed,
    ArchiveTampered,
    AuthorUnknown,
    WrongKey,
)
from strongroom.keys import ArchiveDigest, ModelKey

GET_AGAIN = "is it a sealed archive, and whole? get it again from its author, and let `strongroom verify` look at it"
GET_SLOTS_AGAIN = "get the archive again, or ask another recipient to run `strongroom rewrap`: slots are not signed"


class SealedArchive:
    """An archive as it was found: parsed, its lengths checked, **nothing verified**."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        try:
            with _hinting(GET_AGAIN):
                self.header = Header.parse(storage.header)
                self.clear = ClearMembers.parse(storage.clear[MANIFEST], storage.clear[CONFIG])
                storage.check_lengths(self.header)
                self.area = SlotArea.parse(storage.slots(self.header.core))
        except BaseException:
            storage.close()
            raise

    @classmethod
    def open(cls, path: Path | str) -> SealedArchive:
        """Read the parts around the payload of the archive at `path`, of either form.

        Raises `ArchiveMalformed`, `ArchiveUnsupported`, `ArchiveTruncated`, `ArchiveTampered`.
        """
        with _hinting(GET_AGAIN):
            storage = open_storage(Path(path))
        return cls(storage)

    def __enter__(self) -> SealedArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the states made from it can no longer read."""
        self._storage.close()

    @property
    def core(self) -> SignedCore:
        """The core, not verified."""
        return self.header.core

    @property
    def form(self) -> str:
        """``file`` or ``directory``."""
        return self._storage.form

    @property
    def path(self) -> Path:
        """Where it was opened."""
        return self._storage.path

    @property
    def slots_place(self) -> tuple[Path, int]:
        """The file that holds the slot area, and where in it; for `rewrap`."""
        return self._storage.slots_place

    def verified(
        self,
        authors: Iterable[AuthorPublic],
        *,
        now: datetime,
        demand: SignatureKind | str | None = None,
    ) -> VerifiedArchive:
        """Check signature, author, kind, expiry and every octet outside the payload (section 11, steps 2 and 3).

        Raises `ArchiveTampered`, `AuthorUnknown`, `SignatureDowngraded`, `ArchiveExpired`.
        """
        header = self.header
        header.verify()
        if author_among(authors, header.core.author) is None:
            raise AuthorUnknown(
                f"{self.path} is signed by author {header.core.author}, whom nobody here trusts",
                hint="if you trust this author, get their public key file from them and name it as an author",
            )
        demand_kind(header.author.kind, SignatureKind.named(demand) if isinstance(demand, str) else demand)
        _check_expiry(self.path, header.core, now.timestamp())
        if self.clear.root != header.core.clear_root:
            raise ArchiveTampered(
                f"{self.path}: its readable manifest or configuration is not the one that was signed",
                hint="get the archive again from its author",
            )
        self._storage.check_outer(header)
        return VerifiedArchive(self, self._storage)


class VerifiedArchive:
    """An archive whose author's signature holds over everything but the payload, which its digests cover."""

    def __init__(self, archive: SealedArchive, storage: Storage) -> None:
        self._storage = storage
        self.core = archive.core
        self.author = archive.header.author
        self.clear = archive.clear
        self.slots: Generation = archive.area.current
        self._header = archive.header

    @property
    def digest(self) -> ArchiveDigest:
        """The archive's name."""
        return self.core.digest

    @property
    def path(self) -> Path:
        """Where it was opened."""
        return self._storage.path

    @property
    def form(self) -> str:
        """``file`` or ``directory``."""
        return self._storage.form

    def close(self) -> None:
        """Close the file; what was opened from it can no longer read."""
        self._storage.close()

    @property
    def model_name(self) -> str:
        """The model's name, as the server knows it."""
        return self.clear.name

    def front(self) -> bytes:
        """The front (section 9.2), from verified values: a file of its own that a model server registers."""
        return self._storage.layout(self._header).front

    def clear_members(self) -> dict[str, bytes]:
        """The readable members by path, from verified values: what an unpacked model folder needs."""
        return self.clear.files

    def header_member(self) -> bytes:
        """The octets of ``SEALED-INF/header``, by which a worker finds its archive's digest."""
        return self._header.serialise()

    def block_digests(self) -> list[bytes]:
        """The signed digest of each payload block; raises `ArchiveTampered`."""
        core = self.core
        listed = self._storage.payload.read(core.digests_length, self._storage.payload_at + core.payload_length)
        digests = [listed[at : at + DIGEST] for at in range(0, len(listed), DIGEST)]
        if merkle_root(digests) != core.payload_root:
            raise ArchiveTampered(
                f"{self.path}: the list of block digests is not the one that was signed",
                hint="is it the payload of another archive? get header and payload again, together, from their author",
            )
        return digests

    def check_payload(self, *, threads: int | None = None, progress: Callable[[int, int], None] | None = None) -> None:
        """Check every octet of the payload against the signed root, without any key.

        Raises `ArchiveTampered` naming the first bad block found. `progress` gets (blocks done, all).
        """
        digests, digest = self.block_digests(), hasher(self.core.suite)
        sums: list[tuple[int, int]] = [(0, 0)] * len(digests)

        def look(number: int, octets: memoryview) -> None:
            if (found := digest(octets).digest()) != digests[number]:
                raise block_tampered(self.path, number, found, digests)
            sums[number] = zlib.crc32(octets), len(octets)

        Crew(self._storage, self.core, threads).each(range(len(digests)), look, progress)
        crc = 0
        for each, size in sums:
            crc = crc32_join(crc, each, size)
        listed = b"".join(digests)
        if crc32_join(crc, zlib.crc32(listed), len(listed)) != self.core.payload_crc:
            raise ArchiveTampered(f"{self.path}: the signed zip checksum is wrong", hint="ask the author to seal again")

    def check_expiry(self, now: float) -> None:
        """Raise `ArchiveExpired` where `now`, in seconds since 1970, is at or behind the signed expiry."""
        _check_expiry(self.path, self.core, now)

    def check_key(self, key: ModelKey) -> None:
        """Raise `WrongKey` where the author committed to another key."""
        KeySchedule(key, self.core.archive_id, self.core.suite).check(self.core.commitment)

    def unlock(self, key: ModelKey) -> OpenedArchive:
        """Check the key's commitment and decrypt the index.

        Raises `WrongKey`, `ArchiveTampered`, `ArchiveMalformed`.
        """
        schedule = KeySchedule(key, self.core.archive_id, self.core.suite)
        schedule.check(self.core.commitment)
        with _hinting(SEAL_AGAIN):
            index = Index.parse(schedule.open_index(self.core.index), self.core.grid)
            if index.length != self.core.payload_length:
                raise ArchiveMalformed(f"{self.path}: the index and the payload disagree about their length")
        return OpenedArchive(self, self._storage, schedule, index, self.block_digests())

    def unlock_with(self, identities: Iterable[Identity]) -> OpenedArchive:
        """Find the model key in a slot, check that a holder of the key wrote the slots, and unlock.

        Raises `NoRecipient`, `ArchiveTampered`, and what `unlock` raises.
        """
        try:
            with _hinting(GET_SLOTS_AGAIN):
                key = find_key(identities, self.slots.slots, self.digest)
            opened = self.unlock(key)
        except WrongKey as error:
            # Anybody can wrap a wrong key to a public one; that is the slot's fault, not the identity's.
            raise slot_tampered() from error
        opened.check_slots()
        return opened


def _check_expiry(path: Path, core: SignedCore, now: float) -> None:
    if core.expiry is not None and now >= core.expiry:
        raise ArchiveExpired(
            f"{path} expired {int(now) - core.expiry} seconds ago", hint="ask its author for a newer one"
        )


class OpenedArchive:
    """An archive that can be read."""

    def __init__(
        self,
        verified: VerifiedArchive,
        storage: Storage,
        schedule: KeySchedule,
        index: Index,
        digests: list[bytes],
    ) -> None:
        self.verified = verified
        self.core = verified.core
        self.members = index.members
        """The sealed files in payload order."""
        self._padding = index.padding_member(self.core.grid)
        self._storage, self._schedule, self._digests = storage, schedule, digests
        self._digest = hasher(self.core.suite)
        self._by_name = {member.name: member for member in index.members}

    @property
    def slot_key(self) -> bytes:
        """What authenticates the slot area; for `rewrap`."""
        return self._schedule.slot_key

    def check_slots(self) -> None:
        """Raise `ArchiveTampered` where somebody without the model key changed the recipients (section 10)."""
        self.verified.slots.check(self.slot_key, self.verified.digest)

    def __getitem__(self, name: str) -> Member:
        """The member of that name; raises `ArchiveError`."""
        try:
            return self._by_name[name]
        except KeyError as error:
            raise ArchiveError(f"{self.verified.path} has no member {name!r}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def unseal(
        self,
        targets: Mapping[Member, memoryview],
        *,
        threads: int | None = None,
        before: Callable[[Member, int, int], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Decrypt members, each into its own writable buffer of exactly its size, on all cores.

        Each block is read once into a private buffer, its digest checked there, and every chunk wanted
        decrypted from there. Raises `ArchiveTampered` or `ArchiveTruncated`; then **no** buffer may be
        used, whichever member the error names. `before` gets (member, offset, size) of the octets that
        this very thread is about to write; `progress` gets (blocks done, all).
        """
        grid = self.core.grid
        wanted: dict[int, list[tuple[Member, MemberCipher, Chunk, memoryview]]] = {}
        for member, into in targets.items():
            if len(into) != member.size:
                raise ArchiveError(f"{member.name} has {member.size} bytes, its buffer {len(into)}")
            cipher = self._schedule.member(member.number)
            for chunk in grid.chunks(member.start, member.size):
                target = into[chunk.offset : chunk.offset + chunk.size]
                wanted.setdefault(chunk.at // grid.block, []).append((member, cipher, chunk, target))

        def look(number: int, octets: memoryview) -> None:
            self._check_block(number, octets)
            for member, cipher, chunk, target in wanted[number]:
                if before is not None:
                    before(member, chunk.offset, chunk.size)
                inside = chunk.at % grid.block
                cipher.open_into(chunk, octets[inside : inside + chunk.sealed_size], target)

        Crew(self._storage, self.core, threads).each(sorted(wanted), look, progress)

    def _check_block(self, number: int, octets: memoryview) -> None:
        if (found := self._digest(octets).digest()) != self._digests[number]:
            raise block_tampered(self.verified.path, number, found, self._digests)

    def read(self, member: Member | str) -> bytes:
        """One small member, whole."""
        found = self[member] if isinstance(member, str) else member
        octets = bytearray(found.size)
        self.unseal({found: memoryview(octets)}, threads=1)
        return bytes(octets)

    def open(self, member: Member | str) -> MemberFile:
        """A seekable, read-only binary file over one member; each chunk is verified before it is released."""
        found = self[member] if isinstance(member, str) else member
        cipher = self._schedule.member(found.number)
        grid = self.core.grid

        def chunk_at(offset: int) -> tuple[int, bytearray]:
            chunk = grid.one(found.start, found.size, grid.find(found.start, found.size, offset))
            number, inside = divmod(chunk.at, grid.block)
            size = min(grid.block, self.core.payload_length - number * grid.block)
            block = memoryview(bytearray(size))
            self._storage.payload.read_into(block, self._storage.payload_at + number * grid.block)
            self._check_block(number, block)
            return chunk.offset, cipher.open(chunk, block[inside : inside + chunk.sealed_size])

        return MemberFile(found.name, found.size, chunk_at)

    def check_members(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decrypt everything and compare each member's digest with the index, the padding with zeros.

        Raises `ArchiveTampered`, and `ArchiveMalformed` for padding that holds something.
        """
        done = 0
        for member in self.members:
            digest = self._digest()
            with self.open(member) as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, self.core.payload_length)
            if bytes(digest.digest()) != member.digest:
                raise ArchiveTampered(f"member {member.name} is not what the index says", hint=SEAL_AGAIN)
        if self._padding is not None:
            with self.open(self._padding) as file:
                while piece := file.read(1 << 22):
                    if piece != bytes(len(piece)):
                        raise ArchiveMalformed(f"{self.verified.path}: its padding is not zeros", hint=SEAL_AGAIN)


def block_tampered(path: Path, number: int, found: bytes, digests: Sequence[bytes]) -> ArchiveTampered:
    """The error for a payload block that is not the signed one; `found` is its digest, and may be that of another."""
    moved = f", but block {digests.index(found)}" if found in digests else ""
    return ArchiveTampered(
        f"{path}: payload block {number} is not the one that was signed{moved}",
        hint="get the archive again from its author",
    )


@contextlib.contextmanager
def _hinting(hint: str) -> Iterator[None]:
    """Give what is malformed the next step of whoever was brought an archive.

    Sealing raises the same errors over an author's own words, where another step is the next.
    """
    try:
        yield
    except ArchiveMalformed as error:
        error.hint = error.hint or hint
        raise
