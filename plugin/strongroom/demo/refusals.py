"""Four attacks that the demo makes for real, and the one sentence that each gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import requests

from strongroom.archive.seal import seal_archive
from strongroom.archive.signature import AuthorKey, AuthorPublic
from strongroom.archive.unseal import SealedArchive
from strongroom.attest.simulated import SimulatedAttester
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.channel.problems import SEEN_BEFORE
from strongroom.demo.digits import Trained
from strongroom.demo.stage import Stage
from strongroom.errors import StrongroomError
from strongroom.keeper.release import ReleaseClient
from strongroom.launch.admission import Gate
from strongroom.launch.config import Configuration


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was tried, what was said, and the next step."""

    what: str
    said: str
    hint: str


def tampered(stage: Stage, folder: Path, trained: Trained) -> Refusal:
    """One bit of the sealed weights is flipped on the host's disk."""
    archive = folder / "tampered.mar"
    shutil.copyfile(stage.host / "model_store" / "digits.mar", archive)
    octets = bytearray(archive.read_bytes())
    octets[len(octets) // 2] ^= 1
    archive.write_bytes(octets)
    authors = [AuthorPublic.load(stage.owner / "author.pub")]

    def attempt() -> None:
        with SealedArchive.open(archive) as opened:
            opened.verified(authors, now=datetime.now(UTC)).check_payload()

    return _refused("An archive with one bit flipped", folder, attempt)


def stranger(stage: Stage, folder: Path, trained: Trained) -> Refusal:
    """The same model, sealed by somebody whom this host does not know."""
    sealed = seal_archive(trained.archive, folder / "digits.mar", author=AuthorKey.generate(), lineage="digits")
    gate = Gate(Configuration.load(stage.host / "strongroom.toml").admission)
    store = folder / "store"
    store.mkdir()
    return _refused("An archive by an unknown author", folder, lambda: gate.admit({"digits": sealed.path}, store))


def unlisted(stage: Stage, folder: Path, trained: Trained) -> Refusal:
    """A keeper with other software than the policy lists asks the broker for the key."""
    with SealedArchive.open(stage.host / "model_store" / "digits.mar") as archive:
        core = archive.core
    client = ReleaseClient(stage.broker_url, attester=SimulatedAttester(measurement=b"\x66" * 32), attempts=1)
    refusal = _refused(
        "A keeper whose measurement the policy does not list", folder, lambda: client.fetch(core.resource, core.digest)
    )
    why = [line for line in (stage.owner / "broker.log").read_text().splitlines() if "simulated.measurement" in line]
    if not why:
        raise StrongroomError("the broker's log does not say why it refused")
    found = why[-1].partition("simulated.measurement")[2].strip(": ")
    return replace(refusal, hint=f"{refusal.hint}. It says: {found}")


def replayed(stage: Stage, folder: Path, trained: Trained) -> Refusal:
    """The host sends a client's request a second time."""
    url = f"{stage.url}/predictions/digits"
    bundle = requests.post(url, data=b"{}", headers={"Content-Type": KEYS_REQUEST_TYPE}, timeout=60).content
    config, pair = KeyList.parse(KeyBundle.parse(bundle).parts.ohttp_keys).choose()
    inner = Request("POST", "http", "host", "/predictions/digits", (), trained.held_back[0].pixels)
    message = bytes(ohttp.encapsulate(config, pair, inner.serialise())[0])

    def send() -> requests.Response:
        return requests.post(url, data=message, headers={"Content-Type": "message/ohttp-req"}, timeout=60)

    if send().status_code != 200:
        raise StrongroomError("the first sending was refused")
    again = send()
    if again.status_code != SEEN_BEFORE.status:
        raise StrongroomError(f"a replay was answered with {again.status_code}")
    return Refusal(
        "A request that the host sends twice",
        f"{again.status_code} {again.json()['title']}",
        "every attempt needs an encapsulation of its own; the client makes one by itself",
    )


REFUSALS: tuple[Callable[[Stage, Path, Trained], Refusal], ...] = (tampered, stranger, unlisted, replayed)


def _refused(what: str, folder: Path, attempt: Callable[[], object]) -> Refusal:
    try:
        attempt()
    except StrongroomError as error:
        return Refusal(what, str(error).replace(f"{folder}/", ""), error.hint)
    raise StrongroomError(f"{what} was not refused")
