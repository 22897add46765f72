"""The leak hunt: look for canaries wherever a host could look, on a running server and after it.

    hunt = Hunt({"the request": canary("request"), "the model key": key}, spared=[the owner's folder])
    with hunt.listening(), hunt.watching():
        ...
    hunt.everywhere(inside=...); hunt.found

A canary is random, so no file but a leak can hold it; it is looked for as it is and in the encodings in
which programs print things (needles.py). Looks at: every file, link and name on this machine that was written since the
hunt began, packed ones too; files that came and went meanwhile; files that were deleted and are still open; shared
memory; environments and command lines of all processes; the memory of processes that must never see plaintext;
everything that passes over the loopback device; the kernel's log; and swap (which has to be off).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from leaks import places
from leaks.needles import Needles, canary, encodings
from leaks.watch import Watch
from leaks.wire import Ear

__all__ = ["Found", "Hunt", "canary"]

BLOCK = 1 << 22
OVERLAP = 1 << 10
SHORTEST = 16
PACKINGS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))


@dataclass(frozen=True)
class Found:
    """A canary where none may be."""

    what: str
    where: str


@dataclass
class Hunt:
    """One hunt. `canaries` are by name; `spared` are folders that rightly hold plaintext (the owner's)."""

    canaries: dict[str, str | bytes]
    spared: tuple[Path, ...] = ()
    found: list[Found] = field(default_factory=list)
    searched: dict[str, int] = field(default_factory=dict)
    paths: set[Path] = field(default_factory=set)  # the files that were searched
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._compile()

    def add(self, name: str, secret: str | bytes) -> None:
        """Another secret to look for from now on."""
        self.look_for({name: secret})

    def look_for(self, secrets: Mapping[str, str | bytes]) -> None:
        """Further secrets to look for from now on."""
        self.canaries.update(secrets)
        self._compile()

    def _compile(self) -> None:
        short = [name for name, secret in self.canaries.items() if len(secret) < SHORTEST]
        if short:
            raise ValueError(f"{', '.join(short)}: less than {SHORTEST} bytes may stand anywhere by accident")
        self._needles = Needles({each: name for name, secret in self.canaries.items() for each in encodings(secret)})

    # -- bytes ----------------------------------------------------------------------------

    def octets(self, octets: bytes, where: str) -> None:
        """Look at bytes at hand."""
        for name in sorted(self._needles.found(octets)):
            found = Found(name, where)
            if found not in self.found:
                self.found.append(found)

    def _count(self, kind: str, octets: int) -> None:
        self.searched[kind] = self.searched.get(kind, 0) + octets

    def _stream(self, file: IO[bytes], where: str, kind: str) -> None:
        tail = b""
        with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
            while block := file.read(BLOCK):
                self._count(kind, len(block))
                self.octets(tail + block, where)
                tail = block[-OVERLAP:]

    def _open(self, path: str, where: str, kind: str) -> None:
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            self._stream(file, where, kind)
            file.seek(0)
            self._unpacked(file, where)

    def _unpacked(self, file: IO[bytes], where: str) -> None:
        """What a packed file holds, of the kinds that log rotation and Python bring along."""
        head = file.read(6)
        file.seek(0)
        for magic, unpack in PACKINGS:
            if head.startswith(magic):
                self._stream(unpack(file), f"{where}, unpacked", "bytes of packed files")
        if head.startswith(b"PK\3\4"):
            with contextlib.suppress(zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError):
                self._zipped(zipfile.ZipFile(io.BufferedReader(file)), where)  # type: ignore[arg-type]

    def _zipped(self, packed: zipfile.ZipFile, where: str) -> None:
        for each in packed.infolist():
            self.octets(os.fsencode(each.filename), f"{where}: a name in it")
            if each.compress_type != zipfile.ZIP_STORED:
                with packed.open(each) as member:
                    self._stream(member, f"{where}: {each.filename}", "bytes of packed files")

    # -- everything -------------------------------------------------------------------------

    def everywhere(self, *, inside: Callable[[int], bool] = lambda pid: False, outsiders: Iterable[int] = ()) -> None:
        """All that can be looked at afterwards. `inside` says which processes rightly have a model's memory files,
        `outsiders` are those whose memory must hold no canary."""
        self.files()
        self.processes(inside=inside)
        self.memory(outsiders)
        for name, octets in places.segments():
            self._count("shared memory segments", 1)
            self.octets(octets, name)
        self.octets(places.kernel_log(), "the kernel's log")
        self.swap()

    # -- files ----------------------------------------------------------------------------

    def files(self, roots: Iterable[Path] | None = None) -> None:
        """Every file that was written since the hunt began, below `roots` or wherever files can be written.

        Names and extended attributes too; links are not followed, but looked at.
        """
        roots = list(places.mounts() if roots is None else roots)
        for kind, path, target in places.written_since(self.began - 1, roots, self.spared):
            self.octets(os.fsencode(path), f"the name of {path}")
            self.octets(os.fsencode(target), f"{path}, which links there")
            self._count("names", 1)
            if kind != "f":
                continue
            self._open(str(path), str(path), "bytes of files")
            self._count("files", 1)
            self.paths.add(path)
            with contextlib.suppress(OSError):
                for name in os.listxattr(path):
                    self.octets(os.fsencode(name) + b"\0" + os.getxattr(path, name), f"an attribute of {path}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every file that is written while the block runs, also those that are gone when it ends.

        Raises `PermissionError` where this process may not (CAP_SYS_ADMIN); see `may_watch`.
        """
        spared = tuple(f"{each.resolve()}{os.sep}" for each in self.spared)

        def see(path: str, descriptor: int) -> None:
            if not path.startswith(spared):
                self._count("files watched", 1)
                self._open(f"/proc/self/fd/{descriptor}", f"{path}, while it was written", "bytes of files watched")

        watch = Watch(places.mounts(), see)
        try:
            yield
        finally:
            watch.close()
            self._count("files that went by unseen", watch.lost)

    # -- processes ------------------------------------------------------------------------

    def processes(self, pids: Iterable[int] | None = None, *, inside: Callable[[int], bool] = lambda pid: True) -> None:
        """Environment, command line, and open files that have no name any more; of all processes by default.

        A model's memory files are looked at in processes that are not `inside`, where they may not be.
        """
        for pid in all_processes() if pids is None else pids:
            self._count("processes", 1)
            for name in ("environ", "cmdline"):
                self._open(f"/proc/{pid}/{name}", f"process {pid}: {name}", "bytes of processes")
            for link, target in places.unnamed_files(pid):
                if not (target.startswith("/memfd:") and inside(pid)):
                    self._open(link, f"process {pid}: {target}", "bytes of deleted files")

    def memory(self, pids: Iterable[int]) -> None:
        """The whole memory of processes that must never hold plaintext: the launcher and the server's frontend."""
        for pid in pids:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                for start, end in places.written_spans(pid):
                    self._span(memory, pid, start, end)

    def _span(self, memory: IO[bytes], pid: int, start: int, end: int) -> None:
        tail = b""
        with contextlib.suppress(OSError, ValueError, OverflowError):
            memory.seek(start)
            while start < end:
                block = memory.read(min(BLOCK, end - start))
                if not block:
                    return
                self._count("bytes of memory", len(block))
                self.octets(tail + block, f"process {pid}: memory")
                start, tail = start + len(block), block[-OVERLAP:]

    # -- the wire ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Look at every packet of the loopback device while the block runs; needs CAP_NET_RAW."""

        def hear(octets: bytes) -> None:
            self._count("bytes of loopback traffic", len(octets))
            self.octets(octets, "the loopback device")

        ear = Ear(hear)
        try:
            yield
        finally:
            self._count("packets that went by unheard", ear.close())

    def swap(self) -> None:
        """Swap cannot be searched through files, so it has to be off."""
        for line in Path("/proc/swaps").read_text().splitlines()[1:]:
            self.found.append(Found("anything", f"swap {line.split()[0]}"))


def all_processes() -> list[int]:
    """Every process of this machine but ourselves: who hunts holds the canaries."""
    return [int(each) for each in os.listdir("/proc") if each.isdigit() and int(each) != os.getpid()]


def may_watch() -> bool:
    """Whether this process may see files of others while they are written."""
    with contextlib.suppress(PermissionError):
        Watch(places.mounts(), lambda path, descriptor: None).close()
        return True
    return False
