"""A guest that was started with an init-data file gets its key; one with another file, or none, does not.

Real broker, real client, real software TPM: PCR 8 is the field.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import strongroom.broker
from broker.broker_in_a_room import broker_room
from doubles.software_tpm import SoftwareTpm
from strongroom.broker.statement import KeeperStatement
from strongroom.encoding import Fields
from strongroom.errors import AttestationFailed, MalformedInput
from strongroom.evidence.init_data import InitData

pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
from strongroom.attest.tpm import TpmAttester

TEXT = 'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n"strongroom.toml" = "x"\n"policy.rego" = "package p"\n'
DATA = InitData.parse(TEXT)
STATEMENT = KeeperStatement(keeper=bytes(16), hardening=("no-core-files", "swap-off"))


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    with SoftwareTpm(tmp_path_factory.mktemp("tpm") / "machine") as machine:
        yield machine


@pytest.fixture(scope="module")
def attester(tpm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    with TpmAttester(tpm.tcti, event_log=folder / "none", launch_log=folder / "launch.json") as mine:
        mine.bind_init_data(DATA.digest)
        yield mine


def appraisal(tpm, digest: str) -> str:
    return (
        f'name = "started with our file"\ninit_data = ["{digest}"]\n[tpm]\nak_trust = "activated"\n'
        f"pcrs = {{ \"0\" = \"{'00' * 32}\" }}\nek_roots = '''\n{tpm.roots}'''\n"
    )


@pytest.fixture(scope="module")
def room(tpm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("room")
    with broker_room(folder, rego="measured", appraisal=appraisal(tpm, DATA.digest.hex())) as room:
        yield room


def test_the_text_and_what_it_says_are_claims_that_a_release_policy_can_read(room, attester):
    name, archive, key = room.register(1)
    client = room.client(attester=attester, statement=STATEMENT, init_data=TEXT)
    released = client.fetch(tuple(name), archive)
    assert released.key.reveal() == key.reveal()
    annotated = released.claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert annotated["init_data_claims"] == {"strongroom.toml": "x", "policy.rego": "package p"}
    assert annotated["provenance"]["init_data"] == "hardware"
    assert annotated["strongroom"]["hardening"] == ["no-core-files", "swap-off"]


def test_a_keeper_that_sends_another_text_than_its_machine_was_started_with_is_refused(room, attester):
    name, archive, _ = room.register(2)
    client = room.client(attester=attester, statement=STATEMENT, init_data=TEXT + "# changed\n")
    with pytest.raises(AttestationFailed):
        client.fetch(tuple(name), archive)
    last = json.loads(list(room.broker.audit.entries())[-1])
    assert "init-data" in json.dumps(last)


def test_a_machine_that_was_started_with_another_file_gets_no_key_whatever_it_sends(tmp_path, tpm, attester):
    with broker_room(tmp_path, rego="measured", appraisal=appraisal(tpm, "11" * 32)) as room:
        name, archive, _ = room.register(1)
        for text in (TEXT, None):
            with pytest.raises(AttestationFailed):
                room.client(attester=attester, statement=STATEMENT, init_data=text).fetch(tuple(name), archive)
            last = json.loads(list(room.broker.audit.entries())[-1])
            assert [check["name"] for check in last["checks"]] == ["tpm.init-data"]


@pytest.mark.parametrize("word", ["Swap-Off", "", "swap off", "x" * 80, "\u2028"])
def test_a_statement_holds_words_and_nothing_else(word):
    statement = STATEMENT.serialise()
    assert KeeperStatement.parse(json.loads(json.dumps(statement))) == STATEMENT
    with pytest.raises(MalformedInput):
        KeeperStatement.parse(dict(Fields(statement | {"hardening": [word]}, where="x")._fields))


POLICIES = sorted((Path(strongroom.broker.__file__).parent / "policies").glob("*.rego"))


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_no_shipped_policy_looks_at_what_software_says_about_itself(path):
    """Neither a keeper's statement nor a claim that only the guest's own words carry decides anything."""
    rules = [line.partition("#")[0] for line in path.read_text().splitlines()]
    words = ("hardening", "init_data", ".strongroom", "self-asserted", "worker-output")
    assert [line for line in rules if any(word in line for word in words)] == []
    assert len(POLICIES) >= 4
