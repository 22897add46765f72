"""One admitted model in the keeper: waiting for its key, open under a lease, withdrawn, open again.

A thread asks the broker, opens the archive into a room, renews the lease, and closes the room when the right
to it has ended: at once when the broker says no, after lease and grace when the broker cannot be reached.
Then it asks again for as long as the model is wanted: after 1 s and at most 30 s apart, 60 s after a refusal.
Nobody waits on it: whoever asks for the model meanwhile gets `ModelUnavailable` at once.

What workers hold by then cannot be taken out of their hands, so a withdrawal is final for them: they are told
to end, and whoever has not ended after `FAREWELL_S` is killed by the kernel's name for it (a pidfd).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from strongroom.archive.unseal import VerifiedArchive
from strongroom.errors import (
    AttestationFailed,
    LeaseExpired,
    ModelUnavailable,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
    StrongroomError,
)
from strongroom.keeper.asking import Asking
from strongroom.keeper.keyring import RequestKeys
from strongroom.keeper.leases import DEFAULT_GRACE_S, Lease, Tenure
from strongroom.keeper.peers import Peer, still_there
from strongroom.keeper.release import Released
from strongroom.keeper.room import MemoryFile, OpenRoom
from strongroom.keys import ArchiveDigest

_log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE_AFTER_NO = 1.0, 30.0, 60.0
REFUSALS = (ReleaseDenied, ResourceMissing, AttestationFailed)
FAREWELL_S = 10.0


class HeldModel:
    """A verified archive, its request keys, and its room while a key is held. Times in seconds."""

    def __init__(
        self,
        name: str,
        verified: VerifiedArchive,
        keys: RequestKeys,
        release: Callable[[], Released],
        *,
        grace: int = DEFAULT_GRACE_S,
    ) -> None:
        self.name = name
        self.archive: ArchiveDigest = verified.core.digest
        self.keys = keys
        self._verified = verified
        self._release = Asking(release)
        self._grace = grace
        self._room: OpenRoom | None = None
        self._lease: Lease | None = None
        self._withdrawn = False
        self._holders: set[Peer] = set()
        self._reason: StrongroomError = ModelUnavailable("the key has not been asked for yet")
        self._lock = threading.RLock()
        self._settled = threading.Event()
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to ask for the key, in a thread of its own."""
        threading.Thread(target=self._pursue, name=f"model {self.name}", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Until the first attempt ended, in whatever way, or the time is over."""
        self._settled.wait(seconds)

    # -- asking and holding -------------------------------------------------------------

    def _pursue(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                self._hold()
                pause = FIRST_PAUSE
            except StrongroomError as error:
                self._not_open(error)
                self._stop.wait(pause)
                longest = LONGEST_PAUSE_AFTER_NO if isinstance(error, REFUSALS) else LONGEST_PAUSE
                pause = min(2 * pause, longest)
            except Exception as error:  # a bug of ours may not leave a model open without a lease
                _log.error("model %s: %s", self.name, type(error).__name__)
                self._withdraw(ReleaseError(f"holding it failed with {type(error).__name__}"))
                self._stop.wait(LONGEST_PAUSE)

    def _hold(self) -> None:
        """Get the key, open, and stay until the right has ended; raises where it never began."""
        released = self._release()
        if self._verified.core.lease_required and released.lease_s is None:
            raise ReleaseDenied(
                f"the archive of {self.name} may be opened only under a lease, and its key came without one",
                hint="use a source that grants leases, as a strongroom broker does, or seal without --lease-required",
            )
        room = OpenRoom.open(self._verified.unlock(released.key))
        tenure = Tenure(released, self._release, drop=self._withdraw, restore=lambda _: None, grace_s=self._grace)
        del released  # the key has done its work
        with self._lock:
            self._room, self._lease, self._withdrawn = room, tenure.lease, False
            if self._stop.is_set():
                self._close_room()
        until = "without end" if tenure.lease.lease_s is None else f"for {tenure.lease.lease_s} s at a time"
        _log.info("model %s is open %s: %d files", self.name, until, len(room.files))
        self._settled.set()
        while tenure.held and not self._stop.is_set():
            self._stop.wait(min(tenure.step(), 60.0))
            with self._lock:
                self._lease = tenure.lease
                if self._room is None:  # somebody asked and found the lease over, before this thread did
                    return

    def _not_open(self, error: StrongroomError) -> None:
        with self._lock:
            self._reason = error
            if isinstance(error, REFUSALS):
                self._withdrawn = True  # workers of a keeper before this one may still hold the model
        _log.warning("model %s is not open: %s: %s", self.name, type(error).__name__, error)
        self._settled.set()

    def _withdraw(self, error: ReleaseError) -> None:
        """Close the room and see that no worker keeps what it was given."""
        with self._lock:
            if self._room is None:
                return
            self._close_room()
            self._reason, self._withdrawn = error, True
            holders, self._holders = self._holders, set()
        _log.warning("model %s is withdrawn: %s: %s", self.name, type(error).__name__, error)
        farewell = threading.Timer(FAREWELL_S, _end, [self.name, holders])
        farewell.daemon = True
        farewell.start()

    def _close_room(self) -> None:
        if self._room is not None:
            self._room.close()
            self._room = None

    # -- answering ------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises `ModelUnavailable` with the class of the reason while the model is not open."""
        with self._lock:
            self._checked()

    def check_held(self) -> None:
        """Raises `ModelUnavailable` once the right to the model was refused or has ended.

        Not while the first answer is awaited: a keeper that was just restarted knows nothing yet.
        """
        with self._lock:
            if self._room is not None:
                self._checked()
            if self._withdrawn:
                raise ModelUnavailable(f"model {self.name} is withdrawn: {type(self._reason).__name__}")

    def _checked(self) -> OpenRoom:
        if self._room is not None and self._lease is not None and self._lease.expired():
            # The renewing thread may be waiting for a slow broker; that prolongs nothing.
            self._withdraw(LeaseExpired("the lease and its grace are over", hint="the broker has not answered since"))
        if self._room is None:
            raise ModelUnavailable(
                f"model {self.name} is not open: {type(self._reason).__name__}",
                hint="the keeper's log has the detail; it keeps asking by itself",
            )
        return self._room

    @contextlib.contextmanager
    def lent(self, peer: Peer) -> Iterator[tuple[MemoryFile, ...]]:
        """The sealed memory files for one worker, open for the length of the block; raises `ModelUnavailable`.

        They are duplicates: a room that closes meanwhile must not leave numbers that mean other files.
        """
        copies: list[MemoryFile] = []
        try:
            with self._lock:
                for file in self._checked().files:
                    copies.append(MemoryFile(file.name, file.size, os.dup(file.descriptor)))
                self._holders.add(peer)
            yield tuple(copies)
        finally:
            for copy in copies:
                os.close(copy.descriptor)

    def status(self) -> dict[str, Any]:
        """For the operator: no secrets."""
        with self._lock:
            open_now = self._room is not None
            lease = self._lease if open_now else None
            return {
                "name": self.name,
                "archive": str(self.archive),
                "state": "open" if open_now else "withdrawn" if self._withdrawn else "waiting",
                "reason": "" if open_now else f"{type(self._reason).__name__}: {self._reason}",
                "hint": "" if open_now else self._reason.hint,
                "lease": None if lease is None else lease.lease_s,
            }

    def close(self) -> None:
        """Stop asking and give the memory back."""
        self._stop.set()
        with self._lock:
            self._close_room()
            self._reason = ModelUnavailable("the keeper is stopping")


def _end(name: str, holders: set[Peer]) -> None:
    """Kill the workers that were told to end and have not."""
    for peer in holders:
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(peer.pid)
            try:
                if still_there(peer):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    _log.warning("model %s: worker %d had not ended and was killed", name, peer.pid)
            finally:
                os.close(handle)
