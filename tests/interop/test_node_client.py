"""A client on npm's HPKE, X-Wing and Binary HTTP packages talks to our server, and finds it in order.

The packages are installed into a folder that lives as long as the test session; the versions stand in
package.json. `INTEROP_NODE_MODULES` may name a folder where they are installed already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from doubles.sealed_server import SealedServer, Stream
from strongroom.channel.bhttp import Response

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """A function that runs the client: (url, form, kem, body) → what it printed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("SKIPPED LOUDLY: node and npm are needed for the interoperability tests")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "client.mjs"):
        shutil.copy(HERE / name, folder)
    if ready := os.environ.get("INTEROP_NODE_MODULES"):
        (folder / "node_modules").symlink_to(ready)
    else:
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        if installed.returncode:
            pytest.skip(f"SKIPPED LOUDLY: npm could not install the packages: {installed.stderr[-300:]}")

    def run(url, form, kem, body):
        command = ["node", str(folder / "client.mjs"), url, form, kem, body]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return run


@pytest.mark.parametrize("kem", ["xwing", "x25519"])
@pytest.mark.parametrize("form", ["single", "chunked"])
def test_a_round_trip_with_implementations_that_others_wrote(client, form, kem):
    with SealedServer(
        model=lambda request: Response(207, (("content-type", "text/x"),), request.content + b"!")
    ) as server:
        answer = client(server.url, form, kem, "Grüße, 7")
    assert (answer["status"], answer["type"], answer["body"]) == (207, "text/x", "Grüße, 7!")
    inner = server.opened[0]
    assert (inner.method, inner.path, inner.content.decode()) == ("POST", "/predictions/digits", "Grüße, 7")


@pytest.mark.parametrize("kem", ["xwing", "x25519"])
def test_a_stream_opens_piece_by_piece(client, kem):
    pieces = [b"data: 1\n\n", b"data: 22\n\n"]
    with SealedServer(
        model=lambda request: Stream(200, (("content-type", "text/event-stream"),), iter(pieces))
    ) as server:
        answer = client(server.url, "chunked", kem, "x")
    assert answer["body"] == "data: 1\n\ndata: 22\n\n"
    assert answer["pieces"][1:] == [10, 11, 2, 0]
