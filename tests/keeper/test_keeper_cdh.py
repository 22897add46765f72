"""The data hub of a Confidential Containers guest: a real HTTP server that answers as it does."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.errors import BrokerUnreachable, ConfigurationInvalid, ReleaseError, ResourceMissing
from strongroom.keeper.cdh import CdhClient
from strongroom.keys import ArchiveDigest, ModelKey

ARCHIVE, KEY = ArchiveDigest(b"\7" * 32), ModelKey(b"\x42" * 32)
NAME = tuple(model_key_name("acme", "digits", 3, ARCHIVE))


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        octets = self.server.resources.get(self.path.removeprefix("/cdh/resource/"))
        self.send_response(200 if octets is not None else 500)
        self.end_headers()
        self.wfile.write(octets or b"rpc status: fetch failed")


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.resources = {"/".join(NAME): ModelKeyDocument(ARCHIVE, KEY, version=3).serialise()}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_one_request_gives_the_key_and_no_lease(hub):
    released = CdhClient(hub.url).fetch(NAME, ARCHIVE)
    assert released.key.reveal() == KEY.reveal()
    assert (released.version, released.lease_s, released.broker_time) == (3, None, None)


def test_a_failure_of_the_hub_says_where_to_look(hub):
    hub.resources.clear()
    with pytest.raises(ResourceMissing, match="HTTP 500"):
        CdhClient(hub.url).fetch(NAME, ARCHIVE)


@pytest.mark.parametrize("octets", [b"", b"{}", b"x" * 70000, KEY.reveal()])
def test_what_is_no_model_key_is_refused(hub, octets):
    hub.resources["/".join(NAME)] = octets
    with pytest.raises(ReleaseError):
        CdhClient(hub.url).fetch(NAME, ARCHIVE)


def test_a_key_of_another_archive_is_refused(hub):
    with pytest.raises(ReleaseError, match="is for archive"):
        CdhClient(hub.url).fetch(NAME, ArchiveDigest(bytes(32)))


def test_without_a_hub_it_is_unreachable():
    with pytest.raises(BrokerUnreachable):
        CdhClient("http://127.0.0.1:9").fetch(NAME, ARCHIVE)


@pytest.mark.parametrize("url", ["http://10.0.0.1:8006", "http://cdh.example", "https://[2001:db8::1]/"])
def test_a_hub_elsewhere_is_refused(url):
    with pytest.raises(ConfigurationInvalid, match="loopback"):
        CdhClient(url)
