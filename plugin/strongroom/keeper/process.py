"""The keeper as a process: from a configuration and the admitted archives to a listening service.

The launcher hands the admitted list over on stdin, so that it stands in no argument list and no file;
the keeper verifies each archive again from its own read, against the same authors, and holds it to the
digest that was admitted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker.statement import KeeperStatement
from strongroom.channel.bundle import AdmittedArchive, ServedModel
from strongroom.encoding import Fields, labelled, parse_json, unhex
from strongroom.errors import ArchiveTampered, LaunchRefused, MalformedInput
from strongroom.evidence.types import Attester
from strongroom.keeper.keyring import Allowance, RequestKeys, Surroundings
from strongroom.keeper.models import HeldModel
from strongroom.keeper.peers import Lineage
from strongroom.keeper.service import KeeperService
from strongroom.keeper.sources import ModelKeySource, origin
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.admission import Admitted, Gate
from strongroom.launch.config import BROKER, Configuration
from strongroom.launch.hardening import harden
from strongroom.plugins import Plugins

_log = logging.getLogger(__name__)

NONCE_RATE, NONCE_BURST = 10.0, 40.0
"""Fresh evidence a second, and at once, for all models of a keeper together."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What a launcher tells its keeper: the archives to hold, where workers will stand, the configuration's digest."""

    admitted: tuple[Admitted, ...]
    lineage: Lineage | None
    configuration: bytes

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
            }
            for each in self.admitted
        ]
        workers = None if self.lineage is None else {"root": self.lineage.root, "depth": self.lineage.depth}
        charge = {"archives": archives, "workers": workers, "configuration": self.configuration.hex()}
        return json.dumps(charge).encode()

    @classmethod
    def parse(cls, octets: bytes) -> Self:
        """Raises `MalformedInput`."""
        fields = Fields(parse_json(octets, where="the launcher's charge"), where="the launcher's charge")
        archives = fields.value("archives")
        if not isinstance(archives, list):
            raise MalformedInput("the launcher's charge: archives is not a list")
        workers = fields.value("workers")
        lineage = None
        if workers is not None:
            read = Fields(workers, where="the launcher's charge: workers")
            lineage = Lineage(read.number("root"), read.number("depth", low=1, high=16))
            read.done()
        configuration = unhex(fields.text("configuration", limit=64), where="the launcher's charge")
        fields.done()
        return cls(tuple(_admitted(each) for each in archives), lineage, configuration)


def _admitted(value: Any) -> Admitted:
    read = Fields(value, where="the launcher's charge: an archive")
    admitted = Admitted(
        name=read.text("name"),
        path=Path(read.text("path")),
        archive=ArchiveDigest.parse(read.text("archive")),
        author=AuthorId.parse(read.text("author")),
        lineage=read.text("lineage"),
        version=read.number("version"),
        model_version=read.text("model_version"),
    )
    read.done()
    return admitted


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
    admitted: Sequence[Admitted], configuration: Configuration, attester: Attester, plugins: Plugins
) -> list[HeldModel]:
    """Verify every archive again and make its keys; nobody is asked for a model key yet."""
    gate = Gate(configuration.admission, leased=configuration.keys.leased)
    around = surroundings(admitted, configuration, plugins)
    allowance = Allowance(NONCE_RATE, NONCE_BURST)
    statement = KeeperStatement(
        keeper=secrets.token_bytes(16),
        archives=tuple(bytes(each.archive) for each in around.admitted),
        authors=tuple(sorted({bytes(each.author) for each in around.admitted})),
        configuration=around.configuration,
        plugins=around.plugins,
    )
    client = ModelKeySource.open(configuration, plugins, attester, statement)
    models = []
    for each in admitted:
        verified = gate.verified(each.path)
        if verified.core.digest != each.archive:
            raise ArchiveTampered(
                f"{each.path.name} is not the archive that was admitted", hint="it was replaced; launch again"
            )
        keys = RequestKeys(
            ServedModel(each.name, each.model_version, each.archive),
            around,
            attester,
            configuration.channel,
            allowance,
        )
        release = partial(client.fetch, verified.core.resource, each.archive)
        models.append(HeldModel(each.name, verified, keys, release, grace=configuration.grace))
    return models


def asserted(configuration: Configuration) -> dict[str, str]:
    """What a simulated TEE says about a configuration that is for development, for whoever looks at a verdict."""
    said = {"worker-output": "pass"} if configuration.worker.output == "pass" else {}
    return said | ({"key-provider": configuration.keys.provider} if configuration.keys.provider != BROKER else {})


def run(configuration: Configuration, charge: Charge, socket: Path, *, attester: Attester | None = None) -> None:
    """Serve until SIGTERM. `attester` replaces the configured one, for demonstrations."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="strongroom keeper: %(message)s")
    harden()
    if charge.configuration != configuration.digest:
        raise LaunchRefused(
            "the configuration is not the one that the launcher read", hint="it was changed meanwhile; launch again"
        )
    plugins = Plugins.load(configuration.plugins)
    attester = attester or plugins.attester(configuration.tee)
    if isinstance(attester, SimulatedAttester) and (said := asserted(configuration)):
        attester = SimulatedAttester(asserted=said)
    held = hold(charge.admitted, configuration, attester, plugins)
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
    try:
        service.run()
    finally:
        for model in held:
            model.close()
