"""A real broker for tests: its own folder, a real port, and a policy for the simulated TEE."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker import directory
from strongroom.broker.client import BrokerAdmin, register_model_key
from strongroom.broker.document import model_key_name
from strongroom.broker.protocol import Resource
from strongroom.broker.release import Broker
from strongroom.broker.serve import running
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest, ModelKey

MEASUREMENT = bytes(range(32))
APPRAISAL = f"""
name = "tests"
[simulated]
protects_nothing = true
measurements = ["{MEASUREMENT.hex()}"]
"""


@dataclass
class Room:
    """A running broker and everything a test needs to talk to it."""

    url: str
    broker: Broker
    folder: Path
    ca: Path | None = None

    def admin(self, key: Path | None = None, role: str = "admin") -> BrokerAdmin:
        return BrokerAdmin(self.url, key or self.folder / "admin.key", role=role, ca=self.ca)

    def client(self, *, measurement: bytes = MEASUREMENT, **options) -> ReleaseClient:
        options.setdefault("attester", SimulatedAttester(measurement=measurement))
        return ReleaseClient(self.url, ca=self.ca, pause_s=0.01, **options)

    def register(
        self, number: int = 1, *, tenant: str = "acme", lineage: str = "digits", version: int = 1, **facts
    ) -> tuple[Resource, ArchiveDigest, ModelKey]:
        archive, key = ArchiveDigest(bytes([number]) * 32), ModelKey(bytes([number ^ 0xFF]) * 32)
        name = model_key_name(tenant, lineage, version, archive)
        register_model_key(
            self.url, self.folder / "admin.key", tuple(name), archive, key, version=version, ca=self.ca, **facts
        )
        return name, archive, key


@contextmanager
def broker_room(folder: Path, *, rego="development", appraisal: str | None = APPRAISAL, hosts=(), **options):
    broker_folder = folder / "broker"
    made = directory.init(broker_folder, hosts=hosts)
    policy = None
    if appraisal is not None:
        policy = folder / "appraisal.toml"
        policy.write_text(appraisal)
    with running(broker_folder, policy=policy, rego=rego, **options) as (url, broker):
        yield Room(url, broker, broker_folder, made.certificate)
