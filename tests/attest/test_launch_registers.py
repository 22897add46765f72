"""A TDX guest's launch, against registers that behave as the kernel's: extended, quoted, demanded by a policy."""

from __future__ import annotations

import hashlib
import json
from functools import partial

import pytest
from doubles.dcap_platform import NOW
from doubles.tdx_guest import FIRMWARE, PretendTdxGuest, ccel
from doubles.tee_devices import PretendRegisters, tdx_guest
from strongroom.attest.tdx_registers import Sysfs, runtime_register
from strongroom.encoding import unb64
from strongroom.errors import AttesterUnavailable, EvidenceRefused
from strongroom.evidence.init_data import InitData
from strongroom.evidence.judge import judge, serialise_claims
from strongroom.evidence.policy import Policy
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.tdx_event_log import parse_log
from strongroom.evidence.tdx_launch_log import launch_events
from strongroom.evidence.types import Endorsements

BINDING = bytes(range(48))
DIGEST = bytes(range(32))


@pytest.fixture
def guest(tmp_path):
    return PretendTdxGuest(tmp_path)


def judged(guest, table: str = "", top: str = "", attester=None):
    verifiers = {"tdx": TdxVerifier(intel_root=guest.intel.root.certificate)}
    return judge(
        (attester or guest.attester()).evidence(BINDING),
        binding=BINDING,
        endorsements=Endorsements({"collateral": guest.intel.collateral(tdx=True)}),
        policy=Policy.parse(f'name = "x"\n{top}\n[tdx]\n{table}\n', verifiers),
        now=NOW,
        verifiers=verifiers,
    )


def test_an_extended_event_is_quoted_replayed_and_can_be_demanded(guest):
    guest.attester().extend(DIGEST, "configuration")
    verdict = judged(guest, f'require_event_log = true\nlaunch = {{ configuration = ["{DIGEST.hex()}"] }}')
    told = serialise_claims(verdict.claims)["launch.configuration"]
    assert told == {"value": DIGEST.hex(), "provenance": "event-log"}


@pytest.mark.parametrize("demanded", ["11" * 32, ""])
def test_a_policy_that_demands_another_digest_refuses(guest, demanded):
    guest.attester().extend(DIGEST, "configuration")
    values = f'["{demanded}"]' if demanded else "[]"
    with pytest.raises(EvidenceRefused, match=r"tdx\.launch-configuration"):
        judged(guest, f"launch = {{ configuration = {values} }}")


def test_a_guest_that_was_not_launched_by_us_satisfies_no_demand(guest):
    with pytest.raises(EvidenceRefused, match="not extended"):
        judged(guest, f'launch = {{ configuration = ["{DIGEST.hex()}"] }}')


def test_the_record_has_the_form_of_confidential_containers_agent(guest):
    guest.attester().extend(DIGEST, "trust-roots")
    log = unb64(guest.attester().evidence(BINDING).body["cc_eventlog"], where="log")
    last = parse_log(log)[-1]
    text = f"strongroom launch.trust-roots {DIGEST.hex()}".encode()
    assert last.payload == b"LEAA" + len(text).to_bytes(4, "little") + text
    assert last.digest == hashlib.sha384(last.payload).digest()
    assert (last.register, last.kind) == (3, 6)
    assert log.endswith(b"\xff" * 8)
    assert guest.registers.rtmr[3] == hashlib.sha384(bytes(48) + last.digest).digest()


def test_without_launch_events_the_firmwares_log_travels_as_it_is(guest):
    log = unb64(guest.attester().evidence(BINDING).body["cc_eventlog"], where="log")
    assert log == guest.ccel.read_bytes()


def test_an_event_is_extended_once_a_boot(guest):
    guest.attester().extend(DIGEST, "configuration")
    before = guest.registers.rtmr
    with pytest.raises(AttesterUnavailable, match="already in this boot"):
        guest.attester().extend(bytes(32), "configuration")
    assert guest.registers.rtmr == before


def test_a_register_that_somebody_else_extended_first_is_refused_before_anything_is_written(guest):
    guest.registers.write("rtmr3:sha384", b"\x01" * 48)
    with pytest.raises(AttesterUnavailable, match="account for"):
        guest.attester().extend(DIGEST, "configuration")
    assert not guest.launch_log.exists()


def test_what_firmware_put_into_the_register_is_accounted_for(tmp_path):
    guest = PretendTdxGuest(tmp_path, firmware=[*FIRMWARE, (3, b"\xd4" * 48, b"a boot loader of its own mind")])
    guest.attester().extend(DIGEST, "configuration")
    assert judged(guest, f'launch = {{ configuration = ["{DIGEST.hex()}"] }}')


def test_an_extension_that_did_not_happen_is_noticed(guest):
    guest.registers.lost = 1
    with pytest.raises(AttesterUnavailable, match="account for"):
        guest.attester().extend(DIGEST, "configuration")


def test_who_extends_the_same_event_again_later_takes_the_claim_away(guest):
    """After `launch`: the log cannot be made to show another digest, only none."""
    from strongroom.evidence.tdx_launch_log import LaunchRecord

    guest.attester().extend(DIGEST, "configuration")
    other = LaunchRecord("configuration", b"\x66" * 32)
    guest.registers.write("rtmr3:sha384", other.extended)
    guest.launch_log.write_text(json.dumps([LaunchRecord("configuration", DIGEST).serialise(), other.serialise()]))
    with pytest.raises(EvidenceRefused, match=r"tdx\.launch-events"):
        judged(guest, f'launch = {{ configuration = ["{DIGEST.hex()}", "{"66" * 32}"] }}')


def test_a_log_without_the_line_or_with_another_digest_does_not_replay(guest):
    guest.attester().extend(DIGEST, "configuration")
    for lie in ([], [{"event": "configuration", "digest": "66" * 32}]):
        guest.launch_log.write_text(json.dumps(lie))
        with pytest.raises(EvidenceRefused, match=r"tdx\.rtmr3-replay"):
            judged(guest)


def test_events_in_another_register_than_the_policy_names_are_no_claims(guest):
    guest.attester().extend(DIGEST, "configuration")
    with pytest.raises(EvidenceRefused, match=r"tdx\.launch-events"):
        judged(guest, "launch_rtmr = 2")


def test_an_event_whose_digest_does_not_cover_its_text_is_no_launch_event(guest):
    guest.attester().extend(DIGEST, "configuration")
    log = unb64(guest.attester().evidence(BINDING).body["cc_eventlog"], where="log")
    forged = log.replace(DIGEST.hex().encode(), b"66" * 32)
    assert len(launch_events(parse_log(log))) == 1
    assert launch_events(parse_log(forged)) == ()


@pytest.mark.parametrize("event", ["", "Upper", "two words", "a\nb", "-x", "x" * 70])
def test_a_name_that_would_break_the_line_is_refused(guest, event):
    from strongroom.errors import MalformedInput

    with pytest.raises((AttesterUnavailable, MalformedInput)):
        guest.attester().extend(DIGEST, event)
    assert not any(guest.registers.rtmr[3])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda guest: guest.registers.values.pop("rtmr3:sha384"), "6.16"),
        (lambda guest: setattr(guest.registers, "root", False), "may not extend"),
        (lambda guest: guest.ccel.unlink(), "no event log"),
    ],
)
def test_a_guest_that_cannot_show_events_says_why_and_extends_nothing(guest, spoil, said):
    spoil(guest)
    assert said in guest.attester().launch_trouble()
    with pytest.raises(AttesterUnavailable, match=said):
        guest.attester().extend(DIGEST, "configuration")


def test_a_log_that_cannot_be_read_stops_the_launch(guest):
    guest.ccel.write_bytes(ccel(FIRMWARE)[:-600])
    with pytest.raises(AttesterUnavailable, match="cannot be read"):
        guest.attester().extend(DIGEST, "configuration")


def test_the_kernels_files_are_read_and_written_in_one_piece(tmp_path):
    (tmp_path / "mrconfigid").write_bytes(b"\x05" * 48)
    (tmp_path / "rtmr3:sha384").write_bytes(bytes(48))
    registers = Sysfs(tmp_path)
    assert registers.read("mrconfigid") == b"\x05" * 48
    assert registers.there("mrconfigid")
    assert not registers.there("mrowner")
    registers.write(runtime_register(3), b"\x06" * 48)
    assert (tmp_path / "rtmr3:sha384").read_bytes() == b"\x06" * 48


@pytest.mark.parametrize("size", [0, 32, 47, 49])
def test_the_pretend_registers_refuse_what_the_kernel_refuses(size):
    with pytest.raises(OSError, match="Invalid"):
        PretendRegisters().write("rtmr3:sha384", bytes(size))
    with pytest.raises(PermissionError):
        PretendRegisters().write("mrconfigid", bytes(48))


# -- MRCONFIGID ------------------------------------------------------------------------------

INIT_DATA = InitData.parse('version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"strongroom.toml" = "x"\n')


def test_mrconfigid_comes_from_the_kernels_register(tmp_path):
    guest = PretendTdxGuest(tmp_path, config_id=INIT_DATA.field("tdx"))
    assert guest.attester().init_data_field() == INIT_DATA.digest
    verdict = judged(guest, top=f'init_data = ["{INIT_DATA.digest.hex()}"]')
    assert verdict.claims["init_data"] == INIT_DATA.digest.hex()


def test_on_an_older_kernel_mrconfigid_comes_out_of_a_tdreport(tmp_path, guest):
    device = tmp_path / "tdx_guest"
    device.write_bytes(b"")
    del guest.registers.values["mrconfigid"]
    attester = guest.attester(device=device, ioctl=partial(tdx_guest, config_id=INIT_DATA.digest))
    assert attester.init_data_field() == INIT_DATA.digest


def test_where_a_cloud_leaves_mrconfigid_empty_the_event_takes_its_place(guest):
    digest = hashlib.sha256(INIT_DATA.text.encode()).digest()
    guest.attester().extend(digest, "init-data")
    assert judged(guest, top=f'init_data = ["{digest.hex()}"]')
    with pytest.raises(EvidenceRefused, match=r"tdx\.init-data"):
        judged(guest, top=f'init_data = ["{"22" * 32}"]')
