"""A worker's line to request keys in the same process: the real `RequestKeys`, without a socket between."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from strongroom.channel.bhttp import Limits, Request, Response
from strongroom.channel.bundle import AdmittedArchive, ServedModel
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form
from strongroom.errors import StrongroomError
from strongroom.evidence.simulated import SimulatedReport
from strongroom.evidence.types import Evidence
from strongroom.keeper.keyring import Allowance, HostKeys, RequestKeys, Surroundings
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.config import Channel
from strongroom.worker.link import Settled
from strongroom.worker.service import Answer, Outer, SealedService

ARCHIVE = ArchiveDigest(bytes([7]) * 32)


class QuietAttester:
    """Simulated evidence without the warning on stderr at every use."""

    tee = "simulated"

    def evidence(self, report_data: bytes) -> Evidence:
        return Evidence("simulated", SimulatedReport.sign(bytes(32), report_data.ljust(64, b"\0"), {}).serialise())


def request_keys(
    kems: tuple[str, ...] = ("x-wing", "x25519", "p-256"), *, clock: Callable[[], float] = time.time
) -> RequestKeys:
    """One model's request keys, as a keeper makes them."""
    channel = Channel(kems=kems, mode="host", rotation=86400, overlap=7200, date_window=300)
    admitted = (AdmittedArchive(ARCHIVE, AuthorId(bytes(32)), "m", 1),)
    return RequestKeys(
        model=ServedModel("m", "1.0", ARCHIVE),
        surroundings=Surroundings(admitted, bytes(32), bytes(32)),
        attester=QuietAttester(),
        source=HostKeys(channel, clock=clock),
        allowance=Allowance(1000, 1000),
    )


class DirectLink:
    """`Link`'s three questions, answered by `keys`."""

    def __init__(self, keys: RequestKeys) -> None:
        self.keys = keys
        self._reserved: dict[bytes, object] = {}

    def open(self, heads: Sequence[tuple[bytes, bytes, bool]]) -> list[tuple[bytes, bytes] | StrongroomError]:
        return [self._open(*each) for each in heads]

    def _open(self, head: bytes, enc: bytes, in_chunks: bool) -> tuple[bytes, bytes] | StrongroomError:
        try:
            reservation, context = self.keys.open(head, enc, Form.CHUNKED if in_chunks else Form.SINGLE)
        except StrongroomError as error:
            return error
        token = secrets.token_bytes(16)
        self._reserved[token] = reservation
        return token, context

    def settle(self, settled: Sequence[Settled]) -> list[StrongroomError | None]:
        return [self._settle(each) for each in settled]

    def _settle(self, each: Settled) -> StrongroomError | None:
        try:
            self.keys.settle(self._reserved.pop(each.reservation), opened=each.opened, date=each.date)
        except StrongroomError as error:
            return error
        return None

    def bundle(self, nonce: bytes | None) -> bytes:
        return self.keys.bundle(nonce)


class Served:
    """A model behind the real service of a worker: `ask` gives the outer answer, `opened` what the model saw."""

    def __init__(self, keys: RequestKeys | None = None, limits: Limits | None = None) -> None:
        self.keys = keys or request_keys()
        self.opened: list[Request] = []
        self._service = SealedService(DirectLink(self.keys), limit=6_553_500, limits=limits or Limits())

    @property
    def offered(self) -> KeyList:
        return self.keys.source.present().keys

    def ask(self, media_type: str, body: bytes) -> Answer:
        return self.batch((media_type, body))[0]

    def batch(self, *items: tuple[str, bytes]) -> list[Answer]:
        return self._service.answer([Outer(*item) for item in items], lambda: self._model)

    def _model(self, requests: Sequence[Request], indices: Sequence[int], stream: object) -> list[Response]:
        self.opened += requests
        return [Response(200, (("content-type", "text/plain"),), b"you said " + each.content) for each in requests]
