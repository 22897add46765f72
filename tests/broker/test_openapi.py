"""The OpenAPI document against the broker: the same routes, and no 500 for anything that it can describe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from broker.broker_in_a_room import Peer, broker_room
from strongroom.broker import admin, http
from strongroom.broker.pace import Pace
from strongroom.encoding import b64url

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.yaml"


def described():
    paths = yaml.safe_load(DOCUMENT.read_text("utf-8"))["paths"]
    verbs = {"get", "post", "delete"}
    return {(verb.upper(), path) for path, each in paths.items() for verb in verbs & set(each)}


def test_the_document_lists_every_route_and_no_other(tmp_path):
    with broker_room(tmp_path) as room:
        routes = http.application(room.broker).routes
        served = {
            (method, route.path)
            for route in routes
            for method in (route.methods or set()) - {"HEAD"}
            if "{plugin}" not in route.path
        }
    assert described() == served


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("who", ["an administrator", "an attested keeper", "nobody"])
def test_nothing_that_the_document_can_describe_gives_a_500_or_a_key(tmp_path, monkeypatch, who):
    beside = Path(sys.executable).with_name("schemathesis")
    command = os.environ.get("SCHEMATHESIS") or (str(beside) if beside.exists() else shutil.which("schemathesis"))
    if command is None:
        pytest.skip("SKIPPED LOUDLY: no schemathesis here; pip install 'strongroom[fuzz]', or set SCHEMATHESIS")
    monkeypatch.setattr(admin, "TOKEN_SECONDS", 600)  # the longest life that the broker accepts
    with broker_room(tmp_path, pace=Pace(per_second=0)) as room:
        name, archive, key = room.register(1)
        token = {"nobody": "", "an administrator": admin.AdminKey.load(room.folder / "admin.key").token()}.get(who)
        if token is None:
            peer = Peer(room)
            peer.auth()
            token = peer.attest().json()["token"]
        words = [
            "run", str(DOCUMENT), "--url", room.url, "--checks", "not_a_server_error,response_schema_conformance",
            "--max-examples", "60", "-H", f"Authorization: Bearer {token}", "--report", "ndjson",
            "--report-ndjson-path", str(tmp_path / "report.ndjson"),
        ]  # fmt: skip
        result = subprocess.run([command, *words], capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stdout[-6000:]
        report = (tmp_path / "report.ndjson").read_text()
        secret = key.reveal()
        assert report and "Traceback" not in report
        for spelled in (secret.hex(), b64url(secret), base64.b64encode(secret).decode()):
            assert spelled not in report
        assert json.loads(room.broker.audit.entries()[0])["event"] == "init"
        if who != "an administrator":  # who may have deleted the key or replaced a policy by then
            assert room.client().fetch(tuple(name), archive).key.reveal() == secret
