"""Change who can open an archive without touching payload or signature (docs/format.md section 10).

The slot area has two generations. The one that is not current is written, brought to the disk and read
back; killed at any instant, the file still opens with the old or the new recipients.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from strongroom.archive.recipients import Identity, Recipient, find_key, recipient_id
from strongroom.archive.seal import Wrap
from strongroom.archive.slots import Generation, Slot, SlotArea
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import ArchiveError, SealRefused
from strongroom.keys import ArchiveDigest, ModelKey

Drop = Callable[[Slot, ArchiveDigest], bool]
"""Says whether a present slot goes."""


def rewrap_archive(
    path: Path,
    *,
    key: ModelKey | None = None,
    identities: Iterable[Identity] = (),
    add: Iterable[Wrap] = (),
    remove: Mapping[str, Recipient] | None = None,
    drop: Drop | None = None,
    allow_none: bool = False,
) -> tuple[Slot, ...]:
    """Add recipients to, and drop them from, the archive at `path`; the new slots come back.

    Needs the model key, or an identity that finds it in a present slot. Removing a recipient is not
    revocation: whoever had the key may have kept it. `remove` names recipients that have to be there; `drop` says
    of any slot whether it goes. None at all are left only where the caller has the model key itself, or says
    `allow_none`. Slots that somebody without the key changed are mended by the model key, where none of them stays.
    Raises `NoRecipient`, `WrongKey`, `ArchiveTampered`, and `SealRefused` where the new slots do not
    fit, somebody to remove is not there, nothing would change, or nobody would be left.
    """
    with SealedArchive.open(path) as archive:
        descriptor, at = _open(archive)
        try:
            # A second rewrap waits here, and both then see what the other wrote.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            core = archive.core
            generation = core.generation
            area = SlotArea.parse(_read(descriptor, 2 * generation, at))
            # Whoever rewraps holds the key, so it needs no opinion about the author, or about the date.
            verified = archive.verified([archive.header.author], now=datetime.fromtimestamp(0, UTC))
            has_key = key is not None
            if key is None:
                key = find_key(identities, area.current.slots, core.digest)
            opened = verified.unlock(key)
            leaving = _present(remove or {}, area.current.slots, core.digest)
            kept = [slot for slot in area.current.slots if slot.recipient not in leaving]
            kept = [slot for slot in kept if drop is None or not drop(slot, core.digest)]
            # What a stranger wrote gets no MAC of ours; where nothing of it stays, nothing has to be believed.
            if kept or not has_key:
                area.current.check(opened.slot_key, core.digest)
            new = [wrap(key, core.digest) for wrap in add]
            renewed = {slot.recipient for slot in new}
            kept = [slot for slot in kept if slot.recipient not in renewed]
            if not new and len(kept) == len(area.current.slots):
                raise SealRefused("no recipient to add, and none that is there to remove")
            slots = (*kept, *new)
            if not slots and not has_key and not allow_none:
                raise SealRefused(
                    "no recipient would be left, and unless somebody else keeps its key nobody could ever open it",
                    hint="add a recipient, pass its key by --key FILE, or say --allow-none if a broker keeps the key",
                )
            following = Generation.make(area.current.sequence + 1, slots, slot_key=opened.slot_key, digest=core.digest)
            octets = following.serialise(generation)
            target = at if area.current_is_b else at + generation
            _write(descriptor, octets, target)
            if SlotArea.parse(_read(descriptor, 2 * generation, at)).current != following:
                raise ArchiveError(f"{path}: the new recipients did not arrive on the disk; the old ones still hold")
        finally:
            os.close(descriptor)
    return slots


def _present(named: Mapping[str, Recipient], slots: Iterable[Slot], digest: ArchiveDigest) -> set[bytes]:
    present = {slot.recipient for slot in slots}
    found = set()
    for name, each in named.items():
        identifier = recipient_id(each.kind, digest, each.public)
        if identifier not in present:
            raise SealRefused(f"{name} is no recipient of this archive", hint="`strongroom inspect` lists their kinds")
        found.add(identifier)
    return found


def _open(archive: SealedArchive) -> tuple[int, int]:
    path, at = archive.slots_place
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), at
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written: {error.strerror}") from error


def _read(descriptor: int, size: int, at: int) -> bytes:
    return os.pread(descriptor, size, at)


def _write(descriptor: int, octets: bytes, at: int) -> None:
    view = memoryview(octets)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
    os.fsync(descriptor)
