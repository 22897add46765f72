"""Release policies: only a literal true grants, templates mean what they say, and Trustee's shapes run unchanged."""

from __future__ import annotations

import json

import pytest
from strongroom.broker.rego import TEMPLATES, ReleasePolicy
from strongroom.encoding import unb64url
from strongroom.errors import ConfigurationInvalid

DATA = {"plugin": "resource", "resource-path": ["acme", "digits", "3-00"], "query": {}}
GOOD = {"hardware": 2, "executables": 3, "configuration": 3}


def ear(*, tee="snp", status="affirming", vector=None, gpus=0, gpu_vector=None):
    def submodule(tee, status, vector):
        return {
            "ear.status": status,
            "ear.trustworthiness-vector": GOOD if vector is None else vector,
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


def test_a_real_trustees_token_goes_through_our_policies(shared_evidence):
    token = shared_evidence.joinpath("ear/coco-as/ear.jwt").read_text().strip()
    claims = json.loads(unb64url(token.split(".")[1]))
    assert granted(ReleasePolicy.template("measured"), claims)
    assert not granted(ReleasePolicy.template("measured-cpu-and-gpu"), claims)
    assert not granted(ReleasePolicy.template("development"), claims)
    assert granted(ReleasePolicy.parse(TRUSTEE_SHAPED["affirming everywhere"]), claims)
