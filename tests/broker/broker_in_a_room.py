"""A real broker for tests: its own folder, a real port, and a policy for the simulated TEE."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker import directory
from strongroom.broker.client import BrokerAdmin, register_model_key
from strongroom.broker.document import model_key_name
from strongroom.broker.jwe import Jwe, TeeKeyPair
from strongroom.broker.protocol import Attestation, Resource, document_digest, primary_document
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
    folder.mkdir(exist_ok=True)
    broker_folder = folder / "broker"
    made = directory.init(broker_folder, hosts=hosts)
    policy = None
    if appraisal is not None:
        policy = folder / "appraisal.toml"
        policy.write_text(appraisal)
    with running(broker_folder, policy=policy, rego=rego, **options) as (url, broker):
        yield Room(url, broker, broker_folder, made.certificate)


class Clock:
    """Both clocks of a broker, moved by hand."""

    def __init__(self, now: float = 1_800_000_000.0):
        self.wall, self.steady = now, 1000.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class Peer:
    """A client that does each step of the handshake by itself, so that a test can leave one out or bend it."""

    def __init__(self, room: Room, *, measurement: bytes = MEASUREMENT):
        self.room, self.keys = room, TeeKeyPair.generate()
        self.attester = SimulatedAttester(measurement=measurement)
        self.http = requests.Session()
        self.http.trust_env = False
        self.base = room.url + "/kbs/v0"

    def auth(self, extra="", tee="simulated", version="0.4.0"):
        body = {"version": version, "tee": tee, "extra-params": extra}
        answer = self.http.post(f"{self.base}/auth", json=body, timeout=10)
        if answer.ok:
            self.challenge = answer.json()
        return answer

    def attestation(self, *, nonce=None, keys=None, additional=""):
        nonce = self.challenge["nonce"] if nonce is None else nonce
        keys = keys or self.keys
        digest = document_digest(primary_document(nonce, keys.public, additional))
        return Attestation(nonce, keys.public, dict(self.attester.evidence(digest).body), additional).serialise()

    def attest(self, body=None, **options):
        return self.http.post(f"{self.base}/attest", json=body or self.attestation(), timeout=10, **options)

    def get(self, name, **options):
        return self.http.get(f"{self.base}/resource/{name}", timeout=10, **options)

    def opened(self, answer):
        return json.loads(self.keys.open(Jwe.parse(answer.content)))


def error_of(answer):
    """(status, name, detail) of a refusal, which has exactly these two members."""
    fields = json.loads(answer.content)
    assert set(fields) == {"type", "detail"}
    prefix = "https://github.com/confidential-containers/kbs/errors/"
    assert fields["type"].startswith(prefix)
    return answer.status_code, fields["type"].removeprefix(prefix), fields["detail"]
