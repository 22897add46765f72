"""A worker's line to the keeper.

One connection, reopened when it breaks: the keeper may be restarted at any time. Each question has a
time limit; no answer is an error (`KeeperUnavailable`), never a wait without end.

Messages (docs/keeper.md): ``model`` asks for an archive's memory files, ``open`` hands in the
encapsulations of a batch and gets one context each, ``settle`` says which of them opened, ``bundle``
asks for the key bundle, ``settings`` for the configuration's ``[worker]`` table. Errors come back by class.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom import errors
from strongroom.channel.padding import NO_PADDING, NO_STREAM_PADDING, Padding, StreamPadding
from strongroom.channel.replay import DateTerms
from strongroom.encoding import Fields
from strongroom.errors import DateRefused, KeeperRefused, KeeperUnavailable, MalformedInput, StrongroomError
from strongroom.keeper import wire
from strongroom.keys import ArchiveDigest

SOCKET_VARIABLE = "STRONGROOM_KEEPER"
"""Names the keeper's socket for workers. A wrong value leads to no keeper, and so to no model."""

DEFAULT_SOCKET = Path("/run/strongroom/keeper.sock")

_CLASSES = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, StrongroomError)
}


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """One member of a model: its path inside the archive, its size in bytes, and a sealed memory file."""

    name: str
    size: int
    descriptor: int


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration's ``[worker]`` table, as far as it concerns one model (docs/configuration.md).

    `gather` is in seconds; an empty `envelope` means none.
    """

    gather: float = 0.020
    padding: Padding = NO_PADDING
    stream_padding: StreamPadding = NO_STREAM_PADDING
    envelope: str = ""
    rerun: bool = False
    grpc_streaming: bool = False
    output: str = "drop"
    network: str = "deny"
    disk: str = "deny"
    room: str = "memory-files"

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Settings:
        """From the keeper's answer; raises `MalformedInput`."""
        read = Fields(answer, where="the keeper's settings")
        return cls(
            gather=read.number("gather") / 1000,
            padding=Padding(read.text("padding", limit=64)),
            stream_padding=StreamPadding(read.text("stream_padding", limit=64)),
            envelope=read.text("envelope", limit=64),
            rerun=read.truth("rerun"),
            grpc_streaming=read.truth("grpc_streaming"),
            output=read.text("output", limit=16),
            network=read.text("network", limit=16),
            disk=read.text("disk", limit=16),
            room=read.text("room", limit=16),
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one encapsulation: whether it opened, and the inner Date (seconds since 1970) if any."""

    reservation: bytes
    opened: bool
    date: int | None


class Link:
    """The keeper, seen from a worker of one archive. Safe to use from several threads, one at a time."""

    def __init__(self, archive: ArchiveDigest, path: Path | None = None, *, seconds: float = 20.0) -> None:
        self._archive = archive
        self._path = path or Path(os.environ.get(SOCKET_VARIABLE, DEFAULT_SOCKET))
        self._seconds = seconds
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._reserved: set[bytes] = set()  # by this connection, and not settled
        self._unsent: list[list[Any]] = []  # settlements that travel with the next question, or by `flush`
        self._terms: DateTerms | None = None

    def another(self) -> Link:
        """A second line to the same keeper, for the same archive."""
        return Link(self._archive, self._path, seconds=self._seconds)

    def model(self, *, wait: int = 0) -> list[ReceivedFile] | Path:
        """The model's files, or the folder in which they lie (docs/keeper.md, rooms).

        The keeper waits up to `wait` seconds (at most 15) for an attempt that is under way. Raises
        `ModelUnavailable` while the key is not released, `ModelOpening` while the model is being opened.
        """
        with self._lock:
            answer = self._ask({"op": "model", "wait": wait})
            if answer["folder"] is not None:
                return Path(answer["folder"])
            described = [(str(name), int(size)) for name, size in answer["files"]]
            assert self._connection is not None
            descriptors = wire.receive_descriptors(self._connection, len(described))
        return [ReceivedFile(name, size, fd) for (name, size), fd in zip(described, descriptors, strict=True)]

    def open(self, heads: Sequence[tuple[bytes, bytes, bool]]) -> list[tuple[bytes, bytes] | StrongroomError]:
        """One context for each (head, enc, chunked): (reservation, serialised context), or why not."""
        with self._lock:
            question: dict[str, Any] = {"op": "open", "heads": [list(each) for each in heads]}
            if self._unsent:
                question["settled"], self._unsent = self._unsent, []
            answer = self._ask(question)
            contexts = answer["contexts"]
            if len(contexts) != len(heads):
                raise KeeperUnavailable(f"the keeper answered {len(contexts)} of {len(heads)} encapsulations")
            granted = [
                _error(each) if isinstance(each, dict) else (bytes(each[0]), bytes(each[1])) for each in contexts
            ]
            self._terms = DateTerms(*answer["terms"])
            self._reserved.update(each[0] for each in granted if isinstance(each, tuple))
        return granted

    def settle(self, settled: Sequence[Settled]) -> list[StrongroomError | None]:
        """Say which reservations opened, before any of their requests is acted on.

        For each, None, or why it must not be acted on: by the terms that came with `open`. Until the keeper hears
        of a settlement, a second copy is refused anyway, and if this process dies the request counts as opened. So
        what opened may be told with the next question; what did not is told now, since its sender may try again.
        """
        with self._lock:
            refused = [self._refusal(each) for each in settled]
            self._unsent += ([each.reservation, each.opened, each.date] for each in settled)
            if not all(each.opened for each in settled):
                self._flush()
        return refused

    def flush(self) -> None:
        """Tell what is settled and not told yet; for a thread that looks once a second."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if not self._unsent or self._connection is None:
            return
        settled, self._unsent = self._unsent, []
        try:
            wire.send(self._connection, {"op": "settle", "settled": settled})
        except KeeperUnavailable:
            self.close()  # what was reserved by this connection counts as opened

    def _refusal(self, settled: Settled) -> StrongroomError | None:
        if settled.reservation not in self._reserved:
            raise KeeperRefused("no such reservation is held by this connection")
        self._reserved.remove(settled.reservation)
        if not settled.opened or self._terms is None:
            return None
        try:
            self._terms.check(settled.date)
        except DateRefused as refusal:
            return refusal
        return None

    def bundle(self, nonce: bytes | None) -> bytes:
        """The key bundle as JSON, made over `nonce` (32 bytes) or from the cache."""
        with self._lock:
            return bytes(self._ask({"op": "bundle", "nonce": nonce})["bundle"])

    def settings(self) -> Settings:
        """How this model is served; the keeper read it from the measured configuration."""
        with self._lock:
            return Settings.parse(self._ask({"op": "settings"}))

    def held(self) -> None:
        """Raises `ModelUnavailable` once the keeper may no longer hold this model, and so nobody else."""
        with self._lock:
            self._ask({"op": "held"})

    def close(self) -> None:
        """Drop the connection; the next question opens another."""
        self._reserved.clear()
        self._unsent.clear()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        fresh = self._connection is None
        try:
            return self._ask_once(question)
        except KeeperUnavailable:
            self.close()
            if fresh:
                raise
        except MalformedInput:
            self.close()
            raise
        # The old connection had died quietly. A keeper that was restarted has forgotten every
        # reservation with the keys they belonged to, so asking again repeats nothing.
        question.pop("settled", None)
        try:
            return self._ask_once(question)
        except KeeperUnavailable:
            self.close()
            raise

    def _ask_once(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._connection is None:
            self._connection = self._connect()
            self._answer({"op": "claim", "archive": bytes(self._archive)})
        return self._answer(question)

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._connection is not None
        wire.send(self._connection, question)
        answer = wire.receive(self._connection)
        if not isinstance(answer, dict):
            raise MalformedInput("the keeper's answer is not an object")
        if "error" in answer:
            raise _error(answer)
        return answer

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        wire.limit_waiting(connection, self._seconds)
        try:
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            raise KeeperUnavailable(
                f"no keeper answers at {self._path}: {error.strerror}",
                hint="start the server with `strongroom launch -- torchserve …`, or run `strongroom keeper`",
            ) from error
        return connection


def _error(answer: dict[str, Any]) -> StrongroomError:
    """The keeper's refusal as the exception it was there; an unknown class becomes `KeeperRefused`."""
    kind = _CLASSES.get(str(answer.get("error")), errors.KeeperRefused)
    return kind(str(answer.get("message", ""))[:500], hint=str(answer.get("hint", ""))[:500])
