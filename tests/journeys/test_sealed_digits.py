"""The main job: the sealed digits model in stock TorchServe answers exactly as the plain one does."""

from __future__ import annotations

import concurrent.futures
import json

import pytest
import requests
from doubles.serving import start_torchserve
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request, Response
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.client.adapter import SealedAdapter
from strongroom.errors import ServerRefused

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory):
    with start_torchserve(tmp_path_factory.mktemp("plain"), digits.archive.parent, ["digits=digits.mar"]) as serving:
        serving.wait_until_ready("digits", workers=2)
        yield serving


@pytest.fixture(scope="module")
def session(sealed):
    session = requests.Session()
    session.mount(sealed.url, SealedAdapter(policy=sealed.client_policy()))
    return session


def bodies(scan):
    pixels = list(scan.pixels)
    return {
        "json": {"json": {"pixels": pixels}},
        "raw": {"data": scan.pixels},
        "octets": {"data": scan.pixels, "headers": {"Content-Type": "application/octet-stream"}},
        "multipart": {"files": {"data": ("scan.bin", scan.pixels, "application/octet-stream")}},
        "unreadable": {"data": b"\x00" * 3},
    }


@pytest.mark.parametrize("kind", ["json", "raw", "octets", "multipart", "unreadable"])
def test_the_sealed_answer_equals_the_plain_one_byte_for_byte(plain, sealed, session, digits, kind):
    for scan in digits.held_back[:6]:
        body = bodies(scan)[kind]
        expected = requests.post(f"{plain.url}/predictions/digits", **body, timeout=60)
        answer = session.post(f"{sealed.url}/predictions/digits", **body, timeout=60)
        assert (answer.status_code, answer.content) == (expected.status_code, expected.content)
        assert answer.headers.get("content-type") == expected.headers.get("content-type")


def encapsulated(sealed, inner: Request):
    bundle = requests.post(
        f"{sealed.url}/predictions/digits", data=b"{}", headers={"Content-Type": KEYS_REQUEST_TYPE}, timeout=60
    )
    config, pair = KeyList.parse(KeyBundle.parse(bundle.content).parts.ohttp_keys).choose()
    return ohttp.encapsulate(config, pair, inner.serialise())


def post(sealed, body: bytes, kind: str = "message/ohttp-req") -> requests.Response:
    return requests.post(
        f"{sealed.url}/predictions/digits", data=bytes(body), headers={"Content-Type": kind}, timeout=60
    )


def test_in_one_batch_each_item_gets_its_own_answer(sealed, digits):
    """Four at once make one batch: two good ones, one that does not open, one that is not sealed at all."""
    scans = digits.held_back[:16]
    for first, second in zip(scans[::2], scans[1::2], strict=True):
        good = [
            encapsulated(sealed, Request("POST", "http", "h", "/predictions/digits", (), s.pixels))
            for s in (first, second)
        ]
        broken = bytearray(encapsulated(sealed, Request("POST", "http", "h", "/predictions/digits"))[0])
        broken[-1] ^= 1
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(
                pool.map(
                    lambda each: post(sealed, *each),
                    [(good[0][0],), (broken,), (good[1][0],), (json.dumps([1]).encode(), "application/json")],
                )
            )
        assert [each.status_code for each in answers] == [200, 422, 200, 415]
        for answer, (_, opener) in zip((answers[0], answers[2]), good, strict=True):
            inner = Response.parse(opener.open(answer.content))
            assert inner.status == 200
            assert set(json.loads(inner.content)) == {"digit", "confidence"}


def test_both_workers_answer(sealed, session, digits):
    """Requests in parallel land on both; TorchServe's own log says which worker served."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        url = f"{sealed.url}/predictions/digits"
        answers = list(pool.map(lambda scan: session.post(url, data=scan.pixels, timeout=60), digits.held_back[:120]))
    assert {answer.status_code for answer in answers} == {200}
    log = (sealed.host / "launch.log").read_text(errors="replace")
    served = {
        line.split("W-")[1].split("-digits")[0] for line in log.splitlines() if "Sending response for job" in line
    }
    assert len(served) == 2


def test_a_replayed_request_is_refused_whichever_worker_gets_it(sealed, digits):
    inner = Request("POST", "http", "h", "/predictions/digits", (), digits.held_back[0].pixels)
    message, _ = encapsulated(sealed, inner)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = sorted(each.status_code for each in pool.map(lambda _: post(sealed, message), range(8)))
    assert statuses == [200] + [409] * 7


@pytest.mark.parametrize("path", ["/predictions/other", "/predictions/digits/9.9", "/models", "/"])
def test_an_inner_path_to_another_target_is_refused_inside(sealed, path):
    message, opener = encapsulated(sealed, Request("POST", "http", "h", path, (), b"x"))
    answer = post(sealed, message)
    assert answer.status_code == 200
    assert Response.parse(opener.open(answer.content)).status == 421


def test_a_client_whose_policy_the_server_fails_sends_nothing(sealed, digits, tmp_path):
    policy = tmp_path / "strict.toml"
    policy.write_text('name = "strict"\n[simulated]\nprotects_nothing = true\nmeasurements = ["' + "42" * 32 + '"]\n')
    session = requests.Session()
    session.mount(sealed.url, SealedAdapter(policy=policy))
    before = sealed.relay.mark()[0]
    with pytest.raises(ServerRefused) as refusal:
        session.post(f"{sealed.url}/predictions/digits", data=digits.held_back[0].pixels, timeout=60)
    sent = bytes(sealed.relay.requests[before:])
    assert sent.count(b"POST ") == 1
    assert KEYS_REQUEST_TYPE.encode() in sent
    assert any(not check.ok for check in refusal.value.checks)


@pytest.mark.parametrize("path", ["/ping", "/models"])
def test_the_endpoints_of_before_keep_working(sealed, path):
    port = sealed.inference if path == "/ping" else sealed.management
    assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=30).status_code == 200


def test_the_metrics_endpoint_keeps_working(sealed):
    properties = (sealed.host / "config.properties").read_text().splitlines()
    address = next(line.partition("=")[2] for line in properties if line.startswith("metrics_address"))
    assert "ts_inference_requests_total" in requests.get(f"{address}/metrics", timeout=30).text
