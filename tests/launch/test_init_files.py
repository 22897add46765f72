"""A configuration packed into init-data, and taken out again."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strongroom.errors import ConfigurationInvalid, LaunchRefused
from strongroom.evidence.init_data import InitData
from strongroom.launch.config import Configuration
from strongroom.launch.init_files import pack, read, unpack

CONFIG = (
    '[admission]\nauthors = ["author.pub"]\n[broker]\nurl = "https://x"\nca = "ca.pem"\n[attestation]\ntee = "tdx"\n'
)


@pytest.fixture
def owner(tmp_path):
    folder = tmp_path / "owner"
    folder.mkdir()
    (folder / "strongroom.toml").write_text(CONFIG)
    (folder / "author.pub").write_text("# an author\nstrongroom-author-1 ed25519 …\n")
    (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return folder


def test_what_is_packed_comes_out_with_the_same_bytes(owner, tmp_path):
    packed = pack(owner / "strongroom.toml", algorithm="sha384")
    config = unpack(InitData.parse(packed), tmp_path / "guest")
    assert {path.name: path.read_bytes() for path in config.parent.iterdir()} == {
        path.name: path.read_bytes() for path in owner.iterdir()
    }
    assert Configuration.load(config).digest == Configuration.load(owner / "strongroom.toml").digest
    assert config.parent.stat().st_mode & 0o777 == 0o700


def test_a_packed_file_is_one_that_people_can_read(owner):
    packed = pack(owner / "strongroom.toml", algorithm="sha256")
    assert packed.startswith('version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n')
    assert f"\"strongroom.toml\" = '''\n{CONFIG}'''" in packed


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_any_text_survives(owner, tmp_path_factory, text):
    try:
        octets = text.encode("utf-8")
    except UnicodeEncodeError:
        return
    (owner / "author.pub").write_bytes(octets)
    packed = InitData.parse(pack(owner / "strongroom.toml", algorithm="sha256"))
    config = unpack(packed, tmp_path_factory.mktemp("guest") / "in")
    assert (config.parent / "author.pub").read_bytes() == octets


def test_a_file_that_lies_elsewhere_is_refused(owner):
    (owner / "keys").mkdir()
    (owner / "author.pub").rename(owner / "keys" / "author.pub")
    (owner / "strongroom.toml").write_text(CONFIG.replace("author.pub", "keys/author.pub"))
    with pytest.raises(ConfigurationInvalid, match="does not lie beside it"):
        pack(owner / "strongroom.toml", algorithm="sha256")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_is_absent_or_no_text_is_refused(owner, content):
    (owner / "ca.pem").unlink()
    if content is not None:
        (owner / "ca.pem").write_bytes(content)
    with pytest.raises(ConfigurationInvalid, match=r"ca\.pem cannot be packed"):
        pack(owner / "strongroom.toml", algorithm="sha256")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ".hidden", "", "..", "x" * 200, "a\\u0000b"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    text = f'version = "1"\nalgorithm = "sha256"\n[data]\n"strongroom.toml" = "x"\n"{name}" = "y"\n'
    with pytest.raises(LaunchRefused, match="no name of a file"):
        unpack(InitData.parse(text), tmp_path / "guest")
    assert not (tmp_path / "x").exists()


def test_init_data_for_somebody_else_has_no_configuration(tmp_path):
    text = 'version = "1"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "x"\n'
    with pytest.raises(LaunchRefused, match=r"no 'strongroom\.toml'"):
        unpack(InitData.parse(text), tmp_path / "guest")


@pytest.mark.parametrize("content", [b"", b"\xff", b"x = 1", b"#" * (4 << 20) + b"#"])
def test_what_is_no_init_data_is_refused_with_the_way_to_make_one(tmp_path, content):
    path = tmp_path / "init-data.toml"
    path.write_bytes(content)
    with pytest.raises(LaunchRefused, match="is no init-data") as refusal:
        read(path)
    assert "--write-init-data" in refusal.value.hint
