"""The one door from evidence to a verdict: what opens it, and everything that does not."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from strongroom.errors import ConfigurationInvalid, EvidenceMalformed, EvidenceRefused
from strongroom.evidence.judge import Presented, Verdict, format_checks, judge, judge_composite
from strongroom.evidence.policy import AdmittedModel, Policy
from strongroom.evidence.simulated import SimulatedReport, SimulatedVerifier
from strongroom.evidence.types import Checklist, Claims, Endorsements, Evidence, Word
from strongroom.keys import ArchiveDigest, AuthorId

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BINDING = bytes(range(48))
MEASUREMENT = b"\x11" * 32


def simulated(binding: bytes = BINDING, measurement: bytes = MEASUREMENT, **asserted: Any) -> Evidence:
    return Evidence("simulated", SimulatedReport.sign(measurement, binding.ljust(64, b"\0"), asserted).serialise())


@dataclass
class PretendGpu:
    """A verifier of pretend GPUs: the body says it all; several of them may travel in one body."""

    tee: str = "nvidia"
    seen: list = field(default_factory=list)

    def policy(self, table):
        return None

    def split(self, evidence):
        return tuple(Evidence(self.tee, each) for each in evidence.body["list"])

    def verify(self, evidence, endorsements, now, policy, checks):
        self.seen.append(evidence)
        checks.that(evidence.body.get("good", True), "nvidia.signature", Word.SIGNATURE, expected="good", found="?")
        return Claims(
            self.tee, {}, evidence.body["nonce"], Word.NONCE, evidence.body.get("class", "gpu"), evidence.body["id"]
        )

    def appraise(self, claims, policy, checks):
        pass


VERIFIERS = {"simulated": SimulatedVerifier(), "nvidia": PretendGpu()}
TABLE = '[simulated]\nprotects_nothing = true\nmeasurements = ["' + MEASUREMENT.hex() + '"]\n'


def policy(text: str = TABLE, head: str = "") -> Policy:
    return Policy.parse(f'name = "test"\n{head}\n{text}', VERIFIERS)


def judged(evidence: Evidence, **changes: Any) -> Verdict:
    arguments = {"binding": BINDING, "endorsements": Endorsements(), "policy": policy(), "now": NOW}
    return judge(evidence, verifiers=VERIFIERS, **(arguments | changes))


def words(evidence: Evidence, **changes: Any) -> set[Word]:
    with pytest.raises(EvidenceRefused) as caught:
        judged(evidence, **changes)
    assert any(check.ok is False for check in caught.value.checks)
    return {check.word for check in caught.value.checks if not check.ok}


def test_good_evidence_becomes_a_verdict_with_every_check():
    verdict = judged(simulated())
    assert verdict.claims["measurement"] == MEASUREMENT
    assert {check.word for check in verdict.checks} >= {Word.SIGNATURE, Word.MEASUREMENT, Word.BINDING}
    assert all(line.startswith("ok ") for line in format_checks(verdict.checks))


def test_a_verdict_serialises_to_json_values():
    import json

    told = json.loads(json.dumps(judged(simulated(extra={"n": [1, None]})).serialise()))
    assert told["accepted"] is True
    assert told["submodules"]["cpu0"]["claims"]["measurement"] == {
        "value": MEASUREMENT.hex(),
        "provenance": "self-asserted",
    }


def test_no_policy_and_an_empty_policy_are_no():
    assert words(simulated(), policy=None) == {Word.TEE}
    assert words(simulated(), policy=policy("")) == {Word.TEE}


def test_a_tee_that_the_policy_does_not_name_is_refused():
    assert words(simulated(), policy=policy("[nvidia]\n")) == {Word.TEE}
    assert words(Evidence("abacus", {})) == {Word.TEE}


@pytest.mark.parametrize(
    "binding",
    [bytes(48), BINDING[:47], BINDING + b"\x01", b"", b"\0", BINDING[::-1]],
    ids=["zeros", "short", "longer", "empty", "one-byte", "reversed"],
)
def test_another_binding_is_refused(binding):
    assert words(simulated(), binding=binding) == {Word.BINDING}


def test_an_empty_binding_does_not_match_empty_report_data():
    assert words(simulated(bytes(48)), binding=b"") == {Word.BINDING}


def test_a_measurement_that_is_not_listed_is_refused_with_the_next_step():
    with pytest.raises(EvidenceRefused, match=r"simulated\.measurement") as caught:
        judged(simulated(measurement=b"\x22" * 32))
    assert "strongroom measure" in caught.value.hint


def test_an_empty_list_of_measurements_denies():
    empty = policy("[simulated]\nprotects_nothing = true\nmeasurements = []\n")
    assert words(simulated(), policy=empty) == {Word.MEASUREMENT}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.update(measurement="22" * 32),
        lambda body: body.update(asserted={"more": 1}),
        lambda body: body.update(report_data=simulated(bytes(48)).body["report_data"]),
    ],
)
def test_a_changed_simulated_report_fails_its_signature(spoil):
    evidence = simulated()
    spoil(evidence.body)
    assert Word.SIGNATURE in words(evidence)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"version": 2}, [], None, "text", simulated().body | {"more": 1},
        simulated().body | {"report_data": "AA=="},
        simulated().body | {"asserted": {"a": 1.5}}, simulated().body | {"asserted": []},
        simulated().body | {"measurement": "AA" * 32},
    ],
)  # fmt: skip
def test_evidence_that_cannot_be_read_is_a_refusal_of_format(body):
    assert words(Evidence("simulated", body)) == {Word.FORMAT}


def test_a_verifier_that_breaks_counts_as_no():
    class Broken(SimulatedVerifier):
        def verify(self, *arguments):
            raise ZeroDivisionError

    with pytest.raises(EvidenceRefused) as caught:
        judge(
            simulated(), binding=BINDING, endorsements=Endorsements(), policy=policy(), now=NOW,
            verifiers={"simulated": Broken()},
        )  # fmt: skip
    assert "ZeroDivisionError" in str(caught.value)


def test_a_verifier_that_checks_nothing_counts_as_no():
    class Lazy(SimulatedVerifier):
        def verify(self, *arguments):
            return Claims("simulated", {}, BINDING.ljust(64, b"\0"))

        def appraise(self, *arguments):
            pass

    with pytest.raises(EvidenceRefused):
        judge(
            simulated(), binding=BINDING, endorsements=Endorsements(), policy=policy(), now=NOW,
            verifiers={"simulated": Lazy()},
        )  # fmt: skip


def test_a_verifier_with_a_narrow_binding_field_counts_as_no():
    class Narrow(SimulatedVerifier):
        def verify(self, evidence, endorsements, now, own, checks):
            claims = super().verify(evidence, endorsements, now, own, checks)
            return Claims("simulated", claims.values, BINDING[:8])

    with pytest.raises(EvidenceRefused) as caught:
        judge(
            simulated(), binding=BINDING, endorsements=Endorsements(), policy=policy(), now=NOW,
            verifiers={"simulated": Narrow()},
        )  # fmt: skip
    assert [check.word for check in caught.value.checks if not check.ok] == [Word.BINDING]


def test_nobody_else_makes_or_changes_a_verdict():
    verdict = judged(simulated())
    with pytest.raises(TypeError, match="only judge"):
        Verdict(object(), policy=verdict.policy, at=NOW, submodules=verdict.submodules, checks=verdict.checks)
    with pytest.raises(AttributeError):
        verdict.policy = None
    with pytest.raises(AttributeError):
        del verdict.checks
    with pytest.raises(TypeError):
        verdict.submodules["cpu1"] = verdict.submodules["cpu0"]
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            attempt(verdict)


# -- devices ---------------------------------------------------------------------

DEVICE_BINDING = b"\x77" * 48
GPUS = TABLE + "[nvidia]\n"


def gpu(name: str = "GPU-1", **changes: Any) -> dict[str, Any]:
    return {"id": name, "nonce": DEVICE_BINDING[:32]} | changes


def composite(*bodies: dict[str, Any], text: str = GPUS) -> Verdict:
    devices = [Presented(Evidence("nvidia", {"list": list(bodies)}))] if bodies else []
    return judge_composite(
        Presented(simulated()), devices, binding=BINDING, device_binding=DEVICE_BINDING, policy=policy(text),
        now=NOW, verifiers=VERIFIERS,
    )  # fmt: skip


def refused(*bodies: dict[str, Any], text: str = GPUS) -> set[Word]:
    with pytest.raises(EvidenceRefused) as caught:
        composite(*bodies, text=text)
    return {check.word for check in caught.value.checks if not check.ok}


COUNTED = GPUS + "[devices]\ngpu = 2\n"


def test_a_cpu_with_two_gpus_has_three_submodules():
    verdict = composite(gpu("GPU-1"), gpu("GPU-2"), text=COUNTED)
    assert list(verdict.submodules) == ["cpu0", "gpu0", "gpu1"]
    assert any(check.name == "gpu1/nvidia.signature" for check in verdict.checks)


def test_switches_are_counted_apart():
    text = COUNTED + "switch = 1\n"
    assert list(composite(gpu("A"), gpu("B"), gpu("S", **{"class": "switch"}), text=text).submodules) == [
        "cpu0", "gpu0", "gpu1", "switch0",
    ]  # fmt: skip
    assert refused(gpu("A"), gpu("B"), text=text) == {Word.DEVICE_COUNT}


@pytest.mark.parametrize(
    "bodies",
    [(), (gpu("A"),), (gpu("A"), gpu("B"), gpu("C")), (gpu("A"), gpu("A")), (gpu(""), gpu(""))],
    ids=["none", "too-few", "too-many", "twice", "nameless"],
)
def test_a_wrong_number_of_devices_is_refused(bodies):
    assert refused(*bodies, text=COUNTED) == {Word.DEVICE_COUNT}


def test_the_same_device_twice_is_refused_even_where_nothing_is_counted():
    assert refused(gpu("A"), gpu("A")) == {Word.DEVICE_COUNT}


def test_a_device_of_another_session_is_refused():
    assert refused(gpu("A"), gpu("B", nonce=b"\x78" * 32), text=COUNTED) == {Word.NONCE}


def test_a_device_that_the_policy_does_not_name_is_refused():
    assert Word.TEE in refused(gpu("A"), text=TABLE)


def test_a_bad_device_refuses_the_whole():
    assert Word.SIGNATURE in refused(gpu("A"), gpu("B", good=False), text=COUNTED)


def test_a_device_cannot_stand_in_for_the_cpu_nor_a_cpu_for_a_device():
    with pytest.raises(EvidenceRefused):
        judged(Evidence("nvidia", gpu()), policy=policy(GPUS), binding=DEVICE_BINDING)
    with pytest.raises(EvidenceRefused) as caught:
        judge_composite(
            Presented(simulated()), [Presented(simulated(DEVICE_BINDING))], binding=BINDING,
            device_binding=DEVICE_BINDING, policy=policy(GPUS), now=NOW, verifiers=VERIFIERS,
        )  # fmt: skip
    assert Word.TEE in {check.word for check in caught.value.checks if not check.ok}


def test_a_single_judgement_cannot_satisfy_a_policy_that_counts_devices():
    assert words(simulated(), policy=policy(COUNTED)) == {Word.DEVICE_COUNT}


# -- policies ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "name = 1", "name = 'x'\nmax_age = -1", "name = 'x'\nsurprise = 1", "name = 'x'\n[abacus]", "not toml",
        "name = 'x'\n[simulated]", "name = 'x'\n[simulated]\nprotects_nothing = false",
        "name = 'x'\n[simulated]\nprotects_nothing = true",
        "name = 'x'\n[simulated]\nprotects_nothing = true\nany_measurement = true\nmeasurements = []",
        "name = 'x'\n[simulated]\nprotects_nothing = true\nmeasurements = ['00']",
        "name = 'x'\n[simulated]\nprotects_nothing = true\nany_measurement = true\nmore = 1",
        "name = 'x'\n[devices]\ngpu = 65", "name = 'x'\n[devices]\ntoaster = 1",
        "name = 'x'\n[channel]\nmodes = ['shared']", "name = 'x'\n[channel]\nmode = 'host'",
        "name = 'x'\n[admitted]\narchives = ['00']", "name = 'x'\n[admitted]\nmore = 1", "name = 'x'\nsnp = 1",
    ],
)  # fmt: skip
def test_a_policy_with_something_wrong_in_it_is_not_used(text):
    with pytest.raises(ConfigurationInvalid):
        Policy.parse(text, VERIFIERS)


def test_a_policy_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ConfigurationInvalid, match=r"none\.toml"):
        Policy.load(tmp_path / "none.toml", VERIFIERS)


A, B = ArchiveDigest(b"\xaa" * 32), ArchiveDigest(b"\xbb" * 32)
AUTHOR = AuthorId(b"\x01" * 32)


def admitted(text: str, *models: AdmittedModel, **more: Any) -> set[str]:
    checks = Checklist()
    admission = policy(head="", text=TABLE + "[admitted]\n" + text).admitted
    admission.appraise(models, checks, **more)
    return {check.name for check in checks.failed}


def test_every_admitted_model_has_to_satisfy_the_lists():
    one, other = AdmittedModel("digits", 2, A, AUTHOR), AdmittedModel("spy", 1, B, AUTHOR)
    text = f'archives = ["{A}"]\nauthors = ["{AUTHOR}"]\n[admitted.models]\ndigits = 2\n'
    assert admitted(text, one) == set()
    assert admitted(text, one, other) == {"admitted.archives", "admitted.models"}


def test_a_model_below_its_lowest_version_is_refused():
    assert admitted("[admitted.models]\ndigits = 3\n", AdmittedModel("digits", 2, A, AUTHOR)) == {"admitted.models"}


def test_empty_admission_lists_deny_and_absent_ones_do_not_decide():
    model = AdmittedModel("digits", 2, A, AUTHOR)
    assert admitted("archives = []\n", model) == {"admitted.archives"}
    assert admitted("", model) == set()
    assert admitted(f'configuration = ["{A}"]\n', model, configuration=b"\xcc" * 32) == {"admitted.configuration"}
    assert admitted(f'plugins = ["{A}"]\n', model, plugins=[b"\xcc" * 32]) == {"admitted.plugins"}
    assert admitted(f'plugins = ["{A}"]\n', model, plugins=[]) == set()


def test_simulated_reports_parse_back_to_what_was_written():
    report = SimulatedReport.sign(MEASUREMENT, bytes(64), {"a": [1, {"b": None}]})
    assert SimulatedReport.parse(report.serialise()) == report
    with pytest.raises(EvidenceMalformed):
        SimulatedReport.parse(report.serialise() | {"signature": "AA=="})


def test_a_policy_takes_keys_of_one_host_only_unless_it_says_otherwise():
    assert policy(head="", text=TABLE).modes == ("host",)
    assert policy(head="", text=TABLE + "[channel]\n").modes == ("host",)
    assert policy(head="", text=TABLE + '[channel]\nmodes = ["fleet"]\n').modes == ("fleet",)
    assert policy(head="", text=TABLE + "[channel]\nmodes = []\n").modes == ()
