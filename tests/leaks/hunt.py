"""The leak hunt: look for canaries wherever a host could look, on a running server and after it.

    hunt = Hunt({"the request": canary, ...}, secret_places=[owner's folder])
    with hunt.listening():
        ...
    hunt.files(); hunt.processes(pids); hunt.found

A canary is random, so no file but a leak can hold it; it is looked for as it is and in the encodings in
which programs print things. Looks at: every file on this machine that was written since the hunt began, files
that were deleted and are still open, shared memory, environments and command lines, the memory of processes
that must never see plaintext, everything that passes over the loopback device, and swap (which has to be off).
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import select
import socket
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ALL_PROTOCOLS = 3
BLOCK = 1 << 22
OVERLAP = 1 << 10
NOT_FILES = ("/proc", "/sys", "/dev/pts", "/dev/mqueue")
LARGEST = 2 << 30


def canary(name: str) -> str:
    """Text that is nowhere yet: 128 random bits with a name that helps whoever finds it."""
    return f"canary-{name}-{secrets.token_hex(16)}"


def encodings(text: str) -> set[bytes]:
    """A canary as it may stand in a file: plain, hex, base64 at each of its three phases, quoted, UTF-16."""
    octets = text.encode()
    found = {octets, octets.hex().encode(), octets.hex().upper().encode(), text.encode("utf-16-le")}
    found.add(urllib.parse.quote(text).encode())
    for phase in range(3):
        encoded = base64.b64encode(bytes(phase) + octets)
        found.add(encoded[4 if phase else 0 : -4])  # without the ends, which depend on the neighbours
    return found


@dataclass(frozen=True)
class Found:
    """A canary where none may be."""

    what: str
    where: str


@dataclass
class Hunt:
    """One hunt. `canaries` are by name; `spared` are folders that rightly hold plaintext (the owner's)."""

    canaries: dict[str, str]
    spared: tuple[Path, ...] = ()
    found: list[Found] = field(default_factory=list)
    searched: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._names = {needle: name for name, text in self.canaries.items() for needle in encodings(text)}
        self._pattern = re.compile(b"|".join(re.escape(each) for each in self._names))

    # -- bytes ----------------------------------------------------------------------------

    def octets(self, octets: bytes, where: str) -> None:
        """Look at bytes at hand."""
        for hit in self._pattern.finditer(octets):
            found = Found(self._names[hit[0]], where)
            if found not in self.found:
                self.found.append(found)

    def _count(self, kind: str, octets: int) -> None:
        self.searched[kind] = self.searched.get(kind, 0) + octets

    def _stream(self, path: str, where: str, kind: str) -> None:
        tail = b""
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            while block := file.read(BLOCK):
                self._count(kind, len(block))
                self.octets(tail + block, where)
                tail = block[-OVERLAP:]

    # -- files ----------------------------------------------------------------------------

    def files(self, roots: Iterable[Path] = (Path("/"),)) -> None:
        """Every regular file below `roots` that was written since the hunt began; links are not followed."""
        for path in self._recent(roots):
            self._stream(str(path), str(path), "bytes of files")
            self._count("files", 1)

    def _recent(self, roots: Iterable[Path]) -> Iterator[Path]:
        spared = [str(each.resolve()) for each in self.spared]
        for root in roots:
            for folder, folders, names in os.walk(root):
                folders[:] = [
                    each
                    for each in folders
                    if (full := os.path.join(folder, each)) not in spared and not full.startswith(NOT_FILES)
                ]
                for name in names:
                    path = Path(folder, name)
                    with contextlib.suppress(OSError):
                        status = path.lstat()
                        written = max(status.st_mtime, status.st_ctime) >= self.began - 1
                        if stat.S_ISREG(status.st_mode) and written and status.st_size <= LARGEST:
                            yield path

    # -- processes ------------------------------------------------------------------------

    def processes(self, pids: Iterable[int]) -> None:
        """Environment, command line, and open files that have no name any more; memory files are not among them."""
        for pid in pids:
            self._count("processes", 1)
            for name in ("environ", "cmdline"):
                self._stream(f"/proc/{pid}/{name}", f"process {pid}: {name}", "bytes of processes")
            with contextlib.suppress(OSError):
                for number in os.listdir(f"/proc/{pid}/fd"):
                    link = f"/proc/{pid}/fd/{number}"
                    with contextlib.suppress(OSError):
                        target = os.readlink(link)
                        regular = stat.S_ISREG(os.stat(link).st_mode)
                        if regular and target.endswith(" (deleted)") and not target.startswith("/memfd:"):
                            self._stream(link, f"process {pid}: {target}", "bytes of deleted files")

    def memory(self, pids: Iterable[int]) -> None:
        """The whole memory of processes that must never hold plaintext: the launcher and the server's frontend."""
        for pid in pids:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
                ranges = [line.split()[:2] for line in maps]
                with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                    for span, rights in ranges:
                        if rights.startswith("rw"):
                            self._span(memory, pid, *(int(each, 16) for each in span.split("-")))

    def _span(self, memory, pid: int, start: int, end: int) -> None:
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
        stop = threading.Event()
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        ear.bind(("lo", ALL_PROTOCOLS))
        thread = threading.Thread(target=self._listen, args=(ear, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            time.sleep(0.3)
            stop.set()
            thread.join(10)
            ear.close()

    def _listen(self, ear: socket.socket, stop: threading.Event) -> None:
        tail = b""
        while not stop.is_set():
            if not select.select([ear], [], [], 0.1)[0]:
                continue
            packet = ear.recv(1 << 17)
            self._count("bytes of loopback traffic", len(packet))
            self.octets(tail + packet, "the loopback device")
            tail = packet[-OVERLAP:]

    def swap(self) -> None:
        """Swap cannot be searched through files, so it has to be off."""
        for line in Path("/proc/swaps").read_text().splitlines()[1:]:
            self.found.append(Found("anything", f"swap {line.split()[0]}"))
