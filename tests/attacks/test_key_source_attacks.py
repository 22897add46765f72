"""Where a keeper asks for keys is its configuration's to say: nothing that stands in an archive names another place.

The lesson is CryptoTensors', whose files hold the URL that their keys are fetched from. The author here is the
attacker, which nobody stronger can be: she writes an address into every part of an archive that takes one.
"""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import contextmanager

import pytest
from broker.trustee_double import trustee_running
from doubles.models import Author, sealed_toy
from strongroom.archive.recipients import provider_slot
from strongroom.archive.slots import Slot
from strongroom.archive.unseal import SealedArchive
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.encoding import b64
from strongroom.errors import LaunchRefused, ResourceMissing
from strongroom.evidence.types import Evidence
from strongroom.keeper.process import hold
from strongroom.keeper.release import ReleaseClient
from strongroom.launch.admission import Gate
from strongroom.launch.config import Configuration
from strongroom.plugins import Plugins

_listening: list[list[tuple[str, object]]] = []


def _hear(event: str, args: tuple[object, ...]) -> None:
    """Python's own word on every name that is looked up and every address that is connected to."""
    if _listening and event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        place = args[1] if event in ("socket.connect", "socket.sendto") else (args[0], args[1])
        _listening[-1].append((event, place))


sys.addaudithook(_hear)


@contextmanager
def every_place():
    """A list of every address that anything in this process asks for meanwhile."""
    asked: list[tuple[str, object]] = []
    _listening.append(asked)
    try:
        yield asked
    finally:
        _listening.remove(asked)


class Sample:
    """Evidence that the double of a broker believes."""

    tee = "sample"

    def evidence(self, report_data):
        return Evidence(self.tee, {"svn": "1", "report_data": b64(report_data)})


@pytest.fixture
def bait():
    """A listener where nobody ought to come; its address, and who came."""
    came: list[object] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            came.append(peer)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", came
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def hostile(folder, author, url: str, *, broker_key: bytes | None = None):
    """An archive with `url` in its slots (of providers, of an unknown type), as its owner, and as its broker's key."""
    told = url.encode()
    wraps = [
        lambda key, digest, at=at, name=name: provider_slot(name, bytes([at]) * 32, told)
        for at, name in enumerate(("kbs", "cdh", "file", "http"))
    ]
    wraps.append(lambda key, digest: Slot(0x7777, told.ljust(32, b"/")[:32], told))
    return sealed_toy(
        folder,
        author,
        weights=told,
        recipients=wraps,
        owner=url,
        broker_key=told if broker_key is None else broker_key,
    )


def configured(folder, url: str, mode: str = "host") -> Configuration:
    path = folder / "strongroom.toml"
    path.write_text(
        f'[admission]\nauthors = ["author.pub"]\n[broker]\nurl = "{url}"\n'
        f'[attestation]\ntee = "sample"\n[channel]\nmode = "{mode}"\n'
    )
    return Configuration.load(path)


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def test_no_part_of_an_archive_makes_the_keeper_ask_another_place_than_the_configured_broker(tmp_path, bait):
    """And the model opens, with the configured broker's key: what the archive says is not even an obstacle."""
    url, came = bait
    sealed = hostile(tmp_path, Author.make(tmp_path), url)
    with SealedArchive.open(sealed.path) as archive:
        assert sum(url.encode() in slot.body for slot in archive.area.current.slots) == 5
        assert archive.core.broker_key == url.encode()
    (tmp_path / "fronts").mkdir()
    with trustee_running() as trustee, every_place() as asked:
        settings = configured(tmp_path, trustee.url)
        admitted = Gate.of(settings).admit({"toy": sealed.path}, tmp_path / "fronts")
        (model,) = hold(admitted, settings, Sample(), Plugins())
        name = model_key_name("default", "toy", 1, sealed.digest)
        trustee.resources["/".join(name)] = ModelKeyDocument(sealed.digest, sealed.key, version=1).serialise()
        model.start()
        model.wait(20)
        try:
            assert model.status()["state"] == "open", model.status()
        finally:
            model.close()
    assert {place for event, place in asked if event == "socket.connect"} == {address(trustee.url)}
    assert {place for event, place in asked} == {address(trustee.url)}
    assert came == []


def test_a_keeper_without_the_key_asks_nobody_else_either(tmp_path, bait):
    """The configured broker has no such key: the next step is to ask it again."""
    url, came = bait
    sealed = hostile(tmp_path, Author.make(tmp_path), url)
    (tmp_path / "fronts").mkdir()
    with trustee_running() as trustee, every_place() as asked:
        settings = configured(tmp_path, trustee.url)
        admitted = Gate.of(settings).admit({"toy": sealed.path}, tmp_path / "fronts")
        (model,) = hold(admitted, settings, Sample(), Plugins())
        model.start()
        model.wait(20)
        status = model.status()
        model.close()
    assert status["state"] != "open" and "ResourceMissing" in status["reason"], status
    assert {place for _, place in asked} == {address(trustee.url)}
    assert came == []


def test_a_broker_key_is_a_key_and_no_place(tmp_path, bait):
    """In mode fleet one that is no key is refused at admission; a seed is asked of the configured broker alone."""
    url, came = bait
    sealed = hostile(tmp_path, Author.make(tmp_path), url)
    (tmp_path / "fronts").mkdir()
    with trustee_running() as trustee, every_place() as asked:
        with pytest.raises(LaunchRefused, match="mode fleet cannot serve"):
            Gate.of(configured(tmp_path, trustee.url, "fleet")).admit({"toy": sealed.path}, tmp_path / "fronts")
        assert asked == []
        client = ReleaseClient(trustee.url, attester=Sample(), attempts=1)
        with pytest.raises(ResourceMissing):
            client.fetch_epoch(("default", "toy", f"1-{sealed.digest}"), sealed.digest, url.encode())
    assert {place for _, place in asked} == {address(trustee.url)}
    assert came == []
