"""What a launch measures, against a real software TPM: extended, quoted, demanded by a policy."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from doubles.software_tpm import SoftwareTpm
from strongroom.encoding import Fields
from strongroom.errors import AttesterUnavailable, EvidenceRefused, LaunchRefused
from strongroom.evidence.init_data import InitData
from strongroom.evidence.judge import judge
from strongroom.evidence.policy import Policy
from strongroom.evidence.reference import reference_policy
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.types import Checklist, Endorsements
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.admission import Admitted
from strongroom.launch.measured import extend, measurements
from strongroom.launch.roots import bind_init_data, check_init_data
from strongroom.launch.surroundings import Installed

pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
from strongroom.attest.tpm import TpmAttester

CONFIGURATION = bytes(range(32))
ROOTS: list[str] = []  # of the maker of this session's software TPM
TOY = Admitted(
    "toy", Path("/toy.mar"), ArchiveDigest(b"\x01" * 32), AuthorId(b"\x02" * 32), "toy", 3, "1.0", ("a", "b", "c"), None
)
ROOTS_DIGEST = bytes(range(1, 33))
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


def measured(admitted=(TOY,), packages=PACKAGES, **changed):
    given = {"configuration": CONFIGURATION, "roots": ROOTS_DIGEST} | changed
    return measurements(given.pop("configuration"), admitted, packages, **given)


def claims(attester, **launch):
    table = {"ak_trust": "pinned", "pinned_aks": [attester.ak_name.hex()], "ek_roots": ROOTS[0], "launch": launch}
    verifier, checks = TpmVerifier(), Checklist()
    policy = verifier.policy(Fields(table, where="tpm"))
    found = verifier.verify(attester.evidence(bytes(48)), Endorsements(), datetime.now(UTC), policy, checks)
    verifier.appraise(found, policy, checks)
    return found, {str(check.word) for check in checks.failed}


def test_a_launch_is_quoted_and_a_policy_can_demand_each_digest(guest):
    attester, _ = guest
    wanted = measured()
    assert extend(attester, wanted) == list(wanted)
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


@pytest.mark.parametrize("event", ["configuration", "trust-roots", "admitted", "distributions"])
def test_a_policy_that_demands_another_digest_refuses(guest, event):
    attester, _ = guest
    extend(attester, measured())
    assert "measurement" in claims(attester, **{event: ["11" * 32]})[1]


def test_a_launch_that_was_not_measured_is_refused(guest):
    attester, _ = guest
    assert claims(attester, configuration=[CONFIGURATION.hex()])[1] != set()


def test_the_same_launch_again_in_the_same_boot_extends_nothing_twice(guest):
    attester, _ = guest
    wanted = measured()
    extend(attester, wanted)
    assert extend(attester, wanted) == []
    assert claims(attester, configuration=[CONFIGURATION.hex()])[1] == set()


def test_another_configuration_in_the_same_boot_is_refused(guest):
    attester, _ = guest
    extend(attester, measured())
    with pytest.raises(LaunchRefused, match="another configuration"):
        extend(attester, measured(configuration=bytes(32)))


@pytest.mark.parametrize("field", ["name", "archive", "author", "version"])
def test_every_part_of_the_admitted_set_is_measured(field):
    from dataclasses import replace

    values = {"name": "tox", "archive": ArchiveDigest(bytes(32)), "author": AuthorId(bytes(32)), "version": 4}
    changed = replace(TOY, **{field: values[field]})
    one, two = (by_name(measured([each]))["admitted"] for each in (TOY, changed))
    assert one != two


def test_the_order_of_archives_and_packages_does_not_matter():
    from dataclasses import replace

    other = replace(TOY, name="other")
    one = measured([TOY, other])
    assert one == measured([other, TOY], PACKAGES[::-1])


def by_name(events):
    return {each.event: each.digest for each in events}


def test_trust_roots_are_the_authors_and_the_brokers_authority():
    from strongroom.launch.measured import trust_roots

    mine, other = AuthorId(b"\x02" * 32), AuthorId(b"\x03" * 32)
    base = trust_roots([mine, other], b"certificate")
    assert base == trust_roots([other, mine], b"certificate")
    assert len({base, trust_roots([mine], b"certificate"), trust_roots([mine, other], b""), trust_roots([], b"")}) == 4


def test_init_data_is_an_event_of_its_own_before_the_others():
    events = measured(init_data=b"text")
    assert [each.event for each in events] == ["init-data", "configuration", "trust-roots", "admitted", "distributions"]
    assert events[0].digest == hashlib.sha256(b"text").digest()


def test_a_launch_without_the_init_data_of_the_last_one_needs_a_reboot(guest):
    attester, _ = guest
    extend(attester, measured(init_data=b"text"))
    with pytest.raises(LaunchRefused, match="init-data"):
        extend(attester, measured())


# -- init-data in PCR 8 ----------------------------------------------------------------------


INIT_DATA = InitData.parse('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"strongroom.toml" = "x"\n')


def judged(attester, digest):
    table = {"ak_trust": "pinned", "pinned_aks": [attester.ak_name.hex()], "ek_roots": ROOTS[0]}
    verifiers = {"tpm": TpmVerifier()}
    policy = Policy(
        "x", tees={"tpm": verifiers["tpm"].policy(Fields(table, where="tpm"))}, init_data=frozenset([digest])
    )
    binding = bytes(range(48))
    return judge(
        attester.evidence(binding), binding=binding, endorsements=Endorsements(), policy=policy,
        now=datetime.now(UTC), verifiers=verifiers,
    )  # fmt: skip


def test_init_data_goes_into_pcr_8_and_a_policy_finds_it_there(guest):
    attester, _ = guest
    assert check_init_data(INIT_DATA, attester, {}) == "PCR 8"
    assert not any(attester.init_data_state()), "looking extends nothing"
    bind_init_data(INIT_DATA, attester)
    assert attester.init_data_state() == hashlib.sha256(bytes(32) + INIT_DATA.digest).digest()
    verdict = judged(attester, INIT_DATA.digest.hex())
    assert str(verdict.claims.values["init_data"].provenance) == "hardware"
    with pytest.raises(EvidenceRefused, match=r"tpm\.init-data"):
        judged(attester, "11" * 32)


def test_the_same_init_data_again_in_one_boot_extends_nothing_and_another_is_refused(guest):
    attester, _ = guest
    bind_init_data(INIT_DATA, attester)
    before = attester.init_data_state()
    bind_init_data(INIT_DATA, attester)
    assert attester.init_data_state() == before
    other = InitData.parse(INIT_DATA.text + "\n")
    with pytest.raises(LaunchRefused, match="another init-data"):
        check_init_data(other, attester, {})
    with pytest.raises(AttesterUnavailable, match="something else"):
        bind_init_data(other, attester)


def test_a_pcr_8_that_a_boot_loader_uses_is_refused(guest):
    attester, _ = guest
    attester._tpm.extend(8, {"sha256": b"\x07" * 32})
    with pytest.raises(LaunchRefused, match="PCR 8"):
        check_init_data(INIT_DATA, attester, {})


def test_the_event_alone_satisfies_a_policy_for_init_data_too(guest):
    attester, _ = guest
    digest = hashlib.sha256(INIT_DATA.text.encode()).digest()
    attester.extend(digest, "init-data")
    assert judged(attester, digest.hex())
