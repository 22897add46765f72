"""`explain`, `doctor` and `measure`: results on stdout, the rest on stderr, 0 or 1, one line at the end."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest


@dataclass
class Done:
    """What a finished command left behind."""

    returncode: int
    stdout: str
    stderr: str


def strongroom(*arguments: object) -> Done:
    """The console script in this process: a fresh app each time, with its own streams and arguments."""
    fresh = importlib.reload(importlib.import_module("strongroom.cli.main"))
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["strongroom", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            fresh.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def debug_guest(shared_evidence) -> Path:
    return shared_evidence / "sev-snp" / "milan-v2-debug"


def explain_report(folder: Path, *more: object) -> Done:
    return strongroom(
        "explain", folder / "report.bin", "--endorsement", f"vcek={folder / 'vcek.der'}",
        "--at", "2025-09-01T00:00:00Z", *more,
    )  # fmt: skip


def test_a_refused_report_is_explained_with_the_next_step(debug_guest):
    done = explain_report(debug_guest)
    assert done.returncode == 1
    *_, name, expected, found, source, hint, _, last = done.stdout.splitlines()
    assert last.endswith("report.bin: refused, 1 of 15 checks failed: snp.debug")
    assert name == "FAIL snp.debug"
    assert expected.split() == ["expected:", "DEBUG", "(bit", "19)", "clear"]
    assert found.split() == ["found:", "guest", "policy", "0xb0000"]
    assert "AMD 56860" in source
    assert "launch it without the debug bit" in hint


def test_the_same_report_under_a_policy_that_allows_debugging_is_accepted(debug_guest, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('name = "lab"\n[snp]\nallow_debug = true\n')
    done = explain_report(debug_guest, "--policy", policy)
    assert done.returncode == 0
    assert "checks hold under policy 'lab'; it was not compared with any report data" in done.stdout


def test_report_data_is_compared_where_it_is_given(debug_guest, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('name = "lab"\n[snp]\nallow_debug = true\n')
    right = "0102030405" + "00" * 59
    assert explain_report(debug_guest, "--policy", policy, "--report-data", right).returncode == 0
    wrong = explain_report(debug_guest, "--policy", policy, "--report-data", "11" * 64)
    assert wrong.returncode == 1
    assert "snp.binding" in wrong.stdout


def test_json_holds_every_check_and_claim(debug_guest):
    told = json.loads(explain_report(debug_guest, "--json").stdout)
    assert told["accepted"] is False
    assert [check["name"] for check in told["checks"] if not check["ok"]] == ["snp.debug"]
    assert told["claims"]["debug_allowed"] == {"value": True, "provenance": "hardware"}


@pytest.mark.parametrize(
    ("case", "file", "tee"),
    [
        ("tdx/v4-b0c06f-uptodate", "quote.bin", "tdx"),
        ("sgx/v3-00606a-debug", "quote.bin", "sgx"),
        ("cca/legacy-raw-rak", "token.cbor", "cca"),
        ("aws-nitro/us-east-1-2025", "attestation_doc.cose", "aws-nitro"),
        ("sev-snp/genoa-v5", "report.bin", "snp"),
    ],
)
def test_raw_evidence_is_recognised_and_measured(shared_evidence, case, file, tee):
    done = strongroom("measure", shared_evidence / case / file, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tee"] == tee
    assert told["values"]


def test_measured_values_are_a_policy_that_accepts_the_same_guest(tmp_path):
    evidence, policy = tmp_path / "evidence.json", tmp_path / "policy.toml"
    done = strongroom("measure", "--tee", "simulated", "--save", evidence)
    assert "can be forged by anyone" in done.stderr
    policy.write_text(done.stdout)
    assert strongroom("explain", evidence, "--policy", policy).returncode == 0
    policy.write_text(done.stdout.replace('measurements = ["', 'measurements = ["00').replace('00"]', '"]'))
    assert strongroom("explain", evidence, "--policy", policy).returncode == 1


def test_only_earlier_evidence_is_replaced_by_what_is_saved(tmp_path):
    key, evidence = tmp_path / "author.key", tmp_path / "evidence.json"
    key.write_text("a secret")
    refused = strongroom("measure", "--tee", "simulated", "--save", key)
    assert refused.returncode == 1 and "is no evidence: it is not replaced" in refused.stderr
    assert key.read_text() == "a secret"
    for _ in range(2):
        assert strongroom("measure", "--tee", "simulated", "--save", evidence).returncode == 0


def test_a_verdict_that_a_program_kept_is_explained(tmp_path, debug_guest):
    kept = tmp_path / "refusal.json"
    kept.write_text(explain_report(debug_guest, "--json").stdout)
    done = strongroom("explain", kept)
    assert done.returncode == 1
    assert "refused, 1 of" in done.stdout


def test_an_entry_of_a_brokers_audit_log_is_explained(tmp_path):
    check = {"name": "tdx.tcb", "word": "tcb", "expected": "UpToDate", "found": "OutOfDate"}
    kept = tmp_path / "entry.json"
    kept.write_text(json.dumps({"at": 1, "event": "attest", "tee": "tdx", "decision": "refused", "checks": [check]}))
    done = strongroom("explain", kept)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"{kept}: refused, 1 of 1 checks failed: tdx.tcb"


@pytest.mark.parametrize(
    "broken",
    [{"checks": [1]}, {"checks": {}}, {"checks": [{"ok": True}]}, {"checks": [{"name": 1}]}, {"submodules": []},
     {"submodules": {"cpu0": 1}}, {"submodules": {"cpu0": {"checks": 3}}}, {"checks": [], "claims": []},
     {"checks": [], "claims": {"a": 1}}, {"checks": [{"name": "a", "word": "mood"}]}],
    ids=repr,
)  # fmt: skip
def test_a_file_that_only_looks_like_a_verdict_is_refused_in_one_sentence(tmp_path, broken):
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(broken))
    done = strongroom("explain", kept)
    assert (done.returncode, done.stdout) == (1, "")
    assert "looks like a verdict" in done.stderr


def test_a_verdict_without_checks_or_with_a_failed_one_is_never_accepted(tmp_path):
    good = {"name": "a", "word": "tcb", "ok": True, "expected": "x", "found": "x"}
    for checks in ([], [good, good | {"ok": False}], [good | {"ok": "yes"}]):
        kept = tmp_path / "kept.json"
        kept.write_text(json.dumps({"accepted": True, "checks": checks}))
        assert strongroom("explain", kept).returncode == 1
    kept.write_text(json.dumps({"accepted": True, "checks": [good]}))
    assert strongroom("explain", kept).returncode == 0


def test_what_nobody_signed_is_said_by_software_alone(debug_guest, shared_evidence):
    """Without its certificate, or with another chip's, the report vouches for nothing."""
    told = json.loads(explain_report(debug_guest, "--json").stdout)
    assert {claim["provenance"] for claim in told["claims"].values()} == {"hardware"}
    other = shared_evidence / "sev-snp" / "milan-v2-vcek" / "vcek.der"
    for more in ((), ("--endorsement", f"vcek={other}")):
        told = json.loads(strongroom("explain", debug_guest / "report.bin", "--json", *more).stdout)
        assert {claim["provenance"] for claim in told["claims"].values()} == {"self-asserted"}


def test_what_was_fetched_before_is_used_and_nobody_is_asked(tmp_path, shared_evidence):
    from datetime import UTC, datetime

    from strongroom.collateral.store import Entry, Store
    from strongroom.collateral.wanted import dcap_for_quote

    folder = shared_evidence / "tdx" / "v4-b0c06f-uptodate"
    quote, at = (folder / "quote.bin").read_bytes(), "2025-07-01T00:00:00Z"
    manifest = json.loads((shared_evidence / "MANIFEST.json").read_text())
    at = next(case for case in manifest["cases"] if case["path"] == "tdx/v4-b0c06f-uptodate")["verification_time"]
    entry = Entry(dcap_for_quote(quote), datetime(2025, 1, 1, tzinfo=UTC), (folder / "collateral.json").read_bytes())
    asked = ("explain", folder / "quote.bin", "--at", at, "--collateral", tmp_path, "--json")
    without = json.loads(strongroom(*asked).stdout)
    assert [check["name"] for check in without["checks"] if not check["ok"]] == ["tdx.collateral-present"]
    Store(tmp_path).put(entry)
    done = strongroom(*asked)
    assert json.loads(done.stdout)["endorsements"] == ["collateral"]
    assert done.returncode == 0


def test_an_error_is_explained_by_name():
    done = strongroom("explain", "ReleaseDenied")
    assert done.returncode == 0
    assert "keeps the key" in done.stdout
    assert json.loads(strongroom("explain", "ReleaseDenied", "--json").stdout)["parents"][0] == "ReleaseError"


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "NoSuchError"),
        ("explain", "/no/such.file"),
        ("explain", __file__),
        ("measure", "--tee", "abacus"),
        ("measure", __file__),
    ],
)
def test_what_cannot_be_explained_ends_in_one_sentence_and_a_hint(arguments):
    done = strongroom(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("strongroom: error: ")
    assert "Traceback" not in done.stderr


@pytest.fixture(params=["America/New_York", "Asia/Tokyo"])
def far_away(request):
    """A machine in another time zone."""
    with mock.patch.dict(os.environ, TZ=request.param):
        time.tzset()
        yield
    time.tzset()


def test_a_time_without_a_zone_is_utc_wherever_one_is(far_away, debug_guest):
    done = explain_report(debug_guest, "--at", "2025-09-01T00:00:00", "--json")
    assert json.loads(done.stdout)["at"] == "2025-09-01T00:00:00Z"


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "noon"])
def test_a_time_that_is_none_is_wrong_use(at, debug_guest):
    done = explain_report(debug_guest, "--at", at)
    assert done.returncode == 2
    assert "is no date" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_ends_in_one_line_and_says_what_is_missing():
    done = strongroom("doctor")
    told = json.loads(strongroom("doctor", "--json").stdout)
    last = done.stdout.strip().splitlines()[-1]
    if told["attester"] is None:
        assert done.returncode == 1
        assert last.startswith("no TEE can be used here")
        assert all(each["missing"] for each in told["tees"] if each["tee"] != "nvidia")
    else:
        assert done.returncode == 0
        assert last.startswith(f"this machine attests as {told['attester']}")
    looks = sum(not each["ok"] for each in told["hardening"])
    assert (f"{looks} of {len(told['hardening'])} protections" if looks else "every protection holds") in last
    assert {each["what"] for each in told["hardening"]} >= {"swap", "ptrace", "core dumps", "keeper: dumpable"}
    assert all(each["hint"] for each in told["hardening"] if not each["ok"])


def test_doctor_tries_what_a_worker_could_do_to_a_keeper():
    found = {each["what"]: each["ok"] for each in json.loads(strongroom("doctor", "--json").stdout)["hardening"]}
    for door in ("reads the keeper's memory", "traces the keeper", "writes to a disk", "makes a network socket"):
        assert found[f"worker {door}"], door


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (set(), "no TEE can be used here"),
        ({"nvidia"}, "no TEE can be used here"),
        ({"snp"}, "this machine attests as snp"),
        ({"snp", "nvidia"}, "this machine attests as snp; beside it devices = ['nvidia'] can attest"),
        ({"tpm"}, "this machine attests as tpm: it can show what was booted"),
        ({"tpm", "tdx"}, "this machine attests as tdx"),
        ({"az-snp-vtpm", "tpm"}, "this machine attests as az-snp-vtpm"),
    ],
)
def test_one_line_says_what_a_machine_can_prove(here, said):
    from strongroom.attest.machine import TeeFinding, summary

    order = ("az-snp-vtpm", "snp", "tdx", "nvidia", "tpm")
    assert summary(TeeFinding(tee, "" if tee in here else "not here", "") for tee in order).startswith(said)


def test_a_tpm_in_software_is_found_by_doctor(monkeypatch, tmp_path):
    from doubles.software_tpm import SoftwareTpm

    pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
    with SoftwareTpm(tmp_path / "machine") as machine:
        monkeypatch.setenv("TPM2TOOLS_TCTI", machine.tcti)
        told = json.loads(strongroom("doctor", "--json").stdout)
        assert told["attester"] == "tpm"
        missing = {each["tee"]: each["missing"] for each in told["tees"]}
        assert "no Azure paravisor" in missing["az-snp-vtpm"]
    monkeypatch.delenv("TPM2TOOLS_TCTI")


def test_hardening_is_read_from_the_kernels_own_files(tmp_path):
    from strongroom.attest.machine import hardening

    files = {
        "proc/swaps": "Filename\n/dev/sda2 partition\n",
        "proc/sys/kernel/yama/ptrace_scope": "2\n",
        "sys/kernel/security/lockdown": "none integrity [confidentiality]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {each.what: each.ok for each in hardening(tmp_path)}
    assert (found["swap"], found["ptrace"], found["kernel lockdown"]) == (False, True, True)
