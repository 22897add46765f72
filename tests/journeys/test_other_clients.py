"""Clients that others wrote, and programs behind the local proxy, against a real sealed server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import interop.node
import pytest
import requests
from interop.node import install
from interop.tng_shim import TngShim
from leaks.hunt import canary
from strongroom.client.adapter import SealedAdapter
from strongroom.client.httpx_transport import AsyncSealedTransport, SealedTransport
from strongroom.client.proxy import SealedProxy

pytestmark = pytest.mark.journey

WISH = {
    "pieces": ["one ", "two "],
    "pause": 0.2,
    "last": "end",
    "note": canary("note"),
    "status": 201,
    "type": "text/event-stream",
}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    return install(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def policy(house):
    return house.stage.client_policy()


@pytest.mark.parametrize("kem", ["xwing", "x25519"])
@pytest.mark.parametrize("form", ["single", "chunked"])
def test_a_node_client_on_npm_packages_is_answered(house, node, form, kem):
    answer = node(house.url("/predictions/talk"), form, kem, json.dumps(WISH), "application/json")
    assert (answer["status"], answer["type"], answer["body"]) == (201, "text/event-stream", "one two end")


def test_cohere_tngs_client_is_answered(house):
    cohere_tng = pytest.importorskip("cohere_tng", reason="SKIPPED LOUDLY: cohere-tng is not installed")
    transport = cohere_tng.Transport(verify=None)
    with TngShim(house.url("/predictions/talk")) as shim, httpx.Client(transport=transport, timeout=60) as client:
        answer = client.post(shim.origin + "/predictions/talk", json=WISH)
    assert (answer.status_code, answer.content) == (201, b"one two end")


@pytest.fixture
def proxy(house, policy):
    running = SealedProxy(house.stage.url, SealedAdapter(policy), timeout=60).start()
    yield running
    running.close()


def test_curl_behind_the_proxy_gets_pieces_as_they_come(proxy):
    wish = json.dumps({**WISH, "pause": 0.5})
    command = ["curl", "-sSN", "-H", "Content-Type: application/json", "-d", wish, proxy.url + "/predictions/talk"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        first = curl.stdout.read(4)
        at = time.monotonic()
        rest = curl.stdout.read()
        assert (first, rest) == (b"one ", b"two end")
        assert time.monotonic() - at > 0.3


def test_a_stream_that_breaks_beyond_the_proxy_breaks_before_it(proxy):
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = requests.post(proxy.url + "/predictions/talk", json={**WISH, "raise": "no"}, timeout=60).content


def test_httpx_is_answered_in_pieces_and_whole(house, policy):
    with httpx.Client(transport=SealedTransport(policy), timeout=60) as client:
        with client.stream("POST", house.url("/predictions/talk"), json=WISH) as answer:
            pieces = [bytes(piece) for piece in answer.iter_raw()]
        assert pieces[0] == b"one " and b"".join(pieces) == b"one two end"  # the last two may be gathered
        assert client.post(house.url("/predictions/talk"), json={"last": "alone"}).content == b"alone"


def test_asynchronous_httpx_is_answered_many_at_once(house, policy):
    async def ask():
        async with httpx.AsyncClient(transport=AsyncSealedTransport(policy), timeout=60) as client:
            wishes = [{"last": f"answer {n}"} for n in range(8)]
            answers = await asyncio.gather(*(client.post(house.url("/predictions/talk"), json=wish) for wish in wishes))
            return [answer.text for answer in answers]

    assert asyncio.run(ask()) == [f"answer {n}" for n in range(8)]


@pytest.fixture
def page(house, policy):
    """`strongroom proxy` as somebody starts it for a web page of their own; a function that fetches as a page does."""
    if shutil.which("node") is None:
        pytest.skip("SKIPPED LOUDLY: node is needed for the interoperability tests")
    flags = ["--policy", str(policy), "--port", "0", "--origin", "http://mine.example", "--json"]
    command = [sys.executable, "-m", "strongroom.cli", "proxy", house.stage.url, *flags]
    script = Path(interop.node.__file__).with_name("fetch.mjs")

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        url = json.loads(running.stdout.readline())["url"]

        def fetch(origin: str, wish: object) -> dict:
            words = ["node", str(script), f"{url}/predictions/talk", origin, json.dumps(wish)]
            return json.loads(subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout)

        yield fetch
        running.terminate()


def test_a_web_pages_fetch_behind_the_proxy_is_answered_in_pieces_and_a_strangers_is_not(page):
    mine = page("http://mine.example", {**WISH, "pause": 0.5})
    assert (mine["preflight"], mine["allowed"]) == ([204, "http://mine.example"], "http://mine.example")
    assert (mine["status"], mine["type"]) == (201, "text/event-stream")
    assert "".join(piece for _, piece in mine["pieces"]) == "one two end"
    assert mine["pieces"][0][1] == "one "
    assert mine["pieces"][-1][0] - mine["pieces"][0][0] > 300  # milliseconds: nothing waited for the end
    strangers = page("http://evil.example", WISH)
    assert (strangers["preflight"][0], strangers["status"], strangers["allowed"]) == (403, 403, None)


def test_the_command_line_shows_a_stream_as_it_comes(house, policy):
    wish = json.dumps({**WISH, "pause": 0.5})
    command = [sys.executable, "-m", "strongroom.cli", "request", house.url("/predictions/talk"), "--stream"]
    command += ["--policy", str(policy), "-H", "Content-Type: application/json", "-d", wish]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        first = running.stdout.read(4)
        at = time.monotonic()
        assert (first, running.stdout.read()) == (b"one ", b"two end")
        assert time.monotonic() - at > 0.3
