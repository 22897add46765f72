"""`strongroom request`, `verify-server` and `proxy`, as a shell runs them."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import requests
from doubles.sealed_server import POLICY, SealedServer, Stream


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


def strongroom(*arguments, **settings):
    command = [sys.executable, "-m", "strongroom.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, **settings)


def test_request_prints_the_answer_on_stdout_and_one_happy_line_on_stderr(policy):
    with SealedServer() as server:
        run = strongroom("request", server.url, "-d", "a scan", "-H", "X-Mine: 1", "--policy", policy)
        assert (run.returncode, run.stdout) == (0, b"a scan")
        assert b"200 OK, 6 bytes, sealed both ways" in run.stderr
        assert server.opened[0].header("x-mine") == "1"


def test_request_reads_a_file_or_stdin_and_writes_a_file(policy, tmp_path):
    (tmp_path / "scan").write_bytes(b"\x00\xff")
    with SealedServer() as server:
        run = strongroom("request", server.url, "-d", f"@{tmp_path}/scan", "-o", tmp_path / "out", "--policy", policy)
        assert (run.returncode, run.stdout, (tmp_path / "out").read_bytes()) == (0, b"", b"\x00\xff")
        assert strongroom("request", server.url, "-d", "@-", "--policy", policy, input=b"piped").stdout == b"piped"


def test_request_sends_the_bytes_that_were_typed(policy):
    with SealedServer() as server:
        run = strongroom("request", server.url, "-d", "\udcff", "--policy", policy)
        assert (run.returncode, run.stdout) == (0, b"\xff")


def test_a_body_from_standard_input_is_missed_where_it_is_closed(policy):
    command = f"exec '{sys.executable}' -m strongroom.cli request http://127.0.0.1:9/predictions/m -d @- --policy"
    run = subprocess.run(["sh", "-c", f"{command} '{policy}' <&-"], capture_output=True, timeout=60)
    assert run.returncode == 2 and b"standard input is closed" in run.stderr


@pytest.mark.parametrize("octets", [b"\xff", b"", b"two words"])
def test_a_token_that_none_could_be_is_refused_and_not_repeated(octets, policy, tmp_path):
    (tmp_path / "token").write_bytes(octets)
    url = "http://127.0.0.1:9/predictions/m"
    run = strongroom("request", url, "--token", f"@{tmp_path}/token", "--policy", policy)
    assert run.returncode == 1 and b"hint: " in run.stderr
    assert b"Traceback" not in run.stderr and b"words" not in run.stderr


def test_request_streams_and_says_when_a_stream_was_cut(policy):
    def failing():
        yield b"one"
        raise RuntimeError

    with SealedServer(model=lambda request: Stream(200, (), failing())) as server:
        run = strongroom("request", server.url, "--stream", "--policy", policy)
    assert (run.returncode, run.stdout) == (1, b"one")
    assert b"strongroom: error: " in run.stderr and b"Traceback" not in run.stderr


def test_a_file_has_an_answer_that_is_whole_and_nobody_else_can_read_it(policy, tmp_path):
    (tmp_path / "real").write_text("an earlier answer")
    (tmp_path / "out").symlink_to("real")
    with SealedServer() as server:
        strongroom("request", server.url, "-d", "plain", "-o", tmp_path / "out", "--policy", policy)
    assert (tmp_path / "real").read_bytes() == b"plain"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


def test_an_answer_that_was_cut_takes_no_name(policy, tmp_path):
    def failing():
        yield b"one"
        raise RuntimeError

    folder = tmp_path / "answers"
    folder.mkdir()
    with SealedServer(model=lambda request: Stream(200, (), failing())) as server:
        run = strongroom("request", server.url, "--stream", "-o", folder / "out", "--policy", policy)
    assert run.returncode == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_that_is_stopped_leaves_no_draft(number, policy, tmp_path):
    folder, over = tmp_path / "answers", threading.Event()
    folder.mkdir()

    def waiting():
        yield b"one"
        over.wait(60)

    with SealedServer(model=lambda request: Stream(200, (), waiting())) as server:
        command = [sys.executable, "-m", "strongroom.cli", "request", server.url, "--stream", "-o", str(folder / "out")]
        command += ["--policy", str(policy)]
        heard = partial(signal.signal, number, signal.SIG_DFL)  # what starts the tests may ignore it
        with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heard) as running:
            while running.poll() is None and not any(each.stat().st_size for each in folder.iterdir()):
                time.sleep(0.01)
            running.send_signal(number)
            assert running.wait(20) == 128 + number
        over.set()
    assert list(folder.iterdir()) == []


def test_an_answer_goes_into_a_device_as_it_is(policy):
    with SealedServer() as server:
        run = strongroom("request", server.url, "-d", "plain", "-o", "/dev/stdout", "--policy", policy)
    assert (run.returncode, run.stdout) == (0, b"plain")


def test_request_as_json_and_with_a_token_from_a_file(policy, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    with SealedServer(token="secret") as server:
        run = strongroom(
            "request", server.url, "-d", "x", "--json", "--token", f"@{tmp_path}/token", "--policy", policy
        )
        denied = strongroom("request", server.url, "-d", "x", "--policy", policy)
    answer = json.loads(run.stdout)
    assert (answer["status"], base64.b64decode(answer["body"])) == (200, b"x")
    assert denied.returncode == 1 and b"hint: the server's frontend demands a token" in denied.stderr


def test_request_sends_nothing_to_a_server_that_fails_the_policy(policy):
    with SealedServer(measurement=bytes(32)) as server:
        run = strongroom("request", server.url, "-d", "secret", "--policy", policy)
        assert server.sealed == [] and len(server.seen) == 1
    assert run.returncode == 1 and run.stdout == b""
    assert b"nothing was sent" in run.stderr and b"hint: " in run.stderr


def test_verify_server_prints_each_check_with_expected_and_found(policy):
    with SealedServer() as server:
        run = strongroom("verify-server", server.url, "--policy", policy)
        as_json = strongroom("verify-server", server.url, "--policy", policy, "--json")
    lines = run.stdout.decode().splitlines()
    assert run.returncode == 0
    assert all(line.startswith("ok    ") and "expected " in line and "found " in line for line in lines[:-1])
    assert lines[-1].startswith("digits 1.0: ") and lines[-1].endswith("sealed with X-Wing")
    assert json.loads(as_json.stdout)["accepted"] is True


def test_verify_server_shows_what_failed_and_exits_with_1(policy):
    with SealedServer(measurement=bytes(32)) as server:
        run = strongroom("verify-server", server.url, "--policy", policy)
        as_json = strongroom("verify-server", server.url, "--policy", policy, "--json")
    assert run.returncode == as_json.returncode == 1
    assert b"FAIL  simulated.measurement: expected " in run.stdout and b"ok    bundle.nonce" in run.stdout
    assert json.loads(as_json.stdout)["accepted"] is False


def test_a_server_that_is_not_there_is_one_clear_line(policy):
    run = strongroom("verify-server", "http://127.0.0.1:9/predictions/m", "--policy", policy)
    assert run.returncode == 1
    assert run.stderr.decode().count("\n") == 2 and b"cannot be reached" in run.stderr


def test_proxy_says_where_it_listens_and_stops_on_sigterm(policy):
    with SealedServer() as server:
        command = [
            sys.executable,
            "-m",
            "strongroom.cli",
            "proxy",
            server.origin,
            "--policy",
            str(policy),
            "--port",
            "0",
        ]
        with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            url = json.loads(running.stdout.readline())["url"]
            assert requests.post(url + "/predictions/digits", data=b"x").content == b"x"
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0
