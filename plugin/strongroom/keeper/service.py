"""The keeper's door: one thread for each worker's connection, every frame read as hostile.

The protocol is docs/keeper.md. What is refused goes back by class; the detail is in our own log. Nothing
that arrives here can make the keeper show a private key, another model's files, or a second context for
the same request.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from strongroom.archive.errand import Errand
from strongroom.channel.ohttp import Form
from strongroom.channel.replay import Reservation
from strongroom.encoding import Fields
from strongroom.errors import KeeperRefused, KeeperUnavailable, MalformedInput, StrongroomError
from strongroom.keeper import wire
from strongroom.keeper.models import HeldModel
from strongroom.keeper.peers import Lineage, Peer, Peers, peer_of
from strongroom.keys import ArchiveDigest
from strongroom.launch.config import Worker
from strongroom.launch.hardening import check_hardened

_log = logging.getLogger(__name__)

MOST_AT_ONCE = 4096
"""Encapsulations of one `open`; TorchServe's batches are far smaller."""


MOST_CONNECTIONS = 1024
MOST_PATIENCE_S = 15
"""Seconds that a worker may have the keeper wait for a model that is being opened."""

UNCLAIMED_S = 10.0
"""Seconds in which a connection has to claim a model, or to ask its one question."""

SHORTAGES = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED])
"""What accept(2) says of the moment and not of the socket."""

SHORTAGE_PAUSE_S = 0.1


class KeeperService:
    """Listens on a unix socket and answers for its models until `close`.

    The socket is its owner's alone, and where workers have a user of their own, also of that user's group.
    """

    def __init__(
        self,
        path: Path,
        models: Mapping[ArchiveDigest, HeldModel],
        lineage: Lineage | None,
        worker: Worker | None = None,
        *,
        confined: bool = False,
    ) -> None:
        """`confined` holds workers to `launch.hardening.check_hardened` before they get anything."""
        self._confined = confined
        self._lines: list[Errand] = []
        self._models = dict(models)
        self._worker = worker or Worker()
        self._peers = Peers(lineage)
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(before)
        if lineage is not None and lineage.gid is not None:
            os.chown(path, -1, lineage.gid)
            path.chmod(0o660)
        self._socket.listen(64)

    def run(self) -> None:
        """Accept until the socket is closed."""
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in SHORTAGES:
                    return
                time.sleep(SHORTAGE_PAUSE_S)  # others go on, and the one who knocks waits
                continue
            if len(self._lines) >= MOST_CONNECTIONS:
                self._lines = [each for each in self._lines if not each.over]
            if len(self._lines) >= MOST_CONNECTIONS:
                connection.close()  # whoever fills the house keeps others out, and no more
                continue
            try:
                self._lines.append(Errand(partial(self._serve, connection)))
            except RuntimeError:  # the kernel gives no more threads
                connection.close()
            del connection  # the thread's alone: it is closed even where the thread never ran

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            conversation: Conversation | None = None
            wire.limit_waiting(connection, UNCLAIMED_S)
            try:
                conversation = Conversation(
                    connection, peer_of(connection), self._peers, self._models, self._worker, self._confined
                )
                claimed = False
                while True:
                    limit = wire.LIMIT if conversation.claimed else wire.FIRST_LIMIT
                    conversation.answer(wire.receive(connection, limit=limit))
                    if conversation.claimed and not claimed:
                        claimed = True
                        wire.limit_waiting(connection, 0)
            except KeeperUnavailable:
                pass  # the worker hung up
            except StrongroomError as error:
                _log.warning("a worker's connection was closed: %s", error)
            except Exception as error:  # nothing a peer sends may end the keeper; the class alone is logged
                _log.error("a worker's connection broke: %s", type(error).__name__)
            finally:
                if conversation is not None:
                    conversation.abandon()


class Conversation:
    """What one connection may still do, and the reservations it holds."""

    def __init__(
        self,
        connection: socket.socket,
        peer: Peer,
        peers: Peers,
        models: Mapping[ArchiveDigest, HeldModel],
        worker: Worker,
        confined: bool,
    ) -> None:
        self._worker = worker
        self._unchecked = confined
        self._connection, self._peer, self._peers, self._models = connection, peer, peers, models
        self._model: HeldModel | None = None
        self._reserved: dict[bytes, Reservation] = {}

    @property
    def claimed(self) -> bool:
        """Whether the peer has said which model it serves, and may stay."""
        return self._model is not None

    def answer(self, frame: Any) -> None:
        """One question, one answer; a refusal is an answer too. A settlement has none, and must be right."""
        if isinstance(frame, dict) and frame.get("op") in ("settle", "open") and "settled" in frame:
            self._settle(frame.pop("settled"))
            if frame == {"op": "settle"}:
                return
        with contextlib.ExitStack() as lent:
            descriptors: list[int] = []
            try:
                question = Fields(frame, where="a worker's question")
                answer = self._answers(question, descriptors, lent)
                question.done()
            except StrongroomError as error:
                answer, descriptors = _refusal(error), []
            wire.send(self._connection, answer)
            wire.send_descriptors(self._connection, descriptors)

    def _answers(self, question: Fields, descriptors: list[int], lent: contextlib.ExitStack) -> dict[str, Any]:
        op = question.text("op", limit=16)
        if op == "status":
            self._peers.same_user(self._peer)
            return {"models": [model.status() for model in self._models.values()]}
        if op == "claim":
            return self._claim(question)
        model = self._model
        if model is None:
            raise KeeperRefused("the first question of a worker is its claim")
        if op == "settings":
            return _settings(self._worker, model.name)
        if op == "held":
            model.check_held(self._peer)
            return {}
        if op == "bundle":
            nonce = question.value("nonce")
            if nonce is not None and (not isinstance(nonce, bytes) or len(nonce) != 32):
                raise MalformedInput("a nonce has 32 bytes")
            return {"bundle": model.keys.bundle(nonce)}
        self._check_confined()
        if op == "model":
            patience = question.number("wait", high=MOST_PATIENCE_S, default=0)
            room = lent.enter_context(model.lent(self._peer, patience=patience))
            if room.folder is None:
                descriptors += [file.descriptor for file in room.files]
            folder = None if room.folder is None else str(room.folder)
            return {"files": [[file.name, file.size] for file in room.files], "folder": folder}
        if op == "open":
            contexts = [self._open(model, each) for each in _listed(question.value("heads"), "heads")]
            return {"contexts": contexts, "terms": list(model.keys.terms())}
        raise KeeperRefused(f"{op!r} is not a question")

    def _check_confined(self) -> None:
        """What the kernel lets no process undo is looked at once a connection."""
        if self._unchecked:
            check_hardened(self._peer.pid)
            self._unchecked = False

    def _claim(self, question: Fields) -> dict[str, Any]:
        archive = question.value("archive")
        self._peers.admit(self._peer)
        model = self._models.get(ArchiveDigest(archive)) if isinstance(archive, bytes) and len(archive) == 32 else None
        if model is None:
            raise KeeperRefused("this keeper holds no such archive", hint="was it admitted? see the launcher's output")
        self._peers.bind(self._peer, model.archive)
        model.claimed(self._peer)
        self._model = model
        return {}

    def _open(self, model: HeldModel, item: Any) -> Any:
        try:
            if (
                not isinstance(item, list)
                or len(item) != 3
                or not isinstance(item[0], bytes)
                or not isinstance(item[1], bytes)
            ):
                raise MalformedInput("an encapsulation is [head, enc, chunked]")
            model.check_open()
            reservation, context = model.keys.open(item[0], item[1], Form.CHUNKED if item[2] else Form.SINGLE)
        except StrongroomError as error:
            return _refusal(error)
        token = secrets.token_bytes(16)
        self._reserved[token] = reservation
        return [token, context]

    def _settle(self, settled: Any) -> None:
        """What became of reservations; whatever is wrong ends the connection, and what it holds counts as used."""
        if self._model is None:
            raise KeeperRefused("the first question of a worker is its claim")
        for item in _listed(settled, "settled"):
            if not isinstance(item, list) or len(item) != 3 or not isinstance(item[0], bytes):
                raise MalformedInput("a settlement is [reservation, opened, date]")
            reservation = self._reserved.pop(item[0], None)
            if reservation is None:
                raise KeeperRefused("no such reservation is held by this connection")
            date = item[2] if isinstance(item[2], int) and not isinstance(item[2], bool) else None
            self._model.keys.record(reservation, opened=item[1] is not False, date=date)

    def abandon(self) -> None:
        """The worker is gone: what it had reserved counts as used."""
        if self._model is not None:
            for reservation in self._reserved.values():
                self._model.keys.abandon(reservation)
        self._reserved.clear()


def _settings(worker: Worker, model: str) -> dict[str, Any]:
    return {
        "gather": worker.gather,
        "padding": worker.padding.policy,
        "stream_padding": worker.stream_padding.policy,
        "envelope": worker.envelopes.get(model, ""),
        "rerun": worker.rerun,
        "grpc_streaming": worker.grpc_streaming,
        "output": worker.output,
        "network": worker.network,
        "disk": worker.disk,
        "room": worker.room,
    }


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST_AT_ONCE:
        raise MalformedInput(f"{name} is not a list of at most {MOST_AT_ONCE}")
    return value


def _refusal(error: StrongroomError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error), "hint": error.hint}
