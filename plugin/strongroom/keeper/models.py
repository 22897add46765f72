"""One admitted model in the keeper: waiting for its key, open under a lease, withdrawn, open again.

A thread asks the broker, opens the archive into a room, renews the lease, and closes the room when the right
to it has ended: at once when the broker says no, after lease and grace when the broker cannot be reached.
Then it asks again for as long as the model is wanted: after 1 s and at most 30 s apart, 60 s after a refusal.
Whoever asks for the model meanwhile gets `ModelUnavailable` at once, or when the time it said it would wait
is over.

A model that no process has needed for a configured time is closed, its memory given back and its key no longer
asked for; the next claim opens it again, with a key that the broker releases anew.

What workers hold by then cannot be taken out of their hands, so a withdrawal is final for them (`holders`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from strongroom.archive.unseal import VerifiedArchive
from strongroom.errors import (
    ArchiveError,
    ArchiveExpired,
    AttestationFailed,
    BrokerUnreachable,
    LeaseExpired,
    ModelOpening,
    ModelUnavailable,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
    StrongroomError,
    WrongKey,
)
from strongroom.keeper.asking import PATIENCE_S, Asking
from strongroom.keeper.demand import Demand
from strongroom.keeper.holders import Holders
from strongroom.keeper.keyring import RequestKeys
from strongroom.keeper.leases import DEFAULT_GRACE_S, Lease, Tenure, boottime
from strongroom.keeper.openings import Openings
from strongroom.keeper.peers import Peer
from strongroom.keeper.release import Released
from strongroom.keeper.room import OpenRoom, RoomFile
from strongroom.keys import ArchiveDigest

_log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE_AFTER_NO = 1.0, 30.0, 60.0
REFUSALS = (ReleaseDenied, ResourceMissing, AttestationFailed)
FIRST_ANSWER_S = PATIENCE_S
"""Beyond the grace, how long workers of an earlier keeper may hold the model until this one has an answer: that of
one question, which is asked within it even where there is no grace."""

_failed = ModelUnavailable("holding it failed, and will be tried again")


class HeldModel:
    """An admitted archive, its request keys, and its room while a key is held. Times in seconds.

    `idle` is after how long without a worker the room is closed, 0 for never. `openings` is what all models of
    a keeper share. `rooms` is the folder for rooms that are not memory files. `find` verifies the archive at its path:
    before the first opening, and again after one that failed, for a file that was mended.
    """

    def __init__(
        self,
        name: str,
        archive: ArchiveDigest,
        find: Callable[[], VerifiedArchive],
        keys: RequestKeys,
        release: Callable[[], Released],
        *,
        grace: int = DEFAULT_GRACE_S,
        idle: float = 0,
        openings: Openings | None = None,
        rooms: Path | None = None,
    ) -> None:
        self.name = name
        self.archive = archive
        self.keys = keys
        self._find = find
        self._verified: VerifiedArchive | None = None
        self._release = Asking(release, left=self._left)
        self._grace = grace
        self._demand = Demand(idle)
        self._openings = openings or Openings()
        self._rooms = rooms
        self._resting = False
        self._room: OpenRoom | None = None
        self._lease: Lease | None = None
        self._withdrawn = False
        self._unproven_until = boottime() + grace + FIRST_ANSWER_S  # what workers of an earlier keeper hold
        self._holders = Holders(name)
        self._reason: StrongroomError = ModelUnavailable("the key has not been asked for yet")
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._trying = self._opening = False
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to ask for the key, in a thread of its own."""
        self._trying = True
        threading.Thread(target=self._run, name=f"model {self.name}", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Until the model is open or the present attempt has failed, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._room is not None or not self._trying, seconds)

    # -- asking and holding -------------------------------------------------------------

    def _run(self) -> None:
        """For the life of the keeper: what failed so badly that it could not be handled leaves no model open."""
        while not self._stop.is_set():
            try:
                self._pursue()
            except BaseException:  # as a rule no memory, not even for an error's own words
                self._give_up()
            self._stop.wait(FIRST_PAUSE)

    def _give_up(self) -> None:
        """Withdraw with as little as possible; none of it may keep the rest from being done."""
        with self._lock:
            self._reason, self._withdrawn, self._resting = _failed, True, False
            try:  # noqa: SIM105 - where there is no memory, there is none for a context either
                self._close_room()
            except BaseException:  # noqa: S110 - it is no longer ours all the same
                pass
            try:  # noqa: SIM105
                self._holders.dismiss()
            except BaseException:  # noqa: S110 - the next failed attempt, or their next question, tells them
                pass
            self._note(trying=False)

    def _pursue(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            self._note(trying=True)
            try:
                self._hold()
                pause = FIRST_PAUSE
            except StrongroomError as error:
                self._not_open(error)
                self._stop.wait(pause)
                longest = LONGEST_PAUSE_AFTER_NO if isinstance(error, REFUSALS) else LONGEST_PAUSE
                pause = min(2 * pause, longest)
            except Exception as error:  # a bug of ours may not leave a model open without a lease
                self._not_open(ReleaseError(f"holding it failed with {type(error).__name__}"))
                self._stop.wait(LONGEST_PAUSE)
            if not self._stop.is_set() and self._demand.over():  # nothing is open here
                self._rest()

    def _hold(self) -> None:
        """Get the key, open, and stay until the right or the need has ended; raises where it never began.

        Nothing is open when it returns.
        """
        if self._verified is None:
            self._verified = self._find()
        verified = self._verified
        verified.check_expiry(time.time())
        size = verified.core.payload_length
        self._openings.check(size)
        released = self._release()
        answered_at = boottime()
        self._note(trying=True, opening=True)
        self._check_terms(verified, released)
        verified.check_key(released.key)  # without it nothing else counts
        if released.broker_time is not None:  # the guest's clock may be behind
            verified.check_expiry(released.broker_time)
        self._proven(released)
        try:
            with self._openings.turn(size) as threads:
                room = OpenRoom.open(verified.unlock(released.key), threads=threads, rooms=self._rooms)
        except ArchiveError:
            self._verified = None
            verified.close()
            raise
        try:
            self.keys.source.opened(released, answered_at)
        except BaseException:
            room.close()
            raise
        tenure = Tenure(
            released, lambda: self._renewed(verified), drop=self._withdraw, restore=lambda _: None, grace_s=self._grace
        )
        del released  # the key has done its work
        with self._lock:
            self._room, self._lease, self._withdrawn = room, tenure.lease, False
            self._unproven_until = float("inf")  # from now on whoever holds the model does so under our lease
            if self._stop.is_set():
                self._close_room()
            self._note(trying=False)
        until = "without end" if tenure.lease.lease_s is None else f"for {tenure.lease.lease_s} s at a time"
        _log.info("model %s is open %s: %d files", self.name, until, len(room.files))
        while tenure.held and not self._stop.is_set():
            wait = min(tenure.step(), 60.0, self._demand.patience / 4 or 60.0)
            with self._lock:
                if tenure.lease is not self._lease and tenure.lease.broker_time is not None:
                    self.keys.source.told(tenure.lease.broker_time, tenure.lease.started, boottime())
                self._lease = tenure.lease
            self._stop.wait(wait)
            with self._lock:
                self._holders.forget_the_dead()
                if self._room is None:  # somebody asked and found the lease over, before this thread did
                    return
            told = tenure.lease.broker_now()
            try:
                verified.check_expiry(time.time() if told is None else told)
            except ArchiveExpired as error:
                self._withdraw(error)
                return
            if self._demand.over() and self._rest():
                return

    def _proven(self, released: Released) -> None:
        """Workers of an earlier keeper may hold the model as long as this lease says, however long opening takes."""
        lease = Lease.start(released.lease_s, None, asked_at=released.asked_at, grace_s=self._grace)
        with self._lock:
            self._unproven_until = lease.ends + lease.grace_s

    def _check_terms(self, verified: VerifiedArchive, released: Released) -> None:
        if verified.core.lease_required and released.lease_s is None:
            raise ReleaseDenied(
                f"the archive of {self.name} may be opened only under a lease, and its key came without one",
                hint="use a source that grants leases, as a strongroom broker does, or seal without --lease-required",
            )

    def _renewed(self, verified: VerifiedArchive) -> Released:
        """The next lease. It counts only with the archive's key beside it: anybody can encrypt an answer to us, and
        only who knows the key can have written that one (docs/release.md section 10). Any other answer is none.
        """
        released = self._release()
        try:
            verified.check_key(released.key)
        except WrongKey as error:
            raise BrokerUnreachable(
                "a renewal came with another key than the archive's",
                hint="somebody answers in the broker's place, or the broker holds another key under this name",
            ) from error
        self._check_terms(verified, released)
        return released

    def _left(self) -> float:
        """Seconds for which what is open may stay so without an answer from the broker."""
        with self._lock:
            return float("inf") if self._room is None or self._lease is None else self._lease.left()

    def _rest(self) -> bool:
        """Give back what nobody needs, and wait for somebody who does; False, and nothing is done, where somebody came
        after `over` was asked: whoever is lent the files is noted first, and must not be left with them and no lease.
        """
        with self._lock:
            if self._demand.wanted:
                return False
            self._close_room()
            self._lease, self._resting = None, True
            self._reason = ModelUnavailable(
                f"no worker has needed it for {self._demand.patience:.0f} s", hint="the next worker opens it again"
            )
        _log.info("model %s is closed: %s", self.name, self._reason)
        self._demand.wait()
        with self._lock:
            self._resting = False
            self._reason = ModelUnavailable("the key is being asked for again")
            self._note(trying=True)
        return True

    def _note(self, *, trying: bool, opening: bool = False) -> None:
        with self._changed:
            self._trying, self._opening = trying, opening
            self._changed.notify_all()

    def _not_open(self, error: StrongroomError) -> None:
        self._withdraw(error)  # as a rule nothing is open; what is may not stay so without a lease
        with self._lock:
            self._reason = _bare(error)
            self._note(trying=False)
            if isinstance(error, (*REFUSALS, ArchiveExpired)):
                self._withdrawn = True
            if self._unheld():
                self._holders.dismiss()  # workers of a keeper before this one may still hold the model
        _log.warning("model %s is not open: %s: %s", self.name, type(error).__name__, error)

    def _withdraw(self, error: StrongroomError) -> None:
        """Close the room and see that no worker keeps what it was given."""
        with self._lock:
            if self._room is None:
                return
            self._reason, self._withdrawn = _bare(error), True
            try:
                self._close_room()
            finally:
                self._holders.dismiss()
        _log.warning("model %s is withdrawn: %s: %s", self.name, type(error).__name__, error)

    def _close_room(self) -> None:
        room, self._room = self._room, None
        if room is None:
            return
        try:
            room.close()
        finally:
            self.keys.source.closed()

    # -- answering ------------------------------------------------------------------------

    def claimed(self, peer: Peer) -> None:
        """A process serves this model from now on: open it again if it was closed, and keep it open."""
        self._demand.note(peer)
        with self._lock:
            self._trying = self._trying or self._resting  # so that whoever waits now waits for that

    def check_open(self) -> None:
        """Raises `ModelUnavailable` with the class of the reason while the model is not open."""
        with self._lock:
            self._checked()

    def check_held(self, peer: Peer) -> None:
        """Raises `ModelUnavailable` once the right to the model was refused or has ended, and then `peer` has to end.

        Not while the first answer is awaited: a keeper that was just restarted knows nothing yet. But a lease of the
        keeper before it is not prolonged without end, so an answer is awaited for grace and `FIRST_ANSWER_S`.
        """
        with self._lock:
            self._holders.add(peer)  # who asks holds the model, perhaps since an earlier keeper
            if self._room is not None:
                self._checked()
            if self._unheld():
                self._holders.dismiss()
                raise ModelUnavailable(f"model {self.name} is withdrawn: {type(self._reason).__name__}")

    def _unheld(self) -> bool:
        """Whether no worker may hold the model any longer."""
        return self._withdrawn or (self._room is None and boottime() >= self._unproven_until)

    def _checked(self) -> OpenRoom:
        if self._room is not None and self._lease is not None and self._lease.expired():
            # The renewing thread may be waiting for a slow broker; that prolongs nothing.
            self._withdraw(LeaseExpired("the lease and its grace are over", hint="the broker has not answered since"))
        if self._room is None and self._opening:
            raise ModelOpening(f"model {self.name} is being opened", hint="it will be there in a moment")
        if self._room is None:
            # Peers learn the class of a failure; that nothing has failed yet may be said in words.
            own = type(self._reason) is ModelUnavailable
            raise ModelUnavailable(
                f"model {self.name} is not open: {self._reason if own else type(self._reason).__name__}",
                hint="the keeper's log has the detail; it keeps asking by itself",
            )
        return self._room

    @contextlib.contextmanager
    def lent(self, peer: Peer, *, patience: float = 0.0) -> Iterator[OpenRoom]:
        """The room for one worker; its descriptors are open for the length of the block.

        Waits for up to `patience` seconds for an attempt that is under way. Raises `ModelUnavailable`, of it
        `ModelOpening` while the opening itself is what takes the time. The descriptors are duplicates: a room that
        closes meanwhile must not leave numbers that mean other files.
        """
        self.claimed(peer)
        copies: list[RoomFile] = []
        self.wait(patience)
        try:
            with self._lock:
                room = self._checked()
                for file in room.files:
                    copies.append(RoomFile(file.name, file.size, os.dup(file.descriptor)))
                self._holders.add(peer)
            yield OpenRoom(copies, room.folder)
        finally:
            for copy in copies:
                os.close(copy.descriptor)

    def status(self) -> dict[str, Any]:
        """For the operator: no secrets."""
        with self._lock:
            opened = self._room is not None
            epoch, missing = self.keys.source.status() if opened else (None, self._reason)
            lease = self._lease if opened else None
            return {
                "name": self.name,
                "archive": str(self.archive),
                "state": "open" if missing is None else "waiting" if opened else self._state(),
                "trying": self._trying,
                "reason": "" if missing is None else f"{type(missing).__name__}: {missing}",
                "hint": "" if missing is None else missing.hint,
                "lease": None if lease is None else lease.lease_s,
                "epoch": epoch,
            }

    def _state(self) -> str:
        if self._room is not None:
            return "open"
        return "idle" if self._resting else "withdrawn" if self._withdrawn else "waiting"

    def close(self) -> None:
        """Stop asking and give the memory back."""
        self._stop.set()
        self._demand.stop()
        with self._lock:
            self._close_room()
            self._reason = ModelUnavailable("the keeper is stopping")
            self._note(trying=False)


def _bare(error: StrongroomError) -> StrongroomError:
    """The error to be kept as a reason, without the frames that it came through: those may hold a model key."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
