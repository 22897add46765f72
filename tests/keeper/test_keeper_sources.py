"""Which provider a keeper asks, what it makes of the answer, and that no lease means no leased archive."""

from __future__ import annotations

import secrets
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from broker.trustee_double import trustee_running
from doubles.direct_link import request_keys
from doubles.models import Author, sealed_toy
from doubles.soft_token import PIN, soft_token
from strongroom.archive.modelkey import save_model_key
from strongroom.archive.unseal import SealedArchive
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker.document import ModelKeyDocument
from strongroom.broker.statement import KeeperStatement
from strongroom.errors import (
    AttesterUnavailable,
    BrokerUnreachable,
    ConfigurationInvalid,
    LaunchRefused,
    ModelUnavailable,
    PluginInvalid,
    ReleaseDenied,
    ReleaseError,
)
from strongroom.evidence.types import Evidence
from strongroom.hookspecs import AttesterOffer, Grant, KeyProviderOffer, hookimpl
from strongroom.keeper import sources
from strongroom.keeper.keyfiles import Pkcs11Provider
from strongroom.keeper.leases import boottime
from strongroom.keeper.models import HeldModel
from strongroom.keeper.peers import Peer
from strongroom.keeper.process import asserted
from strongroom.keeper.sources import ModelKeySource
from strongroom.keys import ArchiveDigest, ModelKey
from strongroom.launch.admission import Gate
from strongroom.launch.config import Configuration
from strongroom.plugins import Plugins

WORKER = Peer(1, 0, 0)  # of no process that lives
ARCHIVE, KEY = ArchiveDigest(b"\7" * 32), ModelKey(b"\x42" * 32)
NAME = ("acme", "digits", f"1-{ARCHIVE}")


def configuration(folder, source, *, plugins=()):
    path = folder / "strongroom.toml"
    head = f'plugins = {list(plugins)}\n[admission]\nauthors = ["author.pub"]\n[attestation]\ntee = "simulated"\n'
    path.write_text(head + source + "\n")
    return Configuration.load(path)


def opened(configuration, plugins=None, attester=None):
    statement = KeeperStatement(secrets.token_bytes(16))
    return ModelKeySource.open(configuration, plugins or Plugins.load(), attester or SimulatedAttester(), statement)


class Vault:
    """A plugin with a provider that answers whatever the test put up."""

    def __init__(self, answer, name="vault"):
        self.answer, self.name, self.asked = answer, name, []

    @hookimpl
    def strongroom_key_providers(self):
        return [KeyProviderOffer(self.name, self.make)]

    def make(self, settings, asker):
        self.settings, self.asker = dict(settings), asker
        return self

    def release(self, archive, resource):
        self.asked.append((archive, resource))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def with_plugin(plugin):
    plugins = Plugins()
    plugins._manager.register(plugin, "vault")
    plugins._collect()
    return plugins


# -- which provider ------------------------------------------------------------------------


def test_without_a_broker_and_without_another_provider_nothing_starts(tmp_path):
    with pytest.raises(ConfigurationInvalid, match="no model key can come") as refused:
        opened(configuration(tmp_path, ""))
    assert "[keys] provider" in refused.value.hint


def test_a_plugins_provider_gets_its_settings_and_the_keeper_that_asks(tmp_path):
    vault = Vault(Grant(KEY, lease_s=60, broker_time=5))
    source = opened(
        configuration(tmp_path, '[keys]\nprovider = "vault"\nroom = 5', plugins=["vault"]), with_plugin(vault)
    )
    before = boottime()
    released = source.fetch(NAME, ARCHIVE)
    assert (released.key.reveal(), released.lease_s, released.broker_time) == (KEY.reveal(), 60, 5)
    assert before <= released.asked_at <= boottime()
    assert vault.asked == [(ARCHIVE, NAME)]
    assert vault.settings == {"room": 5}
    assert (vault.asker.tee, vault.asker.folder) == ("simulated", tmp_path)
    assert vault.asker.attester.evidence(b"x" * 48).tee == "simulated"
    assert set(vault.asker.statement) >= {"version", "keeper"}


@pytest.mark.parametrize("name", ["kbs", "file", "pkcs11", "cdh"])
def test_a_plugin_cannot_take_the_name_of_ours(name):
    with pytest.raises(PluginInvalid, match="offered already"):
        with_plugin(Vault(None, name=name))


def test_a_plugin_that_offers_another_provider_is_not_asked(tmp_path):
    with pytest.raises(ConfigurationInvalid, match="no key provider is called 'safe'"):
        opened(configuration(tmp_path, '[keys]\nprovider = "safe"', plugins=["vault"]), with_plugin(Vault(None)))


@pytest.mark.parametrize("answer", [None, KEY, KEY.reveal(), "key", {"key": "x"}])
def test_what_is_no_grant_is_refused(tmp_path, answer):
    source = opened(
        configuration(tmp_path, '[keys]\nprovider = "vault"', plugins=["vault"]), with_plugin(Vault(answer))
    )
    with pytest.raises(ReleaseError, match="gave a"):
        source.fetch(NAME, ARCHIVE)


@pytest.mark.parametrize("asked_at", [-1e9, 1e12])
def test_a_provider_cannot_say_that_it_was_asked_before_or_after_it_was(tmp_path, asked_at):
    vault = Vault(Grant(KEY, lease_s=60, asked_at=asked_at))
    source = opened(configuration(tmp_path, '[keys]\nprovider = "vault"', plugins=["vault"]), with_plugin(vault))
    before = boottime()
    assert before <= source.fetch(NAME, ARCHIVE).asked_at <= boottime()


def test_a_key_broker_gets_the_evidence_of_every_configured_device(tmp_path):
    with trustee_running() as trustee:
        trustee.resources["/".join(NAME)] = ModelKeyDocument(ARCHIVE, KEY, version=1).serialise()
        plugins = Plugins()

        class Offers:
            @hookimpl
            def strongroom_attesters(self):
                return [AttesterOffer("sampledevice", lambda: "", lambda: Sample("sampledevice"))]

        plugins._manager.register(Offers(), "offers")
        plugins._collect()
        loaded = configuration(tmp_path, f'devices = ["sampledevice"]\n[broker]\nurl = "{trustee.url}"')
        assert opened(loaded, plugins, Sample()).fetch(NAME, ARCHIVE).key.reveal() == KEY.reveal()
        assert [set(each) for each in trustee.seen] == [{"sampledevice"}]


def test_a_device_without_an_attester_stops_the_start(tmp_path):
    with pytest.raises(AttesterUnavailable, match="toaster"):
        opened(configuration(tmp_path, 'devices = ["toaster"]\n[broker]\nurl = "http://127.0.0.1:1"'))


# -- a model under each of them ---------------------------------------------------------------


class Sample:
    """Evidence that a stock broker's double believes."""

    def __init__(self, tee="sample"):
        self.tee = tee

    def evidence(self, report_data):
        import base64

        return Evidence(self.tee, {"svn": "1", "report_data": base64.b64encode(report_data).decode()})


@contextmanager
def data_hub(resources):
    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            octets = resources.get(self.path.removeprefix("/cdh/resource/"))
            self.send_response(200 if octets is not None else 500)
            self.end_headers()
            self.wfile.write(octets or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def source_holding(kind, folder, sealed):
    """A source of that kind which has the sealed archive's key, and grants no lease."""
    document = ModelKeyDocument(sealed.digest, sealed.key, version=sealed.core.version).serialise()
    name = "/".join(sealed.resource)
    if kind == "file":
        save_model_key(folder / f"{sealed.digest}.key", sealed.digest, sealed.key)
        yield opened(configuration(folder, '[keys]\nprovider = "file"\nfolder = "."'))
    elif kind == "pkcs11":
        (folder / "pin").write_text(f"{PIN}\n")
        (folder / "pin").chmod(0o600)
        settings = {"folder": ".", "pin_file": "pin", **soft_token()}
        Pkcs11Provider.configured(settings, folder).keep(sealed.digest, sealed.key)
        table = "\n".join(f'{name} = "{value}"' for name, value in settings.items())
        yield opened(configuration(folder, f'[keys]\nprovider = "pkcs11"\n{table}'))
    elif kind == "cdh":
        with data_hub({name: document}) as url:
            yield opened(configuration(folder, f'[keys]\nprovider = "cdh"\nurl = "{url}"'))
    elif kind == "stock broker":
        with trustee_running() as trustee:
            trustee.resources[name] = document
            yield opened(configuration(folder, f'[broker]\nurl = "{trustee.url}"'), attester=Sample())
    else:
        plugins = with_plugin(Vault(Grant(sealed.key)))
        yield opened(configuration(folder, '[keys]\nprovider = "vault"', plugins=["vault"]), plugins)


def held(folder, source, sealed, author):
    verified = SealedArchive.open(sealed.path).verified((author.key.public,), now=datetime.now(UTC))
    release = partial(source.fetch, verified.core.resource, sealed.digest)
    model = HeldModel("toy", sealed.digest, lambda: verified, request_keys(("x25519",)), release)
    model.start()
    model.wait(20)
    return model


SOURCES = ["file", "pkcs11", "cdh", "stock broker", "plugin"]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_model_opens_with_the_key_of_each_source(tmp_path, kind):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author, weights=b"weights" * 1000)
    with source_holding(kind, tmp_path, sealed) as source:
        model = held(tmp_path, source, sealed, author)
        try:
            model.check_open()
            assert model.status()["lease"] is None
        finally:
            model.close()


@pytest.mark.parametrize("kind", SOURCES)
def test_an_archive_that_demands_a_lease_does_not_open_where_none_is_granted(tmp_path, kind):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author, weights=b"weights" * 1000, lease_required=True)
    with source_holding(kind, tmp_path, sealed) as source:
        model = held(tmp_path, source, sealed, author)
        try:
            with pytest.raises(ModelUnavailable, match="ReleaseDenied"):
                model.check_open()
            assert "only under a lease" in model.status()["reason"]
        finally:
            model.close()


@pytest.mark.parametrize("provider", ["file", "pkcs11", "cdh"])
def test_such_an_archive_is_refused_before_anything_starts_where_no_lease_can_come(tmp_path, provider):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author, lease_required=True)
    settings = f'[keys]\nprovider = "{provider}"'
    loaded = configuration(tmp_path, settings)
    with pytest.raises(LaunchRefused, match="only under a lease") as refused:
        Gate(loaded.admission, leased=loaded.keys.leased).verified(sealed.path)
    assert "strongroom broker" in refused.value.hint
    Gate(loaded.admission).verified(sealed.path)


def test_a_plugins_lease_is_renewed_and_its_refusal_withdraws_the_model(tmp_path):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author, weights=b"weights" * 1000, lease_required=True)
    vault = Vault(Grant(sealed.key, lease_s=1))
    source = opened(configuration(tmp_path, '[keys]\nprovider = "vault"', plugins=["vault"]), with_plugin(vault))
    model = held(tmp_path, source, sealed, author)
    try:
        model.check_open()
        vault.answer = ReleaseDenied("not any more")
        withdrawn = threading.Event()
        for _ in range(200):
            try:
                model.check_held(WORKER)
            except ModelUnavailable:
                break
            withdrawn.wait(0.05)
        with pytest.raises(ModelUnavailable, match="ReleaseDenied"):
            model.check_held(WORKER)
        assert len(vault.asked) >= 2
    finally:
        model.close()


def test_a_key_of_another_archive_opens_nothing(tmp_path):
    author = Author.make(tmp_path)
    sealed = sealed_toy(tmp_path, author, weights=b"weights" * 1000)
    plugins = with_plugin(Vault(Grant(KEY)))
    source = opened(configuration(tmp_path, '[keys]\nprovider = "vault"', plugins=["vault"]), plugins)
    model = held(tmp_path, source, sealed, author)
    try:
        with pytest.raises(ModelUnavailable, match="WrongKey"):
            model.check_open()
    finally:
        model.close()


# -- what is said about it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('[broker]\nurl = "https://keys.example"', {}),
        ('[broker]\nurl = "https://keys.example"\n[worker]\noutput = "pass"', {"worker-output": "pass"}),
        ('[keys]\nprovider = "file"\nfolder = "k"', {"key-provider": "file"}),
        ('[keys]\nprovider = "cdh"\n[worker]\noutput = "pass"', {"worker-output": "pass", "key-provider": "cdh"}),
    ],
)
def test_a_simulated_tee_says_in_its_evidence_what_is_for_development(tmp_path, source, said):
    assert asserted(configuration(tmp_path, source)) == {"hardening": [], **said}


def test_a_launcher_checks_the_source_without_asking_anybody(tmp_path):
    assert sources.check_source(configuration(tmp_path, '[broker]\nurl = "http://127.0.0.1:1"')) == ()
    [warning] = sources.check_source(configuration(tmp_path, '[keys]\nprovider = "file"\nfolder = "k"'))
    assert str(tmp_path / "k") in warning and "development" in warning
    with pytest.raises(ConfigurationInvalid, match="loopback"):
        sources.check_source(configuration(tmp_path, '[keys]\nprovider = "cdh"\nurl = "http://10.0.0.1:8006"'))
    with pytest.raises(ConfigurationInvalid, match="pin_file"):
        sources.check_source(
            configuration(tmp_path, '[keys]\nprovider = "pkcs11"\nfolder = "k"\nmodule = "m"\ntoken = "t"')
        )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('[broker]\nurl = "http://127.0.0.1:1"', "no broker answers"),
        ('[keys]\nprovider = "cdh"\nurl = "http://127.0.0.1:1"', "no data hub answers"),
        ('[keys]\nprovider = "file"\nfolder = "nowhere"', "no folder"),
        ('[keys]\nprovider = "file"\nfolder = "."', ""),
        ('[keys]\nprovider = "file"', "folder is missing"),
        ("", "no model key can come"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(tmp_path, source, said):
    found = sources.missing(configuration(tmp_path, source), Plugins.load())
    assert said in found and bool(said) == bool(found)


def test_a_plugin_whose_look_fails_does_not_end_the_look(tmp_path):
    class Blind(Vault):
        @hookimpl
        def strongroom_key_providers(self):
            def look(settings, folder):
                raise RuntimeError("no eyes")

            return [KeyProviderOffer("vault", self.make, look)]

    loaded = configuration(tmp_path, '[keys]\nprovider = "vault"', plugins=["vault"])
    assert "no eyes" in sources.missing(loaded, with_plugin(Blind(None)))


def test_a_plugin_that_raises_something_else_counts_as_nobody_having_answered(tmp_path):
    from strongroom.keeper.asking import Asking

    vault = Vault(ZeroDivisionError("secret"))
    source = opened(configuration(tmp_path, '[keys]\nprovider = "vault"', plugins=["vault"]), with_plugin(vault))
    with pytest.raises(BrokerUnreachable) as unreachable:
        Asking(lambda: source.fetch(NAME, ARCHIVE))()
    assert "secret" not in str(unreachable.value)
