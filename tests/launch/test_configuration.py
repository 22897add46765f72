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
        (SMALLEST + "[worker.envelopes]\ndigits = 'seldon'\n", "digits"),
        (SMALLEST.replace("simulated", "snp") + "[worker]\noutput = 'pass'\n", "the TEE here is 'snp'"),
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
