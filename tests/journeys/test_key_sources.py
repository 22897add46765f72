"""A launched server whose model key comes from each source that is no broker."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from doubles.hunted import HuntedStage
from doubles.models import plain_archive
from doubles.soft_token import PIN, soft_token
from leaks.hunt import canary
from strongroom.archive.modelkey import load_model_key
from strongroom.broker.document import ModelKeyDocument
from strongroom.client.adapter import SealedAdapter
from strongroom.demo.stage import run
from strongroom.keys import ArchiveDigest

pytestmark = pytest.mark.journey

HANDLER = b"""
def handle(data, context):
    return data and [b"opened: " + bytes(row["body"]) for row in data]
"""


@pytest.fixture
def stage():
    stage = HuntedStage.make()
    try:
        stage.make_author()
        stage.measure()
        (stage.host / "model_store").mkdir()
        (stage.host / "keys").mkdir(mode=0o700)
        yield stage
    finally:
        stage.close()


def seal(stage, into) -> dict:
    """A small model, sealed with its key left in a folder."""
    files = {"toy.py": HANDLER, "toy.pt": bytes(range(256)) * 100}
    plain = plain_archive(stage.owner / "toy.plain.mar", files, name="toy", handler="toy.py")
    stage.remember(plain)
    into.mkdir(exist_ok=True)
    flags = ["--author", "author.key", "--key-out", str(into), "-o", str(stage.host / "model_store" / "toy.mar")]
    return run("seal", str(plain), *flags, folder=stage.owner)


def answered(stage, keys) -> str:
    """Launch with that ``[keys]`` table, ask the model, and give what its evidence says of the source."""
    stage.start_server(keys=keys, models=("toy=toy.mar",))
    stage.wait_until_ready(model="toy")
    adapter = SealedAdapter(policy=stage.client_policy())
    session = requests.Session()
    session.mount(stage.url, adapter)
    url = f"{stage.url}/predictions/toy"
    question = canary("question").encode()
    assert session.post(url, data=question, timeout=60).content == b"opened: " + question
    return adapter.verify_server(url).verdict.claims["key-provider"]


def test_keys_in_files_serve_loudly_and_a_client_sees_it(stage):
    seal(stage, stage.host / "keys")
    assert answered(stage, '[keys]\nprovider = "file"\nfolder = "keys"\n') == "file"
    assert stage.log().count("warning: keys of models come from files") >= 2, "by the launcher and by its keeper"
    assert "model keys come from files in keys" in stage.log()


def test_keys_wrapped_in_a_token_serve(stage):
    sealed = seal(stage, stage.owner / "keys")
    token = soft_token()
    (stage.host / "pin.txt").write_text(f"{PIN}\n")
    (stage.host / "pin.txt").chmod(0o600)
    words = [sealed["path"], "--key", f"keys/{sealed['digest']}.key", "--into", str(stage.host / "keys")]
    words += ["--module", token["module"], "--token", token["token"], "--pin-file", str(stage.host / "pin.txt")]
    run("key", "wrap", *words, folder=stage.owner)
    table = "\n".join(f'{name} = "{value}"' for name, value in token.items())
    keys = f'[keys]\nprovider = "pkcs11"\nfolder = "keys"\npin_file = "pin.txt"\n{table}\n'
    keys += f'environment = {{ SOFTHSM2_CONF = "{token_configuration()}" }}\n'
    assert answered(stage, keys) == "pkcs11"
    assert PIN not in stage.log()


def token_configuration() -> str:
    """Where the software token's library finds its tokens: the launcher passes no variable on by itself."""
    import os

    return os.environ["SOFTHSM2_CONF"]


class Hub(BaseHTTPRequestHandler):
    """The data hub of a Confidential Containers guest."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        octets = self.server.resources.get(self.path.removeprefix("/cdh/resource/"))
        self.send_response(200 if octets is not None else 500)
        self.end_headers()
        self.wfile.write(octets or b"")


def test_keys_from_a_guests_data_hub_serve(stage):
    sealed = seal(stage, stage.owner / "keys")
    digest = ArchiveDigest.parse(sealed["digest"])
    document = ModelKeyDocument(digest, load_model_key(stage.owner / "keys" / f"{digest}.key"), version=1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.resources = {sealed["resource"]: document.serialise()}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert answered(stage, f'[keys]\nprovider = "cdh"\nurl = "{url}"\n') == "cdh"
    finally:
        server.shutdown()
        server.server_close()
