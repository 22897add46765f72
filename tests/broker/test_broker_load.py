"""Two hundred keepers at once, each with SNP evidence of its own that is verified in full.

The chips are doubles under a hierarchy shaped like AMD's (a captured report answers no fresh challenge); the
verifier is the real one, with their root. The broker runs in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from broker.broker_in_a_room import Room
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.amd_keys import NOW, amd_keys
from strongroom.broker import directory
from strongroom.broker.statement import KeeperStatement
from strongroom.evidence.snp_report import to_serde
from strongroom.evidence.types import Evidence
from strongroom.keeper.release import ReleaseClient

SERVER = """
import sys, datetime
from pathlib import Path
from cryptography import x509
from strongroom.broker import serve
from strongroom.broker.http import application
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.types import Endorsements
from strongroom.hookspecs import VerifierOffer
from strongroom.plugins import Plugins, Verifiers

folder, roots = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
ask, ark = x509.load_pem_x509_certificates(roots)
plugins = Plugins.load()
verifier = SnpVerifier(issuers=lambda product, kind: (ask, ark))
plugins._verifiers = Verifiers({"snp": VerifierOffer("snp", lambda: verifier)})
offset = float(sys.argv[3])
lists = Endorsements({"crl": Path(sys.argv[4]).read_bytes()})
import time
serve.serve(
    folder, listen="127.0.0.1:0", policy=folder.parent / "appraisal.toml", rego="measured", plugins=plugins,
    clock=lambda: time.time() + offset, endorsements=lambda evidence, policy: lists,
    ready=lambda url: print(url, flush=True),
)
"""

APPRAISAL = f"""
name = "snp guests"
[snp]
measurements = ["{"22" * 48}"]
"""


class SnpGuest:
    """An attester on a doubled chip: a fresh report, signed P-384, with its VCEK beside it."""

    tee = "snp"
    chip = None
    certificate = b""

    def evidence(self, report_data):
        report = type(self).chip.report(report_data=report_data.ljust(64, b"\0"))
        chain = [{"cert_type": "VCEK", "data": list(type(self).certificate)}]
        return Evidence("snp", {"attestation_report": to_serde(report), "cert_chain": chain})


@pytest.fixture
def snp_room(tmp_path):
    line = amd_keys("Milan")
    SnpGuest.chip = line.chip()
    SnpGuest.certificate = SnpGuest.chip.certificate()
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in line.issuers("Milan", "VCEK"))
    (tmp_path / "roots.pem").write_bytes(pem)
    (tmp_path / "appraisal.toml").write_text(APPRAISAL)
    directory.init(tmp_path / "broker")
    offset = 0.0
    if not NOW.timestamp() < time.time() < NOW.timestamp() + 4 * 365 * 86400:
        offset = NOW.timestamp() - time.time()
    (tmp_path / "ark.crl").write_bytes(line.ark.crl(at=datetime.fromtimestamp(time.time() + offset, UTC)))
    files = [tmp_path / "broker", tmp_path / "roots.pem", offset, tmp_path / "ark.crl"]
    words = [sys.executable, "-c", SERVER, *map(str, files)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=(tmp_path / "log").open("w"), text=True)
    try:
        url = process.stdout.readline().strip()
        assert url, (tmp_path / "log").read_text()[-2000:]
        room = Room(url, None, tmp_path / "broker")
        room.process = psutil.Process(process.pid)
        yield room
    finally:
        process.terminate()
        process.wait(20)


def attest_all(room, count, number=1):
    """`count` keepers, one handshake each, all at once; their seconds."""
    name, archive, key = room.register(number, lineage=f"digits{number}", lease_s=900)
    took, failed = [0.0] * count, []
    barrier = threading.Barrier(count + 1)

    def keeper(number):
        client = ReleaseClient(
            room.url, attester=SnpGuest(), timeout=120, statement=KeeperStatement(number.to_bytes(16, "big"))
        )
        barrier.wait()
        begun = time.monotonic()
        try:
            released = client.fetch(tuple(name), archive)
            assert released.key.reveal() == key.reveal()
            entry = released.claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["strongroom"]
            assert entry["keeper"] == number.to_bytes(16, "big").hex(), "a session was mixed up"
        except Exception as error:
            failed.append(repr(error))
        took[number] = time.monotonic() - begun

    threads = [threading.Thread(target=keeper, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.monotonic()
    for thread in threads:
        thread.join()
    assert not failed, failed[:3]
    leases = [each for each in room.admin().leases() if each["resource"] == str(name)]
    assert len({each["keeper"] for each in leases}) == count
    return took, time.monotonic() - begun


def busy(process):
    """Seconds of processor time of a broker and of its policy interpreter, each."""
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    return [each.user + each.system for each in times]


def test_twenty_keepers_at_once_each_get_their_own_session(snp_room):
    attest_all(snp_room, 20)


@pytest.mark.long
def test_two_hundred_keepers_at_once(snp_room):
    attest_all(snp_room, 2)  # so that the interpreter runs
    before = busy(snp_room.process)
    took, total = attest_all(snp_room, 200, number=2)
    spent = [after - ago for ago, after in zip(before, busy(snp_room.process), strict=True)]
    figures = {
        "keepers": 200,
        "p50_s": round(statistics.median(took), 3),
        "p99_s": round(sorted(took)[197], 3),
        "releases_per_s": round(200 / total, 1),
        "broker_cpu_ms": round(spent[0] / 200 * 1e3, 1),
        "interpreter_cpu_ms": round(sum(spent[1:]) / 200 * 1e3, 1),
    }
    print(json.dumps(figures))
    out = Path(snp_room.folder.parent / "figures.json")
    out.write_text(json.dumps(figures))
