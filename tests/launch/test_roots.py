"""Trust roots from hardware: a launch that the machine's own evidence does not bear out is refused before it begins.

The devices are emulated as their drivers behave; the TPM's tests are in test_measured.py, on a real software TPM.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from doubles.amd_keys import amd_keys
from doubles.cca_platform import PretendCca, sign1
from doubles.dcap_platform import PretendIntel, enclave
from doubles.models import Author, sealed_toy
from doubles.tdx_guest import PretendTdxGuest
from doubles.tee_devices import PretendConfigfs
from strongroom.adapters.torchserve.launcher import fix, prepare
from strongroom.attest.cca import CcaAttester
from strongroom.attest.sgx import SgxAttester
from strongroom.attest.simulated import SimulatedAttester
from strongroom.attest.snp import SnpAttester
from strongroom.errors import LaunchRefused
from strongroom.evidence.init_data import InitData
from strongroom.keeper.process import Charge
from strongroom.launch.init_files import pack
from strongroom.launch.roots import BY_EVENT, check_init_data
from strongroom.plugins import Plugins

TEXT = 'version = "0.1.0"\nalgorithm = "{}"\n[data]\n"strongroom.toml" = "x"\n'
CHIP = amd_keys("Milan").chip()
VERIFIERS = Plugins.load().verifiers()


def init_data(algorithm: str = "sha256") -> InitData:
    return InitData.parse(TEXT.format(algorithm))


def snp(host_data: bytes) -> SnpAttester:
    def report(data: bytes) -> tuple[bytes, bytes]:
        return CHIP.report(report_data=data, host_data=host_data).serialise(), b""

    return SnpAttester(reports=PretendConfigfs("sev_guest", report))


def cca(personalization: bytes) -> CcaAttester:
    platform = PretendCca()

    def token(data: bytes) -> tuple[bytes, bytes]:
        return platform.token(realm=sign1(platform.rak_key, platform.realm(data, c44235=personalization))), b""

    return CcaAttester(reports=PretendConfigfs("arm_cca_guest", token))


class Gramine:
    """Gramine's pseudo-files: a quote over what was last written."""

    def __init__(self, folder, config_id: bytes) -> None:
        self._folder, self._intel, self._config_id = folder, PretendIntel(), config_id

    def __truediv__(self, name: str):
        return self if name == "user_report_data" else self._folder / name

    def write_bytes(self, octets: bytes) -> None:
        quote = self._intel.quote(enclave(report_data=octets, config_id=self._config_id))
        (self._folder / "quote").write_bytes(quote)


def attester_of(tee: str, field: bytes, folder):
    if tee == "snp":
        return snp(field)
    if tee == "cca":
        return cca(field)
    if tee == "sgx":
        return SgxAttester(files=Gramine(folder, field))
    return PretendTdxGuest(folder, config_id=field).attester()


TEES = ["snp", "tdx", "cca", "sgx"]
NAMES = {"snp": "host_data", "tdx": "mr_config_id", "cca": "personalization", "sgx": "config_id"}


@pytest.mark.parametrize("tee", TEES)
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_guest_that_was_started_with_the_file_goes_on(tee, algorithm, tmp_path):
    data = init_data(algorithm)
    assert check_init_data(data, attester_of(tee, data.field(tee), tmp_path), VERIFIERS) == NAMES[tee]


@pytest.mark.parametrize("tee", TEES)
def test_a_guest_that_was_started_with_another_file_is_refused_with_both_values(tee, tmp_path):
    other = InitData.parse(TEXT.format("sha256") + "# changed by the host\n")
    with pytest.raises(LaunchRefused, match="another init-data") as refusal:
        check_init_data(init_data(), attester_of(tee, other.field(tee), tmp_path), VERIFIERS)
    assert other.field(tee).hex() in str(refusal.value)
    assert init_data().field(tee).hex() in str(refusal.value)
    assert "strongroom measure --init-data" in refusal.value.hint


@pytest.mark.parametrize("tee", ["snp", "cca", "sgx"])
def test_a_field_that_was_never_set_holds_nothing(tee, tmp_path):
    width = len(init_data().field(tee))
    with pytest.raises(LaunchRefused, match="another init-data"):
        check_init_data(init_data(), attester_of(tee, bytes(width), tmp_path), VERIFIERS)


def test_where_a_cloud_leaves_mrconfigid_empty_the_register_has_to_take_its_place(tmp_path):
    guest = PretendTdxGuest(tmp_path)
    assert check_init_data(init_data(), guest.attester(), VERIFIERS) == BY_EVENT
    del guest.registers.values["rtmr3:sha384"]
    with pytest.raises(LaunchRefused, match="all zeros"):
        check_init_data(init_data(), guest.attester(), VERIFIERS)


def test_a_tee_without_any_field_is_refused():
    class Nitro:
        tee = "aws-nitro"

    with pytest.raises(LaunchRefused, match="no field"):
        check_init_data(init_data(), Nitro(), VERIFIERS)


def test_the_simulated_tee_is_told_that_nothing_holds_it():
    assert "nothing" in check_init_data(init_data(), SimulatedAttester(), VERIFIERS)


# -- a whole launch ---------------------------------------------------------------------------


class Host:
    """An owner's configuration for `tee`, packed; a host's folder with a store; launches that are cleaned up."""

    def __init__(self, folder, tee: str) -> None:
        self.folder, self.launches = folder, []
        self.author = Author.make(folder)
        (folder / "store").mkdir()
        self.sealed = sealed_toy(folder / "store", self.author)
        self.config = folder / "strongroom.toml"
        self.config.write_text(
            '[admission]\nauthors = ["author.pub"]\n[broker]\nurl = "http://127.0.0.1:1"\n'
            f'[attestation]\ntee = "{tee}"\n'
        )
        self.path = folder / "init-data.toml"
        self.path.write_text(pack(self.config, algorithm="sha384"))
        self.data = InitData.parse(self.path.read_text())

    def prepare(self, attester=None, **where):
        command = ["torchserve", "--start", "--model-store", str(self.folder / "store"), "--models", "toy=toy.mar"]
        where = where or {"init_data": self.path}
        launch = prepare(where.pop("config", None), command, attester=attester, **where)
        self.launches.append(launch)
        return launch


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []

    def make(tee: str) -> Host:
        made.append(Host(tmp_path, tee))
        return made[-1]

    yield make
    for each in made:
        for launch in each.launches:
            shutil.rmtree(launch.folder, ignore_errors=True)


def test_configuration_and_keys_come_out_of_the_file_and_from_nowhere_else(host):
    host = host("snp")
    host.config.write_text("not TOML at all")
    (host.folder / "author.pub").write_text("not a key")
    launch = host.prepare(lambda: snp(host.data.field("snp")))
    assert [each.name for each in launch.admitted] == ["toy"]
    assert str(launch.folder) in " ".join(launch.keeper.command)
    assert str(host.folder / "strongroom.toml") not in launch.keeper.command
    assert (launch.folder / "init-data").stat().st_mode & 0o777 == 0o700


def test_the_keeper_is_given_the_text_for_the_broker(host):
    host = host("snp")
    launch = host.prepare(lambda: snp(host.data.field("snp")))
    assert Charge.parse(launch.keeper.stdin()).init_data == host.data.text


@pytest.mark.alone
def test_a_host_that_swaps_the_file_is_refused_before_anything_is_written(host):
    host = host("snp")
    good = host.data.field("snp")
    host.path.write_text(host.path.read_text().replace("127.0.0.1:1", "127.0.0.1:2"))
    before = set(private_folders())
    with pytest.raises(LaunchRefused, match="another init-data"):
        host.prepare(lambda: snp(good))
    assert set(private_folders()) == before


def private_folders() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob("strongroom-*")]


@pytest.mark.parametrize("both", [True, False])
def test_the_configuration_comes_from_one_place(host, both):
    host = host("snp")
    with pytest.raises(LaunchRefused, match="one place"):
        host.prepare(**({"config": host.config, "init_data": host.path} if both else {"config": None}))


def test_a_tdx_launch_extends_what_it_admits_before_it_starts_and_the_quote_says_so(host, tmp_path):
    host = host("tdx")
    guest = PretendTdxGuest(tmp_path, config_id=host.data.field("tdx"))
    launch = host.prepare(guest.attester)
    said: list[str] = []
    assert not any(guest.registers.rtmr[3]), "looking extends nothing"
    fix(launch, said.append)
    events = {each.event: each.digest for each in guest.attester().launched()}
    assert list(events) == ["init-data", "configuration", "trust-roots", "admitted", "distributions"]
    assert events == {each.event: each.digest for each in launch.measured}
    assert any("held by mr_config_id" in line for line in said)
    assert sum(": extended" in line for line in said) == 5
    said.clear()
    fix(launch, said.append)
    assert sum("measured already in this boot" in line for line in said) == 5


def test_another_configuration_in_the_same_boot_is_refused_on_tdx_too(host, tmp_path):
    host = host("tdx")
    guest = PretendTdxGuest(tmp_path, config_id=bytes(48))
    fix(host.prepare(guest.attester), print)
    host.config.write_text(host.config.read_text() + '[worker]\nnetwork = "allow"\n')
    host.path.write_text(pack(host.config, algorithm="sha384"))
    with pytest.raises(LaunchRefused, match=r"another init-data was launched|another configuration"):
        fix(host.prepare(guest.attester), print)


def test_a_tdx_guest_that_cannot_extend_goes_on_with_a_warning_where_mrconfigid_holds_the_digest(host, tmp_path):
    host = host("tdx")
    guest = PretendTdxGuest(tmp_path, config_id=host.data.field("tdx"))
    guest.registers.root = False
    said: list[str] = []
    fix(host.prepare(guest.attester), said.append)
    assert any("launch events are not extended: this user may not" in line for line in said)


def test_what_only_an_event_vouches_for_is_not_sent_to_a_broker_that_would_look_into_the_field(host, tmp_path):
    host = host("tdx")
    guest = PretendTdxGuest(tmp_path)
    assert Charge.parse(host.prepare(guest.attester).keeper.stdin()).init_data is None


def test_trust_roots_change_with_the_key_although_the_configuration_does_not(host):
    host = host("snp")
    one = host.prepare(lambda: snp(bytes(32)), config=host.config)
    (host.folder / "else").mkdir()
    other = Author.make(host.folder / "else")
    (host.folder / "author.pub").write_bytes(other.public.read_bytes())
    (host.folder / "store" / "toy.mar").unlink()
    sealed_toy(host.folder / "store", other)
    two = host.prepare(lambda: snp(bytes(32)), config=host.config)
    events = [{each.event: each.digest for each in launch.measured} for launch in (one, two)]
    assert events[0]["configuration"] == events[1]["configuration"]
    assert events[0]["trust-roots"] != events[1]["trust-roots"]
