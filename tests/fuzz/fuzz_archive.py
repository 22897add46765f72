"""Fuzz every parser of the archive: ``python tests/fuzz/fuzz_archive.py TARGET [libFuzzer flags]``.

A target takes bytes; whatever they are, only errors of our own tree may come out, and what parses must
serialise to the very same bytes. Seeds are the parts of the archive vectors. Needs ``pip install atheris``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from strongroom.archive.blocks import Grid
from strongroom.archive.header import Header, SignedCore
from strongroom.archive.index import Index
from strongroom.archive.manifest import ClearMembers
from strongroom.archive.passphrase import Passphrase
from strongroom.archive.recipients import KeyIdentity, Recipient, RecipientKind, recipient_id, split_provider
from strongroom.archive.signature import AuthorPublic
from strongroom.archive.slots import Slot, SlotArea
from strongroom.archive.source import ZipSource
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import StrongroomError
from strongroom.keys import ArchiveDigest

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "archive"
DIGEST = ArchiveDigest(bytes(32))
IDENTITIES = [KeyIdentity(kind, bytes(range(32))) for kind in RecipientKind]
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def core(octets: bytes) -> None:
    assert SignedCore.parse(octets).serialise() == octets


def header(octets: bytes) -> None:
    found = Header.parse(octets)
    assert found.serialise() == octets
    found.verify()


def index(octets: bytes) -> None:
    assert Index.parse(octets, Grid(12)).serialise() == octets


def slots(octets: bytes) -> None:
    current = SlotArea.parse(octets).current
    for identity in IDENTITIES:
        identity.unwrap(current.slots, DIGEST)


def bodies(octets: bytes) -> None:
    """A slot that is ours by its id, with any body; Argon2id's memory is kept small."""
    kind, body = (octets[0] % 5 if octets else 0), octets[1:]
    for identity in IDENTITIES:
        name = recipient_id(identity.kind, DIGEST, identity.recipient.public)
        if kind == identity.kind:
            identity.unwrap([Slot(kind, name, body)], DIGEST)
    if kind == 3 and not any(body[16:18]) and not any(body[20:23]):
        Passphrase("x").unwrap([Slot(3, recipient_id(3, DIGEST, body[:16]), body)], DIGEST)
    if kind == 4:
        split_provider(body)


def clear(octets: bytes) -> None:
    manifest, _, config = octets.partition(b"\0")
    found = ClearMembers.parse(manifest, config)
    assert (found.manifest, found.config) == (manifest, config)


def keys(octets: bytes) -> None:
    text = octets.decode("utf-8", "replace")
    for kind in (AuthorPublic, Recipient):
        with contextlib.suppress(StrongroomError):
            kind.parse(text)


def archive(octets: bytes) -> None:
    """The whole file: zip front, header, slot area, lengths, tail."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, octets)
        with SealedArchive.open(f"/proc/self/fd/{descriptor}") as found:
            found.verified([found.header.author], now=NOW).check_payload(threads=1)
    finally:
        os.close(descriptor)


def source(octets: bytes) -> None:
    """An ordinary zip that an author might be given to seal."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, octets)
        with ZipSource(Path(f"/proc/self/fd/{descriptor}")) as found:
            if sum(found.sizes.values()) < 1 << 20:
                found.read(found.ordered(), lambda _, stream: stream.read())
    finally:
        os.close(descriptor)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (core, header, index, slots, bodies, clear, keys, archive, source)
}


def attempt(target: Callable[[bytes], None], octets: bytes) -> bool:
    """Whether it was accepted; raises where another error than ours comes out."""
    try:
        target(octets)
    except StrongroomError:
        return False
    return True


def seeds(name: str) -> Iterator[bytes]:
    """Parts of the vectors, cut out by position."""
    from strongroom.archive.storage import FileStorage

    for path in sorted(VECTORS.glob("*.vector")):
        head, _, body = path.read_bytes().partition(b"\n\n")
        whole = zlib.decompress(body)
        if b"form: file" not in head or len(whole) > 200_000:
            continue
        if name == "archive":
            yield whole
            continue
        with tempfile.NamedTemporaryFile() as file:
            file.write(whole)
            file.flush()
            try:
                storage = FileStorage(Path(file.name))
            except StrongroomError:
                continue
            found, readable = storage.header, b"\0".join(storage.clear.values())
            area = whole[4096 : 4096 + 8192]
            storage.close()
        yield {"header": found, "core": found[4 : 4 + int.from_bytes(found[:4], "big")], "slots": area}.get(
            name, readable
        )
    if name == "index":
        entry = b"\0\0\1a" + (5).to_bytes(8, "big") + bytes(32)
        yield (b"\0\0\0\1" + entry).ljust(512, b"\0")
    if name == "keys":
        yield IDENTITIES[1].recipient.serialise().encode()
        yield b"strongroom-author-1:ed25519:" + b"A" * 43
    if name == "bodies":
        for kind, size in ((1, 80), (2, 1168), (3, 73), (4, 20)):
            yield bytes([kind]) + bytes(size)
    if name == "source":
        from archive.makings import model_files, write_mar

        with tempfile.TemporaryDirectory() as folder:
            yield write_mar(Path(folder, "m.mar"), model_files()).read_bytes()


def main() -> None:
    import atheris

    name = sys.argv.pop(1)
    target = TARGETS[name]
    sys.path.insert(0, str(VECTORS.parent.parent))
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup(
            [*sys.argv, "-max_len=60000", "-print_final_stats=1", corpus], lambda octets: attempt(target, octets)
        )
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_archive.py {{{','.join(TARGETS)}}} [libFuzzer flags]")
    # Coverage is only seen in modules that are imported under instrumentation.
    import atheris

    with atheris.instrument_imports(include=["strongroom"]):
        for module in [each for each in sys.modules if each.startswith("strongroom")]:
            del sys.modules[module]
        sys.path.insert(0, str(Path(__file__).parent))
        import fuzz_archive

    fuzz_archive.main()
