"""Which process is at the other end, and which model it may ask for.

The kernel names the peer (SO_PEERCRED) and /proc its parent. Under `strongroom launch` only the
serving framework's own workers are served: processes exactly `depth` generations below the launcher.
A child that a handler forks is one generation too deep, and one that detaches itself lands at another
depth, so it cannot come to the keeper under a name of its own.

A process is bound to the first archive it names, for its life. Start times tell a process from a
later one that got the same number.

One TEE is one trust domain: processes of the same uid can reach each other by other ways than this
socket (docs/threat-model.md says what remains). Where the configuration names a user for the server, workers
are that user's and the keeper is not.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from strongroom.errors import KeeperRefused
from strongroom.keys import ArchiveDigest

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Peer:
    """A process: its number, user, and start time in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    uid: int
    started: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where workers must stand: `depth` generations below process `root`, as user `uid` (None: the keeper's own)."""

    root: int
    depth: int
    uid: int | None = None
    gid: int | None = None


def peer_of(connection: socket.socket) -> Peer:
    """Who connected, as the kernel recorded it; raises `KeeperRefused` if it is already gone."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, _stat(pid)[1])


def _stat(pid: int) -> tuple[int, int, str]:
    """(parent, start time, state) of a process."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise KeeperRefused(f"process {pid} is gone") from error
    return int(fields[1]), int(fields[19]), fields[0]


def still_there(peer: Peer) -> bool:
    """Whether that very process lives; a later one of the same number does not count, nor one that only waits
    for its parent to notice."""
    try:
        _, started, state = _stat(peer.pid)
    except KeeperRefused:
        return False
    return started == peer.started and state not in "ZX"


class Peers:
    """The rules above, and the memory of who was bound to what."""

    def __init__(self, lineage: Lineage | None) -> None:
        self._lineage = lineage
        self._bound: dict[Peer, ArchiveDigest] = {}
        self._lock = threading.Lock()

    def same_user(self, peer: Peer) -> None:
        """Refuse a process of another user; raises `KeeperRefused`."""
        if peer.uid not in (0, os.geteuid()):
            raise KeeperRefused(f"process {peer.pid} runs as uid {peer.uid}, the keeper as {os.geteuid()}")

    def admit(self, peer: Peer) -> None:
        """Refuse a process that is not a worker; raises `KeeperRefused`."""
        if self._lineage is None:
            self.same_user(peer)
            return
        expected = os.geteuid() if self._lineage.uid is None else self._lineage.uid
        if peer.uid != expected:
            raise KeeperRefused(f"process {peer.pid} runs as uid {peer.uid}, workers as {expected}")
        ancestor = peer.pid
        for _ in range(self._lineage.depth):
            ancestor = _stat(ancestor)[0]
            if ancestor <= 1:
                break
        if ancestor != self._lineage.root:
            raise KeeperRefused(
                f"process {peer.pid} is not a worker that the launched server started",
                hint="only workers of the server under `strongroom launch` are served",
            )

    def bind(self, peer: Peer, archive: ArchiveDigest) -> None:
        """Tie a process to an archive, or hold it to the one it has; raises `KeeperRefused`."""
        with self._lock:
            bound = self._bound.setdefault(peer, archive)
            if len(self._bound) > 4096:
                self._forget_the_dead()
        if bound != archive:
            raise KeeperRefused(f"process {peer.pid} serves archive {bound}, and asked for {archive}")

    def _forget_the_dead(self) -> None:
        for peer in list(self._bound):
            if not still_there(peer):
                del self._bound[peer]
