"""The keeper as a process: from a configuration and the admitted archives to a listening service.

The launcher hands the admitted list over on stdin, so that it stands in no argument list and no file;
the keeper verifies each archive again from its own read, against the same authors, and holds it to the
digest that was admitted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from strongroom.archive.unseal import VerifiedArchive
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker.statement import KeeperStatement
from strongroom.channel.bundle import AdmittedArchive, ServedModel
from strongroom.encoding import Fields, labelled, parse_json, unhex
from strongroom.errors import ArchiveTampered, ConfigurationInvalid, LaunchRefused, MalformedInput
from strongroom.evidence.init_data import InitData
from strongroom.evidence.types import Attester
from strongroom.keeper.fleet import FleetKeys
from strongroom.keeper.keyring import Allowance, HostKeys, KeySource, RequestKeys, Surroundings
from strongroom.keeper.models import HeldModel
from strongroom.keeper.openings import Openings
from strongroom.keeper.peers import Lineage
from strongroom.keeper.release import Released
from strongroom.keeper.room import SEALS
from strongroom.keeper.service import KeeperService
from strongroom.keeper.sources import ModelKeySource, origin
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.admission import Admitted, Gate
from strongroom.launch.config import BROKER, Channel, Configuration
from strongroom.launch.hardening import harden, lock_memory
from strongroom.launch.measured import trust_roots
from strongroom.launch.words import hardening_words
from strongroom.plugins import Plugins

_log = logging.getLogger(__name__)

NONCE_RATE, NONCE_BURST = 10.0, 40.0
"""Fresh evidence a second, and at once, for all models of a keeper together."""

LARGEST_CHARGE = 16 << 20


@dataclass(frozen=True, slots=True)
class Charge:
    """What a launcher tells its keeper: the archives to hold, where workers will stand, what it read.

    `configuration` is the digest of the configuration and `roots` that of the keys it names
    (`launch.measured.trust_roots`); `init_data` is the text that the guest was started with, for the broker.
    `rooms` is the folder for rooms that are not memory files.
    """

    admitted: tuple[Admitted, ...]
    lineage: Lineage | None
    configuration: bytes
    roots: bytes
    init_data: str | None = None
    rooms: Path | None = None

    def serialise(self) -> bytes:
        """JSON, the exact inverse of `parse`."""
        archives = [
            {
                "name": each.name,
                "path": str(each.path),
                "archive": str(each.archive),
                "author": str(each.author),
                "lineage": each.lineage,
                "version": each.version,
                "model_version": each.model_version,
                "resource": list(each.resource),
                "broker_key": None if each.broker_key is None else each.broker_key.hex(),
            }
            for each in self.admitted
        ]
        charge = {
            "archives": archives,
            "workers": None if self.lineage is None else asdict(self.lineage),
            "configuration": self.configuration.hex(),
            "roots": self.roots.hex(),
            "init_data": self.init_data,
            "rooms": None if self.rooms is None else str(self.rooms),
        }
        return json.dumps(charge).encode()

    @classmethod
    def parse(cls, octets: bytes) -> Self:
        """Raises `MalformedInput`."""
        fields = Fields(
            parse_json(octets, where="the launcher's charge", limit=LARGEST_CHARGE), where="the launcher's charge"
        )
        archives = fields.value("archives")
        if not isinstance(archives, list):
            raise MalformedInput("the launcher's charge: archives is not a list")
        workers = fields.value("workers")
        lineage = None
        if workers is not None:
            read = Fields(workers, where="the launcher's charge: workers")
            root, depth = read.number("root"), read.number("depth", low=1, high=16)
            lineage = Lineage(root, depth, _id(read, "uid"), _id(read, "gid"))
            read.done()
        configuration, roots = fields.hexes("configuration", size=32), fields.hexes("roots", size=32)
        init_data, rooms = fields.value("init_data"), fields.value("rooms")
        fields.done()
        for name, value in (("init_data", init_data), ("rooms", rooms)):
            if value is not None and not isinstance(value, str):
                raise MalformedInput(f"the launcher's charge: {name} is no text")
        admitted = tuple(_admitted(each) for each in archives)
        return cls(admitted, lineage, configuration, roots, init_data, None if rooms is None else Path(rooms))


def _id(read: Fields, name: str) -> int | None:
    value = read.value(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise MalformedInput(f"{read.where}: {name} is no number of a user or group")
    return value


def _admitted(value: Any) -> Admitted:
    read = Fields(value, where="the launcher's charge: an archive")
    broker_key = read.value("broker_key")
    if broker_key is not None and not isinstance(broker_key, str):
        raise MalformedInput(f"{read.where}: broker_key is no text")
    admitted = Admitted(
        name=read.text("name"),
        path=Path(read.text("path")),
        archive=ArchiveDigest.parse(read.text("archive")),
        author=AuthorId.parse(read.text("author")),
        lineage=read.text("lineage"),
        version=read.number("version"),
        model_version=read.text("model_version"),
        resource=_resource(read),
        broker_key=None if broker_key is None else unhex(broker_key),
    )
    read.done()
    return admitted


def _resource(read: Fields) -> tuple[str, str, str]:
    match read.texts("resource", limit=3):
        case (repository, kind, tag):
            return repository, kind, tag
    raise MalformedInput(f"{read.where}: resource has three parts")


def surroundings(admitted: Sequence[Admitted], configuration: Configuration, plugins: Plugins) -> Surroundings:
    """What every piece of channel evidence says beside the keys (docs/protocol.md)."""
    parts = [part for each in plugins.digests() for part in (each.name.encode(), each.digest)]
    return Surroundings(
        admitted=tuple(
            sorted(AdmittedArchive(each.archive, each.author, each.name, each.version) for each in admitted)
        ),
        configuration=configuration.digest,
        plugins=hashlib.sha256(labelled("strongroom plugins v1", *parts)).digest(),
    )


def hold(
    admitted: Sequence[Admitted],
    configuration: Configuration,
    attester: Attester,
    plugins: Plugins,
    *,
    roots: bytes | None = None,
    init_data: str | None = None,
    hardening: tuple[str, ...] = (),
    rooms: Path | None = None,
) -> list[HeldModel]:
    """Make every model's request keys; no archive is read and nobody is asked for a model key yet.

    So an archive that was damaged after it was admitted closes no other model when a keeper starts again. `roots` is
    what the authors' and the broker's keys have to be (`launch.measured.trust_roots`), `rooms` the folder for rooms
    that are not memory files.
    """
    gate = Gate.of(configuration)
    ca, authority = pinned_ca(None if configuration.broker is None else configuration.broker.ca)
    if roots is not None and trust_roots((each.id for each in gate.authors), authority) != roots:
        raise LaunchRefused(
            "the authors' keys or the broker's CA are not those that the launcher read",
            hint="a file was changed meanwhile; launch again",
        )
    around = surroundings(admitted, configuration, plugins)
    allowance = Allowance(NONCE_RATE, NONCE_BURST)
    statement = KeeperStatement(
        keeper=secrets.token_bytes(16),
        archives=tuple(bytes(each.archive) for each in around.admitted),
        authors=tuple(sorted({bytes(each.author) for each in around.admitted})),
        configuration=around.configuration,
        plugins=around.plugins,
        hardening=hardening,
    )
    keys = ModelKeySource.open(configuration, plugins, attester, statement, ca=ca, init_data=init_data)
    models, openings = [], Openings()
    for each in admitted:
        fetch = partial(keys.fetch, each.resource, each.archive)
        source: KeySource
        if configuration.channel.mode == "fleet":
            source = _fleet(each, keys, configuration.channel, fetch)
        else:
            source = HostKeys(configuration.channel)
        served = ServedModel(each.name, each.model_version, each.archive)
        request_keys = RequestKeys(served, around, attester, source, allowance)
        models.append(
            HeldModel(
                each.name,
                each.archive,
                partial(_found, gate, each),
                request_keys,
                fetch,
                grace=configuration.grace,
                idle=configuration.keeper.idle,
                openings=openings,
                rooms=rooms,
            )
        )
    return models


def _found(gate: Gate, admitted: Admitted) -> VerifiedArchive:
    """The archive that was admitted, verified again; raises an `ArchiveError` or `LaunchRefused`."""
    verified = gate.verified(admitted.path)
    if verified.core.digest != admitted.archive:
        verified.close()
        raise ArchiveTampered(
            f"{admitted.path.name} is not the archive that was admitted",
            hint="put that one back, or launch again for this one",
        )
    return verified


def _fleet(admitted: Admitted, keys: ModelKeySource, channel: Channel, release: Callable[[], Released]) -> FleetKeys:
    if admitted.broker_key is None:
        raise LaunchRefused(f"mode fleet needs the broker's key, and the archive of {admitted.name} names none")
    seeds = partial(keys.fetch_epoch, admitted.resource, admitted.archive, admitted.broker_key)
    return FleetKeys(admitted.name, admitted.archive, channel, seeds, release)


def pinned_ca(path: Path | None) -> tuple[Path | None, bytes]:
    """(a path, contents) of the broker's CA, read once: the path is a sealed memory file that nobody changes later."""
    if path is None:
        return None, b""
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise ConfigurationInvalid(f"{path} cannot be read: {error.strerror}", hint="see [broker] ca") from error
    descriptor = os.memfd_create("broker-ca", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, octets)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return Path(f"/proc/self/fd/{descriptor}"), octets


def asserted(
    configuration: Configuration, *, hardening: tuple[str, ...] = (), init_data: str | None = None
) -> dict[str, Any]:
    """What a simulated TEE says about what it serves under, for whoever looks at a verdict."""
    told: dict[str, Any] = {"hardening": list(hardening)}
    if configuration.worker.output == "pass":
        told["worker-output"] = "pass"
    if configuration.keys.provider != BROKER:
        told["key-provider"] = configuration.keys.provider
    if init_data is not None:
        told["init_data"] = InitData.parse(init_data).digest.hex()
    return told


def run(
    configuration: Configuration,
    charge: Charge,
    socket: Path,
    *,
    attester: Attester | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM. `attester` replaces the configured one, for demonstrations.

    `ready` is called when the socket answers, which is before the models are open.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="strongroom keeper: %(message)s")
    harden()
    lock_memory()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each file of each model
    if charge.configuration != configuration.digest:
        raise LaunchRefused(
            "the configuration is not the one that the launcher read", hint="it was changed meanwhile; launch again"
        )
    plugins = Plugins.load(configuration.plugins)
    attester = attester or plugins.attester(configuration.tee)
    own_user = charge.lineage is not None and charge.lineage.uid is not None
    hardening = hardening_words(configuration.worker, own_user=own_user)
    sent = charge.init_data
    if isinstance(attester, SimulatedAttester):  # it can only repeat what it is told, for whoever looks at a verdict
        told = asserted(configuration, hardening=hardening, init_data=charge.init_data)
        attester, sent = attester.asserting(told), None
    if configuration.worker.room != "memory-files" and charge.rooms is None:
        raise LaunchRefused(
            f"room = {configuration.worker.room!r} of [worker] needs the launcher, which makes the folder",
            hint="start with `strongroom launch`, or leave the setting out",
        )
    held = hold(
        charge.admitted,
        configuration,
        attester,
        plugins,
        roots=charge.roots,
        init_data=sent,
        hardening=hardening,
        rooms=charge.rooms,
    )
    _log.info("model keys come from %s", origin(configuration))
    service = KeeperService(
        socket, {model.archive: model for model in held}, charge.lineage, configuration.worker, confined=True
    )

    def stop(*_: object) -> None:
        service.close()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for model in held:
        model.start()
    ready()
    try:
        service.run()
    finally:
        for model in held:
            model.close()
