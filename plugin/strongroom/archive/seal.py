"""Seal an ordinary model: read it once, write docs/format.md, and give the file its name last.

Promises: memory for a few chunks at any size; no plaintext on any disk; each chunk is encrypted once, under a
model key and archive id that no other sealing has; the output has its final name only when it is whole, on
the disk, and whoever must hold its key has it. Who that is, is the caller's business (`before_publish`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from strongroom.archive.blocks import DIGEST, Grid, Suite, hasher, merkle_root
from strongroom.archive.cipher import KeySchedule
from strongroom.archive.draft import Draft, check_output
from strongroom.archive.header import (
    BROKER_KEY_LIMIT,
    CHUNK_LOG2,
    SLOT_PAGES,
    Flag,
    Header,
    SignedCore,
    check_name,
    check_owner,
)
from strongroom.archive.index import Index, Member
from strongroom.archive.packaging import clear_members
from strongroom.archive.payload import PayloadWriter
from strongroom.archive.recipients import Recipient
from strongroom.archive.signature import Signer
from strongroom.archive.slots import ONCE, PASSPHRASE, SLOT_HEAD, Generation, Slot, check_count, check_room
from strongroom.archive.source import Source, changed, open_source
from strongroom.errors import ArchiveMalformed, SealRefused
from strongroom.keys import ArchiveDigest, ModelKey

Wrap = Callable[[ModelKey, ArchiveDigest], Slot]
"""Makes one recipient's slot; see `recipients`."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a sealing made. `key` opens it; nothing else keeps it."""

    path: Path
    core: SignedCore
    digest: ArchiveDigest
    key: ModelKey = field(repr=False)
    members: tuple[Member, ...]
    clear: int
    size: int

    @property
    def resource(self) -> tuple[str, str, str]:
        """Where a key broker keeps the key."""
        return self.core.resource


BeforePublish = Callable[[Sealed], Callable[[], None] | None]
"""Takes the key while the archive has no name yet; may give what undoes that if it never gets one."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the author says about an archive, beside its files."""

    tenant: str = "default"
    lineage: str | None = None
    version: int = 1
    expiry: datetime | None = None
    lease_required: bool = False
    broker_key: bytes | None = None
    owner: str | None = None

    @property
    def owner_octets(self) -> bytes:
        """The owner in UTF-8; raises `SealRefused` for what is no text."""
        try:
            return (self.owner or "").encode()
        except UnicodeEncodeError as error:
            raise SealRefused("the owner is no text in UTF-8", hint="say another owner") from error

    @property
    def expiry_second(self) -> int | None:
        """The expiry as the header has it; raises `SealRefused` as `to_come` does."""
        return None if self.expiry is None else int(to_come(self.expiry).timestamp())

    def lineage_or(self, name: str) -> str:
        """The lineage; the model's name where none was given."""
        return check_name(name if self.lineage is None else self.lineage, "lineage")


def to_come(expiry: datetime) -> datetime:
    """The same; raises `SealRefused` where it has no zone, which each reader would guess, or is no more to come."""
    if expiry.utcoffset() is None:
        raise SealRefused(
            f"the expiry {expiry.isoformat()} has no time zone", hint="give it one, for instance tzinfo=datetime.UTC"
        )
    if expiry <= datetime.now(UTC):
        raise SealRefused(
            f"the expiry {expiry.isoformat()} is in the past, and nobody could open the archive",
            hint="say a date to come",
        )
    return expiry


def seal_archive(
    source: Path,
    output: Path,
    *,
    author: Signer,
    tenant: str = "default",
    lineage: str | None = None,
    version: int = 1,
    expiry: datetime | None = None,
    lease_required: bool = False,
    broker_key: bytes | None = None,
    owner: str | None = None,
    form: str = "file",
    suite: Suite = Suite.AES256GCM_BLAKE3,
    chunk_log2: int = 22,
    slot_pages: int = 20,
    recipients: Iterable[Wrap] = (),
    padding: bool = False,
    allow_requirements: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    before_publish: BeforePublish | None = None,
) -> Sealed:
    """Encrypt and sign the model at `source` (``.mar``, tar.gz or folder) into `output`.

    `form` is ``file`` (a zip that model servers register) or ``directory`` (their unpacked form).
    `progress` gets (octets done, octets in all). `before_publish` runs when everything is on the disk under
    a draft name; if it raises, the draft is deleted, and what it gives is called if the name cannot be taken.
    A fresh model key is always made: one that could be passed in could be passed in twice.
    Raises `SealRefused` with the reason, and `ArchiveError`.
    """
    terms = Terms(tenant, lineage, version, expiry, lease_required, broker_key, owner)
    with open_source(Path(source)) as opened:
        return seal_source(
            opened,
            Path(output),
            author=author,
            terms=terms,
            form=form,
            suite=suite,
            chunk_log2=chunk_log2,
            slot_pages=slot_pages,
            recipients=recipients,
            padding=padding,
            allow_requirements=allow_requirements,
            overwrite=overwrite,
            threads=threads,
            progress=progress,
            before_publish=before_publish,
        )


def seal_source(
    source: Source,
    output: Path,
    *,
    author: Signer,
    terms: Terms,
    form: str = "file",
    suite: Suite = Suite.AES256GCM_BLAKE3,
    chunk_log2: int = 22,
    slot_pages: int = 20,
    recipients: Iterable[Wrap] = (),
    padding: bool = False,
    allow_requirements: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    before_publish: BeforePublish | None = None,
) -> Sealed:
    """As `seal_archive`, for a model whose files come from elsewhere than one path."""
    if form not in {"file", "directory"}:
        raise SealRefused(f"{form!r} is no form of an archive; file and directory are")
    suite = _checked(suite, chunk_log2, slot_pages, threads, terms)
    check_output(output, source.places, directory=form == "directory", overwrite=overwrite)
    recipients = tuple(recipients)
    check_recipients(recipients, 4096 * slot_pages)
    clear = clear_members(source, allow_requirements=allow_requirements)
    names = source.ordered()
    grid = Grid(chunk_log2)
    pad = None
    if padding:
        unpadded = Index.build(grid, [(name, source.sizes[name], b"") for name in names])
        pad = grid.padding(unpadded.length)
    index = Index.build(grid, [(name, source.sizes[name], bytes(DIGEST)) for name in names], pad)
    _check_index(index, grid)
    key, archive_id = ModelKey.generate(), secrets.token_bytes(32)
    schedule = KeySchedule(key, archive_id, suite)
    public = author.public
    core = SignedCore(
        suite=suite,
        chunk_log2=chunk_log2,
        slot_pages=slot_pages,
        flags=Flag.LEASE_REQUIRED if terms.lease_required else Flag(0),
        archive_id=archive_id,
        payload_length=index.length,
        payload_crc=0,
        commitment=schedule.commitment,
        payload_root=bytes(32),
        clear_root=clear.root,
        index=bytes(len(index.serialise()) + 16),
        tenant=check_name(terms.tenant, "tenant"),
        lineage=terms.lineage_or(clear.name),
        version=terms.version,
        author=public.id,
        created=int(time.time()),
        expiry=terms.expiry_second,
        broker_key=terms.broker_key,
        owner=None if terms.owner is None else check_owner(terms.owner_octets),
    )
    # Parsing our own core applies every limit before the first octet is written.
    SignedCore.parse(core.serialise())
    draft_header = Header(core, public, bytes(public.kind.signature_size))
    with Draft(output, clear.files, draft_header, directory=form == "directory") as draft:
        writer = PayloadWriter(draft.payload, draft.payload_at, grid, index, schedule, suite, threads, progress)
        with writer:
            digests = dict.fromkeys(names, b"")
            order = iter(index.members)

            def take(name: str, stream: IO[bytes]) -> None:
                member = next(order, None)
                if member is None or member.name != name:
                    raise changed(name)
                digests[name] = writer.member(member, stream)

            source.read(names, take)
            writer.pad()
            block_digests, crc = writer.finish()
        for name, octets in source.consulted.items():
            # The readable members were made from these; they must not tell of another model than is sealed.
            if hasher(suite)(octets).digest() != digests[name]:
                raise changed(name)
        files = [(each.name, each.size, digests[each.name]) for each in index.members]
        index = Index.build(grid, files, pad)
        core = replace(
            core,
            payload_crc=crc,
            payload_root=merkle_root(block_digests),
            index=schedule.seal_index(index.serialise()),
        )
        digest = core.digest
        slots = tuple(wrap(key, digest) for wrap in recipients)
        generation = Generation.make(1, slots, slot_key=schedule.slot_key, digest=digest)
        header = Header(core, public, author.sign(core.serialise()))
        header.verify()
        draft.complete(header, b"".join(block_digests), generation.serialise(core.generation))
        sealed = Sealed(output, core, digest, key, index.members, len(clear.files), draft.size)
        undo = None if before_publish is None else before_publish(sealed)
        try:
            draft.publish(overwrite=overwrite)
        except BaseException:
            if callable(undo) and not draft.published:
                undo()
            raise
    return sealed


def _checked(suite: int, chunk_log2: int, slot_pages: int, threads: int | None, terms: Terms) -> Suite:
    """The suite; raises `SealRefused` for a number, or terms, that no archive can have."""
    if suite not in set(Suite):
        raise SealRefused(f"there is no suite {suite}", hint="say one of strongroom.archive.blocks.Suite")
    broker_key = 1 if terms.broker_key is None else len(terms.broker_key)
    for what, number, allowed in (
        ("chunk_log2", chunk_log2, CHUNK_LOG2),
        ("slot_pages", slot_pages, SLOT_PAGES),
        ("threads", 1 if threads is None else threads, range(1, 1 << 16)),
        ("the length of the broker key", broker_key, range(1, BROKER_KEY_LIMIT + 1)),
    ):
        if number not in allowed:
            raise SealRefused(f"{what} is {number}", hint=f"{allowed.start} to {allowed.stop - 1} is allowed")
    _ = terms.expiry_second
    return Suite(suite)


def check_recipients(recipients: Sequence[Wrap], capacity: int) -> None:
    """Raise `SealRefused` or `KeyFileInvalid` for recipients of whom it is known that their slots cannot be written.

    What only a plugin's slot tells, its size and its id, is found when it is made.
    """
    check_count(len(recipients), sum(getattr(each, "kind", None) == PASSPHRASE for each in recipients))
    people = [each for each in recipients if isinstance(each, Recipient)]
    for each in people:
        each.check()
    if len(set(people)) < len(people):
        raise SealRefused("one recipient is named twice", hint=ONCE)
    check_room(len(recipients), sum(getattr(each, "slot_size", SLOT_HEAD) for each in recipients), capacity)


def _check_index(index: Index, grid: Grid) -> None:
    """Raise `SealRefused` unless readers will take this index: nobody could open the archive otherwise."""
    try:
        if Index.parse(index.serialise(), grid) != index:
            raise ArchiveMalformed("its index does not survive its own octets")
    except ArchiveMalformed as error:
        raise SealRefused(
            f"cannot be sealed as it is: {error}", hint="look at the names and sizes of the model's files"
        ) from error
