"""Keys without a broker: from files, loudly and only beside the simulated TEE, and from a token."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
from doubles.soft_token import PIN, soft_token
from strongroom.archive.modelkey import save_model_key
from strongroom.attest.simulated import SimulatedAttester
from strongroom.errors import ConfigurationInvalid, KeyFileInvalid, ReleaseError, ResourceMissing
from strongroom.hookspecs import Asker
from strongroom.keeper import providers
from strongroom.keeper.keyfiles import Pkcs11Provider
from strongroom.keys import ArchiveDigest, ModelKey

ARCHIVE, KEY = ArchiveDigest(b"\7" * 32), ModelKey(b"\x42" * 32)
NAME = ("acme", "digits", f"1-{ARCHIVE}")


@pytest.fixture
def offers():
    return {offer.name: offer for offer in providers.strongroom_key_providers()}


@pytest.fixture
def asker(tmp_path):
    return Asker("simulated", SimulatedAttester(), {"version": 1, "keeper": "00" * 16}, tmp_path)


def test_a_broker_is_a_provider_among_others(offers):
    assert list(offers) == ["kbs", "file", "pkcs11", "cdh"]


def test_a_file_gives_the_key_and_a_warning_and_no_lease(offers, asker, tmp_path, capsys):
    (tmp_path / "keys").mkdir()
    save_model_key(tmp_path / "keys" / f"{ARCHIVE}.key", ARCHIVE, KEY)
    grant = offers["file"].make({"folder": "keys"}, asker).release(ARCHIVE, NAME)
    assert grant.key.reveal() == KEY.reveal() and grant.lease_s is None
    assert "whoever reads" in capsys.readouterr().err


@pytest.mark.parametrize("tee", ["snp", "tdx", "tpm", ""])
def test_files_are_refused_beside_a_real_tee(offers, tmp_path, tee):
    with pytest.raises(ConfigurationInvalid, match="for development"):
        offers["file"].make({"folder": "keys"}, Asker(tee, SimulatedAttester(), {}, tmp_path))


def test_a_missing_key_says_which_file_was_expected(offers, asker):
    with pytest.raises(ResourceMissing) as missing:
        offers["file"].make({"folder": "."}, asker).release(ARCHIVE, NAME)
    assert f"{ARCHIVE}.key" in missing.value.hint


def test_a_file_that_is_no_key_or_another_archives_is_refused(offers, asker, tmp_path):
    provider = offers["file"].make({"folder": "."}, asker)
    path = tmp_path / f"{ARCHIVE}.key"
    path.write_text("nothing")
    path.chmod(0o600)
    with pytest.raises(ReleaseError):
        provider.release(ARCHIVE, NAME)
    path.unlink()
    save_model_key(path, ArchiveDigest(bytes(32)), KEY)
    with pytest.raises(ReleaseError, match="is the key of archive"):
        provider.release(ARCHIVE, NAME)


def test_a_key_that_others_may_read_is_refused(offers, asker, tmp_path):
    save_model_key(tmp_path / f"{ARCHIVE}.key", ARCHIVE, KEY)
    (tmp_path / f"{ARCHIVE}.key").chmod(0o644)
    with pytest.raises(ReleaseError, match="can be read by others"):
        offers["file"].make({"folder": "."}, asker).release(ARCHIVE, NAME)


@pytest.mark.parametrize("settings", [{}, {"folder": "x", "more": 1}, {"folder": 5}])
@pytest.mark.parametrize("name", ["file", "pkcs11"])
def test_settings_that_cannot_be_used_are_refused_with_the_page_that_lists_them(offers, asker, name, settings):
    with pytest.raises(ConfigurationInvalid) as refused:
        offers[name].make(settings, asker)
    assert "docs/configuration.md" in refused.value.hint


# -- a token -------------------------------------------------------------------------------


@pytest.fixture
def pkcs11(tmp_path):
    pin = tmp_path / "pin"
    pin.write_text(f"{PIN}\n")
    pin.chmod(0o600)
    return {"folder": ".", "pin_file": "pin", **soft_token()}


@pytest.fixture
def token(pkcs11, tmp_path):
    return Pkcs11Provider.configured(pkcs11, tmp_path)


def test_a_token_gives_the_key_back_and_it_lies_nowhere_in_the_clear(token, tmp_path):
    path = token.keep(ARCHIVE, KEY)
    assert token.release(ARCHIVE, NAME).key.reveal() == KEY.reveal()
    assert KEY.reveal() not in path.read_bytes() and path.stat().st_mode & 0o777 == 0o600
    assert PIN not in repr(token._token)
    with pytest.raises(ResourceMissing):
        token.release(ArchiveDigest(bytes(32)), NAME)


def test_a_wrapped_key_is_never_overwritten(token):
    token.keep(ARCHIVE, KEY)
    with pytest.raises(KeyFileInvalid, match="exists already"):
        token.keep(ARCHIVE, KEY)


def test_a_wrapped_key_under_another_archives_name_is_refused_also_with_its_name_changed(token, tmp_path):
    other = ArchiveDigest(bytes(32))
    shutil.copy(token.keep(ARCHIVE, KEY), tmp_path / f"{other}.p11")
    with pytest.raises(ReleaseError, match="is not the wrapped key"):
        token.release(other, NAME)
    fields = json.loads((tmp_path / f"{other}.p11").read_text()) | {"archive": str(other)}
    (tmp_path / f"{other}.p11").write_text(json.dumps(fields))
    with pytest.raises(ReleaseError, match="did not do it"):
        token.release(other, NAME)


@pytest.mark.parametrize("spoil", [{"wrapped": "AA"}, {"extra": 1}, {"strongroom": "root-key/1"}, {"nonce": 7}])
def test_a_wrapped_key_that_was_touched_is_refused(token, spoil):
    path = token.keep(ARCHIVE, KEY)
    path.write_text(json.dumps(json.loads(path.read_text()) | spoil))
    with pytest.raises(ReleaseError):
        token.release(ARCHIVE, NAME)


def test_a_wrong_pin_is_refused_and_shown_nowhere(pkcs11, token, tmp_path):
    token.keep(ARCHIVE, KEY)
    (tmp_path / "pin").write_text("987654\n")
    with pytest.raises(ReleaseError, match="PinIncorrect") as refused:
        Pkcs11Provider.configured(pkcs11, tmp_path).release(ARCHIVE, NAME)
    assert "987654" not in f"{refused.value} {refused.value.hint}"


def test_many_archives_are_unwrapped_at_once(token):
    """Logging in is a state of the process: without care, two sessions end each other's."""
    archives = [ArchiveDigest(bytes([number]) * 32) for number in range(4)]
    for archive in archives:
        token.keep(archive, ModelKey(bytes(archive)))
    failed = []

    def keeper(archive):
        for _ in range(10):
            try:
                assert token.release(archive, NAME).key.reveal() == bytes(archive)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=keeper, args=(archive,)) for archive in archives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[:2]


def test_what_is_missing_for_a_token_is_said_without_its_pin_being_tried(offers, pkcs11, tmp_path):
    missing = offers["pkcs11"].missing
    (tmp_path / "pin").write_text("wrong\n")
    assert missing(pkcs11, tmp_path) == ""
    assert "no library" in missing(pkcs11 | {"module": "/nowhere.so"}, tmp_path)
    assert "no token 'elsewhere'" in missing(pkcs11 | {"token": "elsewhere"}, tmp_path)
    assert "no folder" in missing(pkcs11 | {"folder": "elsewhere"}, tmp_path)


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_pin_file_is_refused(pkcs11, tmp_path, content):
    (tmp_path / "pin").write_text(content)
    with pytest.raises(KeyFileInvalid, match="holds no PIN"):
        Pkcs11Provider.configured(pkcs11, tmp_path)


def test_a_pin_file_that_others_may_read_is_refused(pkcs11, tmp_path):
    (tmp_path / "pin").chmod(0o644)
    with pytest.raises(KeyFileInvalid, match="may be read by others"):
        Pkcs11Provider.configured(pkcs11, tmp_path)
