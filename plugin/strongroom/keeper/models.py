"""One admitted model in the keeper: waiting for its key, open, or waiting again.

A thread asks the broker, opens the archive into a room, and keeps asking for as long as the model is
wanted: after 1 s and at most 30 s apart while the broker cannot be reached, 60 s after a refusal. Nobody
waits on it: whoever asks for the model meanwhile gets `ModelUnavailable` at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from strongroom.archive.unseal import VerifiedArchive
from strongroom.errors import AttestationFailed, ModelUnavailable, ReleaseDenied, ResourceMissing, StrongroomError
from strongroom.keeper.keyring import RequestKeys
from strongroom.keeper.room import MemoryFile, OpenRoom
from strongroom.keys import ArchiveDigest, ModelKey

_log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE, PAUSE_AFTER_NO = 1.0, 30.0, 60.0
REFUSALS = (ReleaseDenied, ResourceMissing, AttestationFailed)


class HeldModel:
    """A verified archive, its request keys, and its room once the key is here."""

    def __init__(
        self, name: str, verified: VerifiedArchive, keys: RequestKeys, release: Callable[[], ModelKey]
    ) -> None:
        self.name = name
        self.archive: ArchiveDigest = verified.core.digest
        self.keys = keys
        self._verified = verified
        self._release = release
        self._room: OpenRoom | None = None
        self._reason: StrongroomError = ModelUnavailable("the key has not been asked for yet")
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to ask for the key, in a thread of its own."""
        threading.Thread(target=self._pursue, name=f"model {self.name}", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Until the first attempt ended, in whatever way, or the time is over."""
        self._settled.wait(seconds)

    def _pursue(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                room = OpenRoom.open(self._verified.unlock(self._release()))
            except StrongroomError as error:
                with self._lock:
                    self._reason = error
                _log.warning("model %s is not open: %s: %s", self.name, type(error).__name__, error)
                self._settled.set()
                self._stop.wait(PAUSE_AFTER_NO if isinstance(error, REFUSALS) else pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            with self._lock:
                self._room = room
            _log.info("model %s is open: %d files", self.name, len(room.files))
            self._settled.set()
            return

    def check_open(self) -> None:
        """Raises `ModelUnavailable` with the class of the reason while the model is not open."""
        with self._lock:
            self._checked()

    def _checked(self) -> OpenRoom:
        if self._room is None:
            raise ModelUnavailable(
                f"model {self.name} is not open: {type(self._reason).__name__}",
                hint="the keeper's log has the detail; it keeps asking by itself",
            )
        return self._room

    def files(self) -> tuple[MemoryFile, ...]:
        """The sealed memory files; raises `ModelUnavailable`."""
        with self._lock:
            return self._checked().files

    def status(self) -> dict[str, Any]:
        """For the operator: no secrets."""
        with self._lock:
            open_now = self._room is not None
            return {
                "name": self.name,
                "archive": str(self.archive),
                "state": "open" if open_now else "waiting",
                "reason": "" if open_now else f"{type(self._reason).__name__}: {self._reason}",
                "hint": "" if open_now else self._reason.hint,
            }

    def close(self) -> None:
        """Stop asking and give the memory back."""
        self._stop.set()
        with self._lock:
            if self._room is not None:
                self._room.close()
                self._room = None
            self._reason = ModelUnavailable("the keeper is stopping")
