"""Keys without a broker: from files, loudly and only beside the simulated TEE, and from a token."""

from __future__ import annotations

import pytest
from doubles.soft_token import PIN, soft_token
from strongroom.archive.modelkey import save_model_key
from strongroom.errors import ConfigurationInvalid, KeyFileInvalid, ReleaseError, ResourceMissing
from strongroom.keeper import providers
from strongroom.keys import ArchiveDigest, ModelKey

ARCHIVE, KEY = ArchiveDigest(b"\7" * 32), ModelKey(b"\x42" * 32)


@pytest.fixture
def offers():
    return {offer.name: offer.make for offer in providers.strongroom_key_providers()}


def test_a_file_gives_the_key_and_a_warning(offers, tmp_path, capsys):
    save_model_key(tmp_path / f"{ARCHIVE}.key", ARCHIVE, KEY)
    provider = offers["file"]({"folder": str(tmp_path), "tee": "simulated"})
    assert provider.model_key(ARCHIVE).reveal() == KEY.reveal()
    assert "whoever reads them reads the models" in capsys.readouterr().err


@pytest.mark.parametrize("tee", ["snp", "tdx", "tpm", ""])
def test_files_are_refused_beside_a_real_tee(offers, tmp_path, tee):
    with pytest.raises(ConfigurationInvalid, match="for development"):
        offers["file"]({"folder": str(tmp_path), "tee": tee})


def test_a_missing_key_says_which_file_was_expected(offers, tmp_path):
    with pytest.raises(ResourceMissing) as missing:
        offers["file"]({"folder": str(tmp_path), "tee": "simulated"}).model_key(ARCHIVE)
    assert f"{ARCHIVE}.key" in missing.value.hint


def test_a_file_that_is_no_key_is_a_release_error(offers, tmp_path):
    (tmp_path / f"{ARCHIVE}.key").write_text("nothing")
    (tmp_path / f"{ARCHIVE}.key").chmod(0o600)
    with pytest.raises(ReleaseError):
        offers["file"]({"folder": str(tmp_path), "tee": "simulated"}).model_key(ARCHIVE)


@pytest.mark.parametrize(
    "settings", [{}, {"folder": "x"}, {"folder": "x", "tee": "simulated", "more": 1}, {"folder": 5}]
)
def test_settings_that_cannot_be_used_are_refused(offers, settings):
    with pytest.raises(ConfigurationInvalid):
        offers["file"](settings)


def test_a_token_gives_the_key_back(offers, tmp_path):
    pin = tmp_path / "pin"
    pin.write_text(f"{PIN}\n")
    pin.chmod(0o600)
    settings = {"folder": str(tmp_path), "pin_file": str(pin), **soft_token()}
    provider = offers["pkcs11"](settings)
    provider.keep(ARCHIVE, KEY)
    assert provider.model_key(ARCHIVE).reveal() == KEY.reveal()
    assert KEY.reveal() not in (tmp_path / f"{ARCHIVE}.p11").read_bytes()
    with pytest.raises(KeyFileInvalid):
        provider.keep(ARCHIVE, KEY)
    with pytest.raises(ResourceMissing):
        provider.model_key(ArchiveDigest(bytes(32)))
