"""Every verdict of the shared manifest, through the same runner that evidence never seen before will meet."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from evidence import run_manifest
from strongroom.evidence.types import Checklist, Word

SHARED = Path(__file__).resolve().parents[3] / "shared" / "evidence"
MANIFEST = SHARED / "MANIFEST.json"
VERDICTS = run_manifest.read_manifest(MANIFEST) if MANIFEST.is_file() else []


@pytest.mark.usefixtures("shared_evidence")
def test_the_shared_manifest_is_there_and_has_every_kind_of_tee():
    assert {verdict.tee for verdict in VERDICTS} == set(run_manifest.KINDS)


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict.name)
def test_the_verdict_is_right_and_for_the_right_reason(verdict):
    assert run_manifest.wrong(verdict, run_manifest.judge_verdict(verdict)) == ""


@pytest.fixture(scope="module")
def judged() -> list[tuple[run_manifest.Verdict, Checklist]]:
    """Every verdict with the checks that its policy made."""
    return [(verdict, run_manifest.judge_verdict(verdict)) for verdict in VERDICTS]


def test_a_verdict_with_the_opposite_expectation_fails(judged):
    for verdict, checks in judged:
        if verdict.accepted:
            for word in Word:
                changed = replace(verdict, accepted=False, failed_check=str(word), words=frozenset({str(word)}))
                assert "should have failed" in run_manifest.wrong(changed, checks), verdict.name
        else:
            changed = replace(verdict, accepted=True, failed_check=None, words=frozenset())
            assert run_manifest.wrong(changed, checks).startswith("refused: "), verdict.name


def test_a_right_rejection_for_any_other_reason_fails(judged):
    for verdict, checks in judged:
        failed = {str(check.word) for check in checks.failed}
        for word in set(map(str, Word)) - failed:
            changed = replace(verdict, failed_check=word, words=frozenset({word}))
            assert verdict.accepted or "failed for" in run_manifest.wrong(changed, checks), (verdict.name, word)
            # Beside the reasons that are true, one that is not may not be the first: it was not found.
            changed = replace(changed, words=frozenset(failed | {word}))
            told = run_manifest.wrong(changed, checks)
            assert verdict.accepted or "format" in failed or f"{word} did not fail" in told, (verdict.name, word)


def test_a_reason_that_the_verdict_does_not_name_fails(judged):
    """Also where the named one is right: an undeclared second failure is a wrong reason."""
    for verdict, checks in judged:
        others = {str(check.word) for check in checks.failed} - {verdict.failed_check}
        changed = replace(verdict, words=frozenset({str(verdict.failed_check)}))
        assert verdict.accepted or bool(others) == bool(run_manifest.wrong(changed, checks)), verdict.name


def test_a_verifier_that_breaks_is_a_failure_and_not_a_rejection(monkeypatch, capsys, shared_evidence):
    """The judge counts an exception as no, and as a failed ``format`` check: that must not pass for one here."""

    class Broken(type(run_manifest._VERIFIERS["ear"])):
        def verify(self, *arguments):
            raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(run_manifest, "_VERIFIERS", {**run_manifest._VERIFIERS, "ear": Broken()})
    assert run_manifest.main([str(MANIFEST)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"{len(VERDICTS) - 1} passed, 1 failed"
    assert next(line for line in told if line.startswith("ear/")).count("a mistake of ours") == 1


def test_nothing_in_the_runner_knows_a_case_by_name():
    text = Path(run_manifest.__file__).read_text()
    names = {part for verdict in VERDICTS for part in (verdict.case, verdict.case.rpartition("/")[2], verdict.policy)}
    common = {"default", "allow_debug", "AK pinned", "good", "chain", "signature"}
    assert [name for name in names - common if len(name) > 5 and name in text] == []


def case_of(tmp_path: Path, shared_evidence: Path) -> dict:
    """A manifest of one small case, to be broken."""
    manifest = json.loads((shared_evidence / "MANIFEST.json").read_text())
    manifest["cases"] = [case for case in manifest["cases"] if case["path"] == "sev-snp/milan-v2-vcek"]
    shutil.copytree(shared_evidence / "sev-snp/milan-v2-vcek", tmp_path / "sev-snp/milan-v2-vcek")
    return manifest


def run(tmp_path: Path, manifest: dict) -> subprocess.CompletedProcess:
    path = tmp_path / "MANIFEST.json"
    path.write_text(json.dumps(manifest))
    return subprocess.run(
        [sys.executable, run_manifest.__file__, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_runner_by_path_prints_a_line_a_case_and_a_sum(tmp_path, shared_evidence):
    done = run(tmp_path, case_of(tmp_path, shared_evidence))
    assert done.stdout.splitlines() == ["sev-snp/milan-v2-vcek: ok, 2 of 2 verdicts", "2 passed, 0 failed"]
    assert done.returncode == 0


def test_a_wrong_expectation_fails_the_run(tmp_path, shared_evidence, capsys):
    manifest = case_of(tmp_path, shared_evidence)
    manifest["cases"][0]["expected"][1]["failed_check"] = "debug"
    (tmp_path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert run_manifest.main([str(tmp_path / "MANIFEST.json")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda case: case["expected"][0]["policy_params"].update(allow_everything=True),
        lambda case: case["expected"][0]["policy_params"].update(allow_debug="yes"),
        lambda case: case["expected"][0]["policy_params"].update(ak_trust="pinned"),
        lambda case: case["roles"].update(password="report.bin"),
        lambda case: case["inputs"].update(nonce="00"),
        lambda case: case["inputs"].update(report_data="00"),
        lambda case: case["inputs"].update(report_data=None),
        lambda case: case["inputs"].update(report_data="AB" * 64),
        lambda case: case["expected"][0].update(verdict="perhaps"),
        lambda case: case["expected"][1].update(failed_check="mood"),
        lambda case: case["expected"][1].update(failed_check="tee"),
        lambda case: case["expected"][1].update(also_fails=[case["expected"][1]["failed_check"]]),
        lambda case: case["expected"][0].update(also_fails=[]),
        lambda case: case["expected"][0].update(failed_check="debug"),
        lambda case: case["expected"][0].update(time="2025-09-01T00:00:00"),
        lambda case: case["expected"][0].update(files_override={"vcek": "another.der"}),
        lambda case: case.update(tee="abacus"),
        lambda case: case.update(surprise=1),
        lambda case: case["files"][0].update(sha256="00" * 32),
    ],
    ids=[
        "parameter",
        "value",
        "other-tee",
        "role",
        "input",
        "input-size",
        "input-null",
        "input-spelling",
        "verdict",
        "word",
        "our-word",
        "word-twice",
        "accepted-other-words",
        "accepted-word",
        "time",
        "file",
        "tee",
        "field",
        "digest",
    ],
)
def test_an_unknown_word_in_a_manifest_is_an_error(tmp_path, shared_evidence, capsys, spoil):
    manifest = case_of(tmp_path, shared_evidence)
    spoil(manifest["cases"][0])
    (tmp_path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert run_manifest.main([str(tmp_path / "MANIFEST.json")]) == 2
    told = capsys.readouterr()
    assert "ManifestInvalid" in told.err
    assert told.out == ""


def test_where_no_nonce_is_named_none_is_checked(judged):
    for verdict, checks in judged:
        if verdict.tee in run_manifest._QUOTED:
            rest = {name: octets for name, octets in verdict.expected.items() if name != "nonce"}
            found = run_manifest.judge_verdict(replace(verdict, expected=rest))
            assert {check.word for check in found.failed} == {check.word for check in checks.failed} - {"nonce"}


def test_an_expected_nonce_of_zero_length_is_refused_unless_allowed():
    for verdict in VERDICTS:
        if verdict.accepted and "nonce" in verdict.expected and not verdict.parameters.get("allow_empty_nonce"):
            changed = replace(verdict, expected={**verdict.expected, "nonce": b""})
            assert {check.word for check in run_manifest.judge_verdict(changed).failed} == {"nonce"}, verdict.name


def test_user_data_that_nothing_vouches_for_is_not_said_to_be_another():
    hardware = {"az-snp-vtpm": ("hcl_report", "report"), "az-tdx-vtpm": ("quote",)}
    for verdict in VERDICTS:
        if verdict.accepted and verdict.tee in hardware:
            files = {role: octets for role, octets in verdict.files.items() if role not in hardware[verdict.tee]}
            changed = replace(verdict, files=files, expected={**verdict.expected, "user_data": bytes(64)})
            assert {check.word for check in run_manifest.judge_verdict(changed).failed} == {"evidence-missing"}


def test_the_vector_of_an_attestation_result_does_not_decide():
    assert {run_manifest.policy_table(v)["check_vectors"] for v in VERDICTS if v.tee == "ear"} <= {False}


@pytest.mark.parametrize("verdict", [v for v in VERDICTS if v.accepted], ids=lambda verdict: verdict.name)
def test_without_its_main_file_a_verdict_is_missing_something_and_is_not_a_crash(verdict):
    kind = run_manifest.KINDS[verdict.tee]
    for role in (kind.needs, kind.needs_too):
        if role and not verdict.parameters.get("endorsements_only"):
            files = {name: octets for name, octets in verdict.files.items() if name != role}
            failed = {check.word for check in run_manifest.judge_verdict(replace(verdict, files=files)).failed}
            assert failed <= {"evidence-missing", "collateral-missing"}
            assert failed


def test_a_measurement_of_a_size_that_a_tee_never_has_is_another_measurement():
    for verdict in VERDICTS:
        if verdict.accepted and verdict.tee in run_manifest.PARAMETERS["expected_measurement"].tees:
            if verdict.parameters.get("endorsements_only"):
                continue
            for size in (32, 48, 64):
                parameters = {**verdict.parameters, "expected_measurement": "5a" * size}
                checks = run_manifest.judge_verdict(replace(verdict, parameters=parameters))
                assert {check.word for check in checks.failed} == {"measurement"}
