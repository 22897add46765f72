"""Seal an ordinary model: read it once, write docs/format.md, and give the file its name last.

Promises: memory for a few chunks at any size; no plaintext on any disk; each chunk is encrypted once, under a
model key and archive id that no other sealing has; the output has its final name only when it is whole, on
the disk, and whoever must hold its key has it. Who that is, is the caller's business (`before_publish`).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import IO

from strongroom.archive import keyfile
from strongroom.archive.blocks import DIGEST, Grid, Suite, hasher, merkle_root
from strongroom.archive.cipher import KeySchedule
from strongroom.archive.header import Flag, Header, SignedCore, check_name, check_owner
from strongroom.archive.index import Index, Member
from strongroom.archive.outer import HEADER, PAYLOAD, SLOTS, Outer
from strongroom.archive.packaging import clear_members
from strongroom.archive.payload import PayloadWriter
from strongroom.archive.signature import Signer
from strongroom.archive.slots import Generation, Slot
from strongroom.archive.source import Source, changed, open_source
from strongroom.errors import SealRefused
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

    def lineage_or(self, name: str) -> str:
        """The lineage; the model's name where none was given."""
        return check_name(name if self.lineage is None else self.lineage, "lineage")


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
    before_publish: Callable[[Sealed], None] | None = None,
) -> Sealed:
    """Encrypt and sign the model at `source` (``.mar``, tar.gz or folder) into `output`.

    `form` is ``file`` (a zip that model servers register) or ``directory`` (their unpacked form).
    `progress` gets (octets done, octets in all). `before_publish` runs when everything is on the disk under
    a draft name; if it raises, the draft is deleted. A fresh model key is always made: one that could be
    passed in could be passed in twice. Raises `SealRefused` with the reason, and `ArchiveError`.
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
    before_publish: Callable[[Sealed], None] | None = None,
) -> Sealed:
    """As `seal_archive`, for a model whose files come from elsewhere than one path."""
    if form not in {"file", "directory"}:
        raise SealRefused(f"{form!r} is no form of an archive; file and directory are")
    if not overwrite and os.path.lexists(output):
        raise SealRefused(f"{output} exists already", hint="choose another name, or say --force")
    clear = clear_members(source, allow_requirements=allow_requirements)
    names = source.ordered()
    grid = Grid(chunk_log2)
    pad = None
    if padding:
        unpadded = Index.build(grid, [(name, source.sizes[name], b"") for name in names])
        pad = grid.padding(unpadded.length)
    index = Index.build(grid, [(name, source.sizes[name], bytes(DIGEST)) for name in names], pad)
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
        expiry=None if terms.expiry is None else int(terms.expiry.timestamp()),
        broker_key=terms.broker_key,
        owner=None if terms.owner is None else check_owner(terms.owner.encode()),
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
        if before_publish is not None:
            before_publish(sealed)
        draft.publish(overwrite=overwrite)
    return sealed


class Draft:
    """The output without a name, or under one that nobody takes for an archive, until `publish`."""

    def __init__(self, output: Path, clear: Mapping[str, bytes], header: Header, *, directory: bool) -> None:
        self._output, self._clear, self._directory = output, clear, directory
        self._header_length = len(header.serialise())
        self._layout = self._outer(header)
        self._path = output.with_name(f".{output.name}.{secrets.token_hex(6)}.part")
        self.payload_at = 0 if directory else self._layout.payload_at
        self.size = 0

    def _outer(self, header: Header) -> Outer:
        core = header.core
        part = core.payload_length + core.digests_length
        return Outer(self._clear, header.serialise(), generation=core.generation, payload=part, crc=core.payload_crc)

    def __enter__(self) -> Draft:
        try:
            if self._directory:
                for folder in (self._path, self._path / "MAR-INF", self._path / "SEALED-INF"):
                    folder.mkdir(mode=0o755)
            self.payload = self._open()
        except OSError as error:
            raise SealRefused(f"{self._output} cannot be written: {error.strerror}") from error
        return self

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        if not self._directory:
            try:
                # A file without a name is gone when we are killed, however large it has become.
                return os.open(self._output.parent, flags | os.O_TMPFILE, 0o644)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                    raise
        path = self._path / PAYLOAD if self._directory else self._path
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)

    def __exit__(self, *_: object) -> None:
        os.close(self.payload)
        if self._directory:
            shutil.rmtree(self._path, ignore_errors=True)
        else:
            self._path.unlink(missing_ok=True)

    def complete(self, header: Header, digests: bytes, slots: bytes) -> None:
        """Write everything around the payload, and bring it to the disk."""
        outer = self._outer(header)
        if (outer.payload_at, len(header.serialise())) != (self._layout.payload_at, self._header_length):
            raise SealRefused("the header changed its size while the payload was written")
        try:
            _write_at(self.payload, digests, self.payload_at + header.core.payload_length)
            # Zeros are left out: the file is new, so they are holes, and small models stay small on the disk.
            used, area = slots.rstrip(b"\0"), 2 * len(slots)
            if self._directory:
                for name, octets in {**self._clear, HEADER: header.serialise(), SLOTS: used}.items():
                    _write_new(self._path / name, octets, size=area if name == SLOTS else None)
                self.size = sum(each.stat().st_size for each in self._path.rglob("*") if each.is_file())
                os.fsync(self.payload)
                for folder in (self._path, self._path / "MAR-INF", self._path / "SEALED-INF"):
                    _sync_folder(folder)
            else:
                _write_at(self.payload, outer.tail, outer.tail_at)
                _write_at(self.payload, outer.before_slots + used, 0)
                _write_at(self.payload, outer.before_payload, outer.slots_at + area)
                self.size = outer.size
                os.fsync(self.payload)
        except OSError as error:
            raise SealRefused(f"{self._output} cannot be written: {error.strerror}") from error

    def publish(self, *, overwrite: bool) -> None:
        """Give it its final name."""
        try:
            if not self._directory and not self._path.exists():
                # Without a folder's descriptor Python would call link(), which does not follow the link in /proc.
                own = f"/proc/self/fd/{self.payload}"
                os.link(own, self._path, src_dir_fd=self.payload, follow_symlinks=True)
            if self._directory:
                self._publish_folder(overwrite=overwrite)
            elif overwrite:
                os.replace(self._path, self._output)
            else:
                keyfile.take_name(self._path, self._output)
            _sync_folder(self._output.parent)
        except FileExistsError as error:
            raise SealRefused(f"{self._output} exists already", hint="say --force to replace it") from error
        except OSError as error:
            raise SealRefused(f"{self._output} cannot be written: {error.strerror}") from error

    def _publish_folder(self, *, overwrite: bool) -> None:
        # A folder cannot replace another one in one step, so the old one steps aside first.
        aside = self._path.with_suffix(".old")
        if overwrite and os.path.lexists(self._output):
            os.rename(self._output, aside)
        elif os.path.lexists(self._output):
            raise FileExistsError
        os.rename(self._path, self._output)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def _write_at(descriptor: int, octets: bytes, at: int) -> None:
    view = memoryview(octets)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _write_new(path: Path, octets: bytes, *, size: int | None = None) -> None:
    with path.open("xb") as file:
        file.write(octets)
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
