"""The one configuration file."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import pytest
from strongroom.errors import ConfigurationInvalid
from strongroom.launch.config import Configuration

SMALLEST = '[admission]\nauthors = ["author.pub"]\n[attestation]\ntee = "simulated"\n'
DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def load(tmp_path, text):
    path = tmp_path / "strongroom.toml"
    path.write_text(text)
    return Configuration.load(path)


def test_the_smallest_file_has_the_documented_defaults(tmp_path):
    configuration = load(tmp_path, SMALLEST)
    assert configuration.channel.kems == ("x-wing", "x25519")
    assert configuration.worker.output == "drop"
    assert configuration.broker is None
    assert configuration.keys.provider == "kbs" and configuration.keys.leased


def test_a_fleets_keys_are_asked_for_by_name_only(tmp_path):
    assert load(tmp_path, SMALLEST).channel.mode == "host"
    channel = load(tmp_path, SMALLEST + "[channel]\nmode = 'fleet'\noverlap_s = 43200\n").channel
    assert (channel.mode, channel.overlap) == ("fleet", 43200)


def test_the_documented_example_is_read(tmp_path):
    example = re.search(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    configuration = load(tmp_path, example)
    assert configuration.admission.minimum_versions == {"digits": 1}
    assert configuration.broker.url == "https://keys.example:8443"


def test_the_digest_is_of_the_exact_bytes(tmp_path):
    assert load(tmp_path, SMALLEST).digest == sha256(SMALLEST.encode()).digest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[attestation]\ntee = "simulated"\n', "admission"),
        ('[admission]\nauthors = []\n[attestation]\ntee = "snp"\n', "authors is empty"),
        ('[admission]\nauthors = ["a"]\n', "attestation"),
        (SMALLEST + "surprise = 1\n", "surprise"),
        (SMALLEST + "[broker]\nurl = 'ftp://x'\n", "neither https nor http"),
        (SMALLEST + "[channel]\nkems = ['rot13']\n", "kems"),
        (SMALLEST + "[channel]\nmode = 'cluster'\n", "mode"),
        (SMALLEST + "[channel]\nmode = 'fleet'\nrotation_s = 3600\n", "rotation_s is for mode host"),
        (SMALLEST + "[channel]\nmode = 'fleet'\noverlap_s = 43201\n", "overlap_s"),
        (SMALLEST + "[worker]\noutput = 'print'\n", "output"),
        (SMALLEST + "[worker]\npadding = 'much'\n", "padding"),
        (SMALLEST + "[worker]\nstream_padding = 'bucket:20000'\n", "a bucket of 20000 bytes"),
        (SMALLEST + "[worker.envelopes]\ndigits = 'seldon'\n", "digits"),
        (SMALLEST.replace("simulated", "snp") + "[worker]\noutput = 'pass'\n", "the TEE here is 'snp'"),
        (SMALLEST + "[keys]\nprovider = 5\n", "provider is not a string"),
        (SMALLEST + "[keys]\nfolder = 'keys'\n", "folder means nothing to provider 'kbs'"),
        (SMALLEST + "[keys]\nprovider = 'safe'\n", "no key provider is called 'safe'"),
        (SMALLEST + "[broker]\nurl = 'http://x'\n[keys]\nprovider = 'cdh'\n", "would not be used"),
        (SMALLEST.replace("simulated", "snp") + "[keys]\nprovider = 'file'\nfolder = 'k'\n", "for development"),
        ("not toml", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_what_next(tmp_path, text, said):
    with pytest.raises(ConfigurationInvalid, match=said) as refusal:
        load(tmp_path, text)
    assert refusal.value.hint


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigurationInvalid, match="cannot be read"):
        Configuration.load(tmp_path / "absent.toml")


@pytest.mark.parametrize("provider", ["file", "pkcs11", "cdh"])
def test_our_own_providers_beside_the_broker_grant_no_lease(tmp_path, provider):
    keys = load(tmp_path, SMALLEST + f"[keys]\nprovider = '{provider}'\nfolder = 'k'\n").keys
    assert (keys.provider, dict(keys.settings), keys.folder) == (provider, {"folder": "k"}, tmp_path)
    assert not keys.leased


def test_a_plugins_provider_is_left_to_the_plugin(tmp_path):
    keys = load(tmp_path, "plugins = ['vault']\n" + SMALLEST + "[keys]\nprovider = 'vault'\nroom.number = 5\n").keys
    assert (keys.provider, dict(keys.settings), keys.leased) == ("vault", {"room": {"number": 5}}, True)


def test_every_documented_configuration_of_keys_is_read(tmp_path):
    tables = [each for each in re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL) if "[keys]" in each]
    assert len(tables) == 2
    assert load(tmp_path, SMALLEST + tables[1]).keys.provider == "pkcs11"
    guide = re.findall(r"```toml\n(.*?)```", (DOCS.parent / "guides" / "keys.md").read_text(), re.DOTALL)
    assert [load(tmp_path, text if "[admission]" in text else SMALLEST + text).keys.provider for text in guide] == [
        "file",
        "pkcs11",
    ]


def test_relative_paths_begin_at_the_real_file_however_it_is_reached(tmp_path, monkeypatch):
    """The launcher reads the path that it is given, the keeper the resolved one; both have to find the same files."""
    real, linked = tmp_path / "real", tmp_path / "linked"
    real.mkdir()
    linked.mkdir()
    text = (
        SMALLEST + '[broker]\nurl = "http://x"\nca = "ca.pem"\n[surroundings]\njava_home = "jdk"\ndistributions = "d"\n'
    )
    (real / "strongroom.toml").write_text(text)
    (linked / "link.toml").symlink_to("../real/strongroom.toml")
    monkeypatch.chdir(linked)
    for path in (Path("link.toml"), linked / "link.toml", (linked / "link.toml").resolve()):
        found = Configuration.load(path)
        assert found.files == (real / "author.pub", real / "ca.pem", real / "d")
        assert found.surroundings.java_home == real / "jdk"


def test_a_link_that_leads_to_itself_is_no_configuration(tmp_path):
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with pytest.raises(ConfigurationInvalid, match="cannot be read"):
        Configuration.load(tmp_path / "loop.toml")
