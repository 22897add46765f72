"""The local proxy, used by programs that know nothing of encryption: `curl` and `http.client`."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import threading
from urllib.parse import urlsplit

import pytest
import requests
from doubles.sealed_server import POLICY, Outer, SealedServer, Stream
from strongroom.channel.bhttp import Response
from strongroom.client.adapter import SealedAdapter
from strongroom.client.proxy import SealedProxy
from strongroom.errors import ConfigurationInvalid


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return SealedAdapter(path)


@pytest.fixture
def behind(adapter):
    """A function that gives the proxy in front of a server."""
    running = []

    def start(server, **settings):
        running.append(SealedProxy(server.origin, adapter, **settings).start())
        return running[-1]

    yield start
    for proxy in running:
        proxy.close()


def test_plain_http_here_is_sealed_beyond(behind):
    with SealedServer() as server:
        proxy = behind(server)
        answer = requests.post(proxy.url + "/predictions/digits?x=1", data=b"a scan", headers={"X-Mine": "1"})
        assert (answer.status_code, answer.content) == (200, b"a scan")
        assert answer.headers["x-path"] == "/predictions/digits?x=1"
        inner = server.opened[0]
        assert inner.header("x-mine") == "1" and inner.authority == urlsplit(server.origin).netloc
        assert inner.header("host") is None and inner.header("content-length") == "6"
        assert all(b"a scan" not in body for *_, body in server.seen)


def test_an_inner_error_and_its_headers_come_through(behind):
    refusal = Response(418, (("x-one", "1"), ("x-one", "2"), ("connection", "close"), ("x-two", "3")), b"tea")
    with SealedServer(model=lambda request: refusal) as server:
        answer = requests.post(behind(server).url + "/predictions/digits")
    assert (answer.status_code, answer.content, answer.headers["x-one"], answer.headers["x-two"]) == (
        418,
        b"tea",
        "1, 2",
        "3",
    )


def test_a_stream_is_not_buffered_on_the_way(behind):
    go = threading.Event()

    def pieces():
        yield b"one"
        assert go.wait(10)
        yield b"two"

    with (
        SealedServer(model=lambda request: Stream(200, (), pieces())) as server,
        requests.post(behind(server).url + "/predictions/digits", stream=True) as answer,
    ):
        arrived = answer.iter_content(None)
        assert next(arrived) == b"one"
        go.set()
        assert list(arrived) == [b"two"]


def test_a_stream_that_is_cut_beyond_is_cut_here(behind):
    def failing():
        yield b"one"
        raise RuntimeError

    with (
        SealedServer(model=lambda request: Stream(200, (), failing())) as server,
        pytest.raises(requests.exceptions.ChunkedEncodingError),
    ):
        _ = requests.post(behind(server).url + "/predictions/digits").content


@pytest.mark.skipif(shutil.which("curl") is None, reason="SKIPPED LOUDLY: no curl")
def test_curl_uploads_in_chunks_and_keeps_the_connection(behind, tmp_path):
    (tmp_path / "scan").write_bytes(bytes(range(256)) * 100)
    with SealedServer() as server:
        url = behind(server).url + "/predictions/digits"
        command = ["curl", "-sS", "-T", str(tmp_path / "scan"), "-H", "Transfer-Encoding: chunked", url]
        assert subprocess.run(command, capture_output=True, check=True).stdout == bytes(range(256)) * 100
        twice = ["curl", "-sS", "-w", "%{num_connects} ", "-d", "a", url, "-d", "a", url]
        assert subprocess.run(twice, capture_output=True, check=True).stdout == b"a&a1 a&a0 "
        assert server.opened[0].method == "PUT"


def test_http_1_0_programs_are_answered_whole(behind):
    with SealedServer(model=lambda request: Stream(200, (), iter([b"one", b"two"]))) as server:
        connection = http.client.HTTPConnection(urlsplit(behind(server).url).netloc)
        connection._http_vsn_str = "HTTP/1.0"
        connection.request("POST", "/predictions/digits", b"x")
        answer = connection.getresponse()
        assert (answer.getheader("content-length"), answer.read()) == ("6", b"onetwo")


def test_a_server_that_fails_the_policy_is_a_502_with_the_reason_and_gets_nothing(behind):
    with SealedServer(measurement=bytes(32)) as server:
        answer = requests.post(behind(server).url + "/predictions/digits", data=b"x")
        assert answer.status_code == 502
        assert answer.json()["title"] == "ServerRefused" and "measurement" in answer.json()["detail"]
        assert server.sealed == []


def test_what_leads_to_no_model_is_a_404_and_is_not_passed_on(behind):
    with SealedServer() as server:
        assert requests.get(behind(server).url + "/models").status_code == 404
        assert server.seen == []


@pytest.mark.parametrize(("status", "seen"), [(401, 401), (413, 413), (500, 502), (302, 502)])
def test_an_answer_without_encapsulation_is_an_error(behind, status, seen):
    host = lambda kind, body, answer: Outer(status, "text/plain", b"forged") if kind == "request" else answer  # noqa: E731
    with SealedServer(host=host) as server:
        answer = requests.post(behind(server).url + "/predictions/digits", data=b"x", allow_redirects=False)
    assert answer.status_code == seen and b"forged" not in answer.content


def test_a_server_that_is_gone_is_a_502(adapter):
    with SealedServer() as server:
        origin = server.origin
    proxy = SealedProxy(origin, adapter, timeout=2).start()
    try:
        answer = requests.post(proxy.url + "/predictions/digits", data=b"x")
    finally:
        proxy.close()
    assert answer.status_code == 502 and "cannot be reached" in answer.json()["detail"]


def test_a_web_page_of_a_stranger_may_not_use_it(behind):
    with SealedServer() as server:
        proxy = behind(server, origins=["http://mine.example"])
        url = proxy.url + "/predictions/digits"
        assert requests.post(url, headers={"Origin": "http://evil.example"}).status_code == 403
        assert requests.post(url, headers={"Host": "evil.example"}).status_code == 403
        assert server.seen == []
        mine = requests.post(url, data=b"x", headers={"Origin": "http://mine.example"})
        assert (mine.content, mine.headers["access-control-allow-origin"]) == (b"x", "http://mine.example")
        preflight = {
            "Origin": "http://mine.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-mine",
        }
        answer = requests.options(url, headers=preflight)
        assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (204, "x-mine")
        preflight["Origin"] = "http://evil.example"
        assert requests.options(url, headers=preflight).status_code == 403


def test_a_malformed_chunk_is_a_400(behind):
    with SealedServer() as server:
        connection = http.client.HTTPConnection(urlsplit(behind(server).url).netloc)
        connection.putrequest("POST", "/predictions/digits")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        connection.send(b"zz\r\n")
        answer = connection.getresponse()
        assert answer.status == 400 and json.loads(answer.read())["title"] == "MalformedInput"
        assert server.seen == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "host.example"])
def test_it_listens_on_loopback_only(adapter, host):
    with pytest.raises(ConfigurationInvalid, match="does not listen"):
        SealedProxy("http://host:8080", adapter, host=host)


@pytest.mark.parametrize("base", ["host:8080", "ftp://host", "http://", "http://host/?x=1"])
def test_another_base_than_a_servers_address_is_refused(adapter, base):
    with pytest.raises(ConfigurationInvalid, match="address"):
        SealedProxy(base, adapter)


def test_a_port_that_is_taken_is_a_clear_refusal(adapter, behind):
    with SealedServer() as server:
        port = urlsplit(behind(server).url).port
        with pytest.raises(ConfigurationInvalid, match="cannot listen"):
            SealedProxy(server.origin, adapter, port=port)


def spoken(proxy, octets: bytes) -> bytes:
    """All that the proxy says to these octets, until it ends the connection."""
    with socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port), timeout=20) as connection:
        connection.sendall(octets)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


HEAD = b"POST /predictions/digits HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "request_octets",
    [
        HEAD + b"Content-Length: 1000\r\n\r\nonly ten b",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nab",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\nab",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 8192 + b"\r\na\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        b"POST @127.0.0.1:9/predictions/digits HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /predictions/digits?\xe4 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=[
        "short",
        "two lengths",
        "huge length",
        "two ends",
        "other coding",
        "short chunk",
        "long chunk",
        "a prefix",
        "a sign",
        "an underscore",
        "long extension",
        "cut trailers",
        "host",
        "bytes",
    ],
)
def test_a_request_that_is_not_whole_or_not_clear_is_a_400_and_is_not_passed_on(behind, request_octets):
    with SealedServer() as server:
        assert spoken(behind(server), request_octets).startswith(b"HTTP/1.1 400 ")
        assert server.seen == []


def test_a_host_that_cannot_be_read_is_refused(behind):
    with SealedServer() as server:
        head = b"GET /predictions/digits HTTP/1.1\r\nHost: [\r\n\r\n"
        assert spoken(behind(server), head).startswith(b"HTTP/1.1 403 ")


def test_a_whole_url_in_the_request_line_is_taken_for_its_path(behind):
    with SealedServer() as server:
        proxy = behind(server)
        head = f"GET {proxy.url}/predictions/digits?a=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert spoken(proxy, head.encode()).startswith(b"HTTP/1.1 200 ")
        assert server.opened[0].path == "/predictions/digits?a=1"


def test_a_program_that_asks_before_it_sends_its_body_is_told_to_go_on(behind):
    with SealedServer() as server:
        address = ("127.0.0.1", urlsplit(behind(server).url).port)
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"ab")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("none", 200), (None, 200)])
def test_what_another_site_embeds_is_refused_though_it_names_no_origin(behind, site, status):
    with SealedServer() as server:
        url = behind(server, origins=["http://mine.example"]).url + "/predictions/digits"
        assert requests.get(url, headers={"Sec-Fetch-Site": site} if site else {}).status_code == status
        assert len(server.opened) == (status == 200)


def test_a_path_in_front_of_the_server_is_used_once_and_is_not_shown_to_the_model(behind, adapter):
    with SealedServer() as server:
        outside = []
        seen = server.answer
        server.answer = lambda path, *rest: outside.append(path) or seen(path.removeprefix("/gw"), *rest)
        proxy = SealedProxy(server.origin + "/gw/", adapter).start()
        try:
            assert requests.post(proxy.url + "/predictions/digits", data=b"x").status_code == 200
        finally:
            proxy.close()
        assert set(outside) == {"/gw/predictions/digits"}
        assert server.opened[0].path == "/predictions/digits"


def test_it_listens_on_ipv6s_loopback_too(behind):
    with SealedServer() as server:
        assert requests.post(behind(server, host="::1").url + "/predictions/digits", data=b"x").content == b"x"


def test_the_models_own_word_on_origins_does_not_stand_beside_the_proxys(behind):
    open_to_all = Response(200, (("access-control-allow-origin", "*"),), b"")
    with SealedServer(model=lambda request: open_to_all) as server:
        url = behind(server, origins=["http://mine.example"]).url + "/predictions/digits"
        answer = requests.post(url, headers={"Origin": "http://mine.example"})
        assert answer.headers["access-control-allow-origin"] == "http://mine.example"


@pytest.mark.parametrize(
    ("base", "port"), [("http://[::1", 0), ("http://h:port", 0), ("http://h", 99999), ("http://h", -1)]
)
def test_an_address_or_a_port_that_there_is_not_is_a_clear_refusal(base, port, adapter):
    with pytest.raises(ConfigurationInvalid):
        SealedProxy(base, adapter, port=port)


def test_one_that_never_served_closes_at_once(adapter):
    SealedProxy("http://host:8080", adapter).close()


def test_no_path_of_a_program_is_in_the_log(behind, caplog):
    with SealedServer() as server:
        requests.get(behind(server).url + "/patients/smith")
    assert caplog.records and "smith" not in caplog.text
