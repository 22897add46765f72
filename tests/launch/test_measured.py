"""What a launch measures, against a real software TPM: extended, quoted, demanded by a policy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from doubles.software_tpm import SoftwareTpm
from strongroom.encoding import Fields
from strongroom.errors import LaunchRefused
from strongroom.evidence.reference import reference_policy
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.types import Checklist, Endorsements
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.admission import Admitted
from strongroom.launch.measured import extend, measurements
from strongroom.launch.surroundings import Installed

pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
from strongroom.attest.tpm import TpmAttester, read_launch_log

CONFIGURATION = bytes(range(32))
ROOTS: list[str] = []  # of the maker of this session's software TPM
TOY = Admitted("toy", Path("/toy.mar"), ArchiveDigest(b"\x01" * 32), AuthorId(b"\x02" * 32), "toy", 3, "1.0")
PACKAGES = (Installed("thing", "1.0", "ab" * 32), Installed("other", "2", "cd" * 32))


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    return SoftwareTpm(tmp_path_factory.mktemp("factory") / "machine")


@pytest.fixture
def guest(factory, tmp_path):
    """(attester, launch log) of a guest that has just booted."""
    log = tmp_path / "launch.json"
    with (
        SoftwareTpm(tmp_path / "fresh", like=factory) as machine,
        TpmAttester(machine.tcti, event_log=tmp_path / "none", launch_log=log) as attester,
    ):
        ROOTS[:] = [machine.roots]
        yield attester, log


def claims(attester, **launch):
    table = {"ak_trust": "pinned", "pinned_aks": [attester.ak_name.hex()], "ek_roots": ROOTS[0], "launch": launch}
    verifier, checks = TpmVerifier(), Checklist()
    policy = verifier.policy(Fields(table, where="tpm"))
    found = verifier.verify(attester.evidence(bytes(48)), Endorsements(), datetime.now(UTC), policy, checks)
    verifier.appraise(found, policy, checks)
    return found, {str(check.word) for check in checks.failed}


def test_a_launch_is_quoted_and_a_policy_can_demand_each_digest(guest):
    attester, log = guest
    wanted = measurements(CONFIGURATION, [TOY], PACKAGES)
    assert extend(attester, read_launch_log(log), wanted) == list(wanted)
    demanded = {each.event: [each.digest.hex()] for each in wanted}
    found, failed = claims(attester, **demanded)
    assert failed == set()
    for each in wanted:
        claim = found.values[f"launch.{each.event}"]
        assert (claim.value, str(claim.provenance)) == (each.digest.hex(), "event-log")


def test_what_is_measured_of_a_tpm_is_a_policy_that_accepts_it_with_its_makers_certificates(guest):
    attester, _ = guest
    evidence, verifier, checks = attester.evidence(bytes(48)), TpmVerifier(), Checklist()
    values = reference_policy(evidence, {"tpm": verifier}, name="measured").values
    assert values["pinned_aks"] == [attester.ak_name.hex()]
    assert set(values["pcrs"]) == {"0", "2", "4", "7", "9"}
    policy = verifier.policy(Fields({**values, "ek_roots": ROOTS[0]}, where="tpm"))
    found = verifier.verify(evidence, Endorsements(), datetime.now(UTC), policy, checks)
    verifier.appraise(found, policy, checks)
    assert [check.name for check in checks.failed] == []


@pytest.mark.parametrize("event", ["configuration", "admitted", "distributions"])
def test_a_policy_that_demands_another_digest_refuses(guest, event):
    attester, log = guest
    extend(attester, read_launch_log(log), measurements(CONFIGURATION, [TOY], PACKAGES))
    assert "measurement" in claims(attester, **{event: ["11" * 32]})[1]


def test_a_launch_that_was_not_measured_is_refused(guest):
    attester, _ = guest
    assert claims(attester, configuration=[CONFIGURATION.hex()])[1] != set()


def test_the_same_launch_again_in_the_same_boot_extends_nothing_twice(guest):
    attester, log = guest
    wanted = measurements(CONFIGURATION, [TOY], PACKAGES)
    extend(attester, read_launch_log(log), wanted)
    assert extend(attester, read_launch_log(log), wanted) == []
    assert claims(attester, configuration=[CONFIGURATION.hex()])[1] == set()


def test_another_configuration_in_the_same_boot_is_refused(guest):
    attester, log = guest
    extend(attester, read_launch_log(log), measurements(CONFIGURATION, [TOY], PACKAGES))
    with pytest.raises(LaunchRefused, match="another configuration"):
        extend(attester, read_launch_log(log), measurements(bytes(32), [TOY], PACKAGES))


@pytest.mark.parametrize("field", ["name", "archive", "author", "version"])
def test_every_part_of_the_admitted_set_is_measured(field):
    from dataclasses import replace

    values = {"name": "tox", "archive": ArchiveDigest(bytes(32)), "author": AuthorId(bytes(32)), "version": 4}
    changed = replace(TOY, **{field: values[field]})
    one, two = (measurements(CONFIGURATION, [each], PACKAGES)[1].digest for each in (TOY, changed))
    assert one != two


def test_the_order_of_archives_and_packages_does_not_matter():
    from dataclasses import replace

    other = replace(TOY, name="other")
    one = measurements(CONFIGURATION, [TOY, other], PACKAGES)
    assert one == measurements(CONFIGURATION, [other, TOY], PACKAGES[::-1])
