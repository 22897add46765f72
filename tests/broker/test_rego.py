"""Release policies: only a literal true grants, templates mean what they say, and Trustee's shapes run unchanged."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from strongroom.broker import rego
from strongroom.broker.engine import Engine
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.templates import TEMPLATES
from strongroom.broker.trace import trace
from strongroom.encoding import unb64url
from strongroom.errors import ConfigurationInvalid

DATA = {"plugin": "resource", "resource-path": ["acme", "digits", "3-00"], "query": {}}
GOOD = {"hardware": 2, "executables": 3, "configuration": 3}


def ear(*, tee="snp", status="affirming", vector=None, gpus=0, gpu_vector=None, revocation="judged"):
    def submodule(tee, status, vector):
        return {
            "ear.status": status,
            "ear.trustworthiness-vector": GOOD if vector is None else vector,
            "strongroom.revocation": revocation,
            "ear.veraison.annotated-evidence": {tee: {"measurement": "00"}, "report_data": "00"},
        }

    submods = {"cpu0": submodule(tee, status, vector)}
    submods |= {f"gpu{n}": submodule("nvidia", status, gpu_vector) for n in range(gpus)}
    return {"submods": submods, "iat": 1, "exp": 2}


def granted(policy, claims, data=DATA):
    return policy.decide(claims, data).granted


@pytest.mark.parametrize(
    "value", ["1", '"true"', "[true]", '{"allow": true}', "null", "false", "{true}", '"yes"', "1.0"]
)
def test_only_a_literal_true_grants(value):
    assert not granted(ReleasePolicy.parse(f"package policy\n\nallow := {value}\n"), {})


def test_a_conflict_of_two_rules_denies():
    policy = ReleasePolicy("package policy\n\nallow := true\n\nallow := false\n")
    assert not granted(policy, {})


def test_request_data_cannot_shadow_the_policy():
    policy = ReleasePolicy.parse("package policy\n\ndefault allow := false\n")
    assert not granted(policy, {}, {"policy": {"allow": True}})


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_what_it_does_not_check(name):
    assert "What this does NOT check" in ReleasePolicy.template(name).text


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("claims", [{}, {"submods": {}}, {"submods": {"gpu0": {}}}, {"submods": []}], ids=str)
def test_no_template_grants_without_a_cpu(name, claims):
    assert not granted(ReleasePolicy.template(name), claims)


@pytest.mark.parametrize("name", ["hardware-only", "measured", "measured-cpu-and-gpu"])
@pytest.mark.parametrize("tee", ["simulated", "sample", "sampledevice"])
def test_no_hardware_template_grants_to_software(name, tee):
    assert not granted(ReleasePolicy.template(name), ear(tee=tee, gpus=1))


def test_hardware_only_grants_whatever_was_measured():
    policy = ReleasePolicy.template("hardware-only")
    assert granted(policy, ear(vector={"hardware": 2, "executables": 33}, status="warning"))
    assert not granted(policy, ear(vector={"hardware": 97, "executables": 3}))
    assert not granted(policy, ear(vector={"executables": 3}))


def test_measured_asks_for_executables_by_name():
    policy = ReleasePolicy.template("measured")
    assert granted(policy, ear())
    assert not granted(policy, ear(vector={"hardware": 2}))
    assert not granted(policy, ear(vector={"hardware": 2, "executables": 0}))
    assert not granted(policy, ear(vector={"hardware": 2, "executables": 33}))
    assert not granted(policy, ear(status="warning"))


def test_measured_looks_at_every_submodule():
    policy = ReleasePolicy.template("measured")
    assert granted(policy, ear(gpus=1))
    assert not granted(policy, ear(gpus=2, gpu_vector={"hardware": 96}))


def test_measured_cpu_and_gpu_wants_a_gpu():
    policy = ReleasePolicy.template("measured-cpu-and-gpu")
    assert not granted(policy, ear())
    assert granted(policy, ear(gpus=1))


REVOCATION_ASKED = ("hardware-only", "measured", "measured-cpu-and-gpu")


@pytest.mark.parametrize("name", REVOCATION_ASKED)
@pytest.mark.parametrize("said", ["judged", "no-list"])
def test_a_hardware_template_grants_where_revocation_was_judged_or_there_is_no_list(name, said):
    assert granted(ReleasePolicy.template(name), ear(gpus=1, revocation=said))


@pytest.mark.parametrize("name", REVOCATION_ASKED)
@pytest.mark.parametrize("said", ["not-judged", "", None, True, "JUDGED", ["judged"]], ids=repr)
def test_no_hardware_template_grants_where_revocation_was_not_judged(name, said):
    assert not granted(ReleasePolicy.template(name), ear(gpus=1, revocation=said))


@pytest.mark.parametrize("name", REVOCATION_ASKED)
def test_a_hardware_template_asks_for_revocation_of_every_device(name):
    claims = ear(gpus=2)
    claims["submods"]["gpu1"]["strongroom.revocation"] = "not-judged"
    assert not granted(ReleasePolicy.template(name), claims)
    del claims["submods"]["gpu1"]["strongroom.revocation"]
    assert not granted(ReleasePolicy.template(name), claims)


def test_development_does_not_ask_for_revocation_and_says_so():
    policy = ReleasePolicy.template("development")
    assert granted(policy, ear(tee="simulated", status="warning", revocation="not-judged"))
    assert "no revocation" in policy.text


def test_development_grants_to_the_simulated_tee_alone():
    policy = ReleasePolicy.template("development")
    assert granted(policy, ear(tee="simulated", status="warning"))
    assert not granted(policy, ear(tee="snp"))
    assert not granted(policy, ear(tee="simulated", status="contraindicated"))
    assert not granted(policy, ear(tee="simulated", gpus=1))


# -- policies in the shapes that operators of a Trustee write ---------------------------

TRUSTEE_SHAPED = {
    "affirming everywhere": """
        package policy
        import rego.v1
        default allow = false
        allow if {
            not any_not_affirming
            count(input.submods) > 0
        }
        any_not_affirming if {
            some _, submod in input.submods
            submod["ear.status"] != "affirming"
        }
    """,
    "old syntax, one repository": """
        package policy
        default allow = false
        path := data["resource-path"]
        allow {
            data.plugin == "resource"
            path[0] == "acme"
            input["submods"]["cpu0"]["ear.status"] == "affirming"
        }
    """,
    "by claim and index": """
        package policy
        import rego.v1
        default allow = false
        allow if {
            measured := input.submods[_]["ear.veraison.annotated-evidence"].snp.measurement
            measured in {"00", "11"}
            startswith(concat("/", data["resource-path"]), "acme/digits/")
            input.submods.cpu0["ear.trustworthiness-vector"].hardware <= 31
        }
    """,
}


@pytest.mark.parametrize("name", TRUSTEE_SHAPED)
def test_a_trustee_shaped_policy_runs_unchanged(name):
    policy = ReleasePolicy.parse(TRUSTEE_SHAPED[name])
    assert granted(policy, ear())
    assert not granted(policy, ear(status="contraindicated", vector={"hardware": 97}, tee="tdx"))


def test_what_this_interpreter_cannot_evaluate_is_refused_when_it_is_set_with_a_way_out():
    with pytest.raises(ConfigurationInvalid) as refused:
        ReleasePolicy.parse("package policy\n\nimport rego.v1\n\nallow if { input.x[_].y in {1} }\n")
    assert "give an iterated value a name" in refused.value.hint


def test_a_policy_over_the_path_confines_by_repository():
    policy = ReleasePolicy.parse(TRUSTEE_SHAPED["old syntax, one repository"])
    assert not granted(policy, ear(), {**DATA, "resource-path": ["evil", "digits", "3-00"]})


@pytest.fixture
def trustees(shared_evidence):
    """The claims of a real Trustee's token."""
    token = shared_evidence.joinpath("ear/coco-as/ear.jwt").read_text().strip()
    return json.loads(unb64url(token.split(".")[1]))


@pytest.mark.parametrize("name", ["affirming everywhere", "old syntax, one repository"])
def test_a_real_trustees_token_goes_through_policies_that_were_written_for_a_trustee(trustees, name):
    assert granted(ReleasePolicy.parse(TRUSTEE_SHAPED[name]), trustees)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_trustee_does_not_say_whether_revocation_was_judged_so_our_templates_keep_the_key(trustees, name):
    """Our templates are for our own token. What they ask for beside revocation, this one has."""
    policy = ReleasePolicy.template(name)
    assert not granted(policy, trustees)
    for submodule in trustees["submods"].values():
        submodule["strongroom.revocation"] = "judged"
    assert granted(policy, trustees) == (name in ("measured", "hardware-only"))


# -- one compilation for many names ---------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_compiled_once_for_all_names(name, monkeypatch):
    policy, asked = ReleasePolicy.template(name), set()

    class Witness:
        def ask(self, policy, query, claims, data, *, binding=""):
            asked.add((policy, query, data))  # what a compilation is kept under
            return True, True

    monkeypatch.setattr(rego, "ENGINE", Witness())
    for number in range(20):
        assert granted(policy, ear(), {**DATA, "resource-path": ["acme", "digits", f"{number}-00"]})
    assert len(asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        'data["resource-path"][0] == "acme"',
        'data . query.epoch == "acme"',
        'data["query"].epoch == "acme"',
    ],
)
def test_a_policy_that_may_look_at_the_name_or_the_query_gets_them(body):
    policy = ReleasePolicy.parse(f"package policy\n\nimport rego.v1\n\nallow if {{\n\t{body}\n}}\n")
    data = {"plugin": "resource", "resource-path": ["acme", "digits", "1-00"], "query": {"epoch": "acme"}}
    assert granted(policy, {}, data)
    assert not granted(policy, {}, {**data, "resource-path": ["evil", "digits", "1-00"], "query": {"epoch": "evil"}})


@pytest.mark.parametrize(
    "text",
    [
        "import data as request\n\nallow if { request.x }",
        "allow if { x := data; x.y }",
        "allow if { some key; data[key] }",
        "allow if { count([1 | data[_]]) > 0 }",
    ],
)
def test_the_whole_of_data_is_refused_when_a_policy_is_set(text):
    """Some such policies end the interpreter, and the process around it, with a signal."""
    with pytest.raises(ConfigurationInvalid, match="`data` as a whole") as refused:
        ReleasePolicy.parse(f"package policy\n\nimport rego.v1\n\n{text}\n")
    assert "resource-path" in refused.value.hint


# -- what the interpreter would silently change ---------------------------------------------


def claims_with(value):
    return {"submods": {"cpu0": {"x": value}}}


@pytest.mark.parametrize("value", ["good\0evil", "\0", {"good\0evil": 1}, ["a", {"b": "good\0"}]], ids=repr)
def test_a_text_with_a_nul_denies_whatever_the_policy_says(value):
    """As C reads it, `good\\0evil` is `good`: a policy would compare what was never measured."""
    decision = ReleasePolicy.parse("package policy\n\nallow := true\n").decide(claims_with(value), DATA)
    assert not decision.granted and "NUL" in decision.reason


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64 + 3, 10**400])
def test_an_integer_of_more_than_64_bits_denies_whatever_the_policy_says(value):
    """2**64 + 3 would arrive as 3."""
    decision = ReleasePolicy.parse("package policy\n\nallow := true\n").decide(claims_with(value), DATA)
    assert not decision.granted and "64 bits" in decision.reason


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 0])
def test_integers_of_64_bits_arrive_as_they_are(value):
    policy = ReleasePolicy.parse(f"package policy\n\nimport rego.v1\n\nallow if input.submods.cpu0.x == {value}\n")
    assert granted(policy, claims_with(value))


def test_claims_that_are_nested_without_end_deny_and_break_nothing():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    decision = ReleasePolicy.parse("package policy\n\nallow := true\n").decide(claims_with(deep), DATA)
    assert not decision.granted and "deeply" in decision.reason


# -- an interpreter that dies or hangs ---------------------------------------------------------

CRASHING = "package policy\n\nimport rego.v1\n\nallow if { some key; data[key] }\n"
ENDLESS = 'package policy\n\nimport rego.v1\n\nallow if { replace(input.text, "", "b") == "" }\n'
GREEDY = "package policy\n\nimport rego.v1\n\nallow if { count(numbers.range(1, input.count)) > 0 }\n"
GOOD_POLICY = "package policy\n\nallow := true\n"


@pytest.fixture
def impatient(monkeypatch):
    """An interpreter of this test's own that is given up after two seconds."""
    engine = Engine(seconds=2.0)
    monkeypatch.setattr(rego, "ENGINE", engine)
    assert granted(ReleasePolicy(GOOD_POLICY), {})
    yield engine
    engine.close()


def test_a_policy_that_ends_the_interpreter_denies_and_the_next_question_is_answered(impatient):
    decision = ReleasePolicy(CRASHING).decide(ear(), DATA)
    assert (decision.granted, decision.made) == (False, False) and "died of it (signal" in decision.reason
    assert granted(ReleasePolicy(GOOD_POLICY), {})


def test_a_policy_that_never_ends_denies_after_a_while_and_the_next_question_is_answered(impatient):
    decision = ReleasePolicy(ENDLESS).decide({"text": "aaa"}, DATA)
    assert (decision.granted, decision.made) == (False, False) and "did not answer within 2 s" in decision.reason
    assert granted(ReleasePolicy(GOOD_POLICY), {})


def test_a_policy_that_wants_all_memory_denies_and_the_next_question_is_answered(impatient, monkeypatch):
    impatient._seconds = 60.0  # the memory ends first
    decision = ReleasePolicy(GREEDY).decide({"count": 10**9}, DATA)
    assert not decision.granted
    assert granted(ReleasePolicy(GOOD_POLICY), {})


@pytest.mark.parametrize("body", ['replace("aaa", "", "b") == ""', 'regex.match("(a+)+$", "%sb")' % ("a" * 40)])
def test_a_policy_that_does_not_end_is_refused_when_it_is_set(impatient, body):
    with pytest.raises(ConfigurationInvalid, match="did not answer within"):
        ReleasePolicy.parse(f"package policy\n\nimport rego.v1\n\nallow if {{ {body} }}\n")


def test_a_policy_that_ends_the_interpreter_is_refused_when_it_is_set(impatient, monkeypatch):
    monkeypatch.setattr(rego, "_BARE_DATA", re.compile("(?!)"))  # or the text alone would refuse it
    with pytest.raises(ConfigurationInvalid, match="died of it"):
        ReleasePolicy.parse(CRASHING)


def test_an_interpreter_that_is_killed_between_two_questions_is_started_again(impatient):
    impatient._process.kill()
    impatient._process.wait()
    assert granted(ReleasePolicy(GOOD_POLICY), {})


def test_an_interpreter_ends_with_its_broker_also_in_the_middle_of_an_endless_evaluation():
    program = (
        "import os, sys, threading, time\n"
        "from strongroom.broker import rego\n"
        f"policy = rego.ReleasePolicy({ENDLESS!r})\n"
        "threading.Thread(target=policy.decide, args=({'text': 'aaa'}, {}), daemon=True).start()\n"
        "while rego.ENGINE._process is None: time.sleep(0.01)\n"
        "time.sleep(1)\n"
        "print(rego.ENGINE._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == -9 and done.stdout.strip()
    deadline = time.monotonic() + 20
    with contextlib.suppress(OSError):  # gone
        while "evaluation" in Path("/proc", done.stdout.strip(), "cmdline").read_text():
            assert time.monotonic() < deadline, "it goes on without its broker"
            time.sleep(0.1)


def test_many_threads_get_their_own_answers(impatient):
    policy = ReleasePolicy("package policy\n\nimport rego.v1\n\nallow if input.number % 2 == 0\n")
    wrong = []

    def ask(number):
        for each in range(number, number + 40):
            if granted(policy, {"number": each}) != (each % 2 == 0):
                wrong.append(each)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_interpreter_gets_no_variable_that_could_hold_a_secret(impatient, monkeypatch):
    impatient.close()
    monkeypatch.setenv("STRONGROOM_SECRET", "hidden")
    assert granted(ReleasePolicy(GOOD_POLICY), {})
    with open(f"/proc/{impatient._process.pid}/environ", "rb") as file:
        assert b"hidden" not in file.read()


# -- the trace -----------------------------------------------------------------------------------


def traced(text, claims):
    return [(each.rule, each.line, each.text, each.state) for each in trace(ReleasePolicy.parse(text), claims, DATA)]


def test_a_trace_names_the_statement_that_stops_a_template():
    policy = ReleasePolicy.template("measured")
    states = {each.text: each.state for each in trace(policy, ear(vector={"hardware": 2}), DATA)}
    stopped = [text for text, state in states.items() if state == "stops here"]
    assert stopped == ['affirming(input.submods.cpu0["ear.trustworthiness-vector"].executables)']
    assert next(iter(states.values())) == "holds" and "not reached" in states.values()
    assert all(each.state == "holds" for each in trace(policy, ear(), DATA))


def test_a_trace_knows_both_syntaxes_several_bodies_and_where_statements_end():
    text = (
        "package policy\n"
        "import rego.v1\n"
        "default allow := false\n"
        "allow if {\n"
        '\tinput.a == "x;y" # a comment; with { braces\n'
        "\tevery each in input.list {\n"
        "\t\teach > 0\n"
        "\t}\n"
        "}\n"
        "allow if input.b == 1\n"
        "allow if { input.c; input.d }\n"
        'names := {"a", "b"}\n'
    )
    found = traced(text, {"a": "x;y", "list": [1, 0], "c": True, "d": False})
    assert found == [
        ("allow", 5, 'input.a == "x;y"', "holds"),
        ("allow", 6, "every each in input.list {\n\t\teach > 0\n\t}", "stops here"),
        ("allow", 10, "input.b == 1", "stops here"),
        ("allow", 11, "input.c", "holds"),
        ("allow", 11, "input.d", "stops here"),
    ]
    old = "package policy\ndefault allow = false\nallow {\n\tinput.a == 1\n\tinput.b == 2\n}\n"
    assert traced(old, {"a": 1}) == [
        ("allow", 4, "input.a == 1", "holds"),
        ("allow", 5, "input.b == 2", "stops here"),
    ]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "claims", [{}, {"submods": 5}, ear(), ear(tee="simulated")], ids=["empty", "odd", "snp", "sim"]
)
def test_a_trace_agrees_with_the_decision(name, claims):
    policy = ReleasePolicy.template(name)
    statements = [each for each in trace(policy, claims, DATA) if each.rule == "allow"]
    assert all(each.state == "holds" for each in statements) == granted(policy, claims)


@pytest.mark.parametrize("name", TRUSTEE_SHAPED)
def test_a_trace_of_a_trustee_shaped_policy_shows_why(name):
    text = "\n".join(line[8:] for line in TRUSTEE_SHAPED[name].splitlines())
    claims = ear(status="contraindicated", vector={"hardware": 97}, tee="tdx")
    states = [each.state for each in trace(ReleasePolicy.parse(text), claims, DATA) if each.rule == "allow"]
    assert "stops here" in states


def test_a_policy_is_evaluated_beside_torch():
    """The two abort in one process; here they are in two."""
    pytest.importorskip("torch", reason="SKIPPED LOUDLY: torch is not installed")
    program = (
        "import torch; from strongroom.broker.rego import ReleasePolicy; "
        "print(ReleasePolicy.parse('package policy\\n\\nallow := true\\n').decide({}, {}).granted)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "True", done.stderr[-500:]
