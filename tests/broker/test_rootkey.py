"""Who keeps a store's root key: files, a TPM in software, a PKCS #11 token in software."""

from __future__ import annotations

import json
import os

import pytest
from doubles.soft_token import PIN, soft_token
from doubles.software_tpm import SoftwareTpm
from strongroom import plugins as plugins_module
from strongroom.archive import keyfile
from strongroom.broker import directory, rootkey
from strongroom.broker.directory import open_broker
from strongroom.broker.rootkey import PassphraseFile, PlainFile
from strongroom.broker.rootkey_pkcs11 import Pkcs11Wrapped
from strongroom.broker.rootkey_tpm import TpmSealed
from strongroom.errors import ConfigurationInvalid, KeyFileInvalid
from strongroom.hookspecs import RootKeyOffer, hookimpl


@pytest.fixture
def path(tmp_path):
    return tmp_path / "root.key"


def test_a_plain_file_gives_back_its_key(path):
    key = PlainFile(path).create()
    assert PlainFile(path).unlock() == key and len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_may_read_is_refused(path):
    PlainFile(path).create()
    path.chmod(0o644)
    with pytest.raises(KeyFileInvalid, match="may be read by others"):
        PlainFile(path).unlock()


def test_a_key_is_never_overwritten(path):
    PlainFile(path).create()
    with pytest.raises(KeyFileInvalid, match="exists already"):
        PassphraseFile(path, "x").create()


@pytest.mark.parametrize(
    "write", [lambda path: rootkey.write_private(path, b"x"), lambda path: keyfile.write_private(path, "x")]
)
def test_a_fresh_keys_name_is_on_the_disk_too(path, monkeypatch, write):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    write(path)
    assert synced[-1] == path.parent.stat().st_ino and path.stat().st_ino in synced[:-1]


def test_a_passphrase_opens_its_file_and_no_other_does(path):
    key = PassphraseFile(path, "correct horse").create()
    assert PassphraseFile(path, "correct horse").unlock() == key
    assert key not in path.read_bytes()
    with pytest.raises(KeyFileInvalid, match="does not open"):
        PassphraseFile(path, "correct hors").unlock()
    with pytest.raises(KeyFileInvalid, match="passphrase"):
        PlainFile(path).unlock()


@pytest.mark.parametrize(
    "change",
    [{"memory_kib": 1 << 30}, {"iterations": 0}, {"kdf": "md5"}, {"salt": "AA"}, {"extra": 1}, {"wrapped": ""}],
)
def test_a_doctored_file_is_refused_before_it_costs_anything(path, change):
    PassphraseFile(path, "x").create()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KeyFileInvalid):
        PassphraseFile(path, "x").unlock()


def test_an_empty_passphrase_is_refused(path):
    with pytest.raises(KeyFileInvalid):
        PassphraseFile(path, "")


# -- TPM ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    pytest.importorskip("tpm2_pytss")
    with SoftwareTpm(tmp_path_factory.mktemp("tpm")) as tpm:
        yield tpm


def test_a_tpm_unseals_under_its_passphrase_and_no_other(tpm, path):
    key = TpmSealed(path, tcti=tpm.tcti, passphrase="one").create()
    assert TpmSealed(path, tcti=tpm.tcti, passphrase="one").unlock() == key
    assert key not in path.read_bytes()
    with pytest.raises(KeyFileInvalid, match="unseal"):
        TpmSealed(path, tcti=tpm.tcti, passphrase="two").unlock()


def test_a_tpm_unseals_only_while_its_registers_are_as_they_were(tpm, path):
    from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA, TCTILdr

    sealed = TpmSealed(path, tcti=tpm.tcti, pcrs=[16])
    key = sealed.create()
    assert sealed.unlock() == key
    name, _, configuration = tpm.tcti.partition(":")
    with TCTILdr(name, configuration) as tcti, ESAPI(tcti) as esapi:
        value = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=bytes(32)))
        esapi.pcr_extend(ESYS_TR.PCR16, TPML_DIGEST_VALUES([value]))
    with pytest.raises(KeyFileInvalid, match="policy check failed"):
        sealed.unlock()


def test_another_tpm_does_not_unseal(tpm, path, tmp_path):
    TpmSealed(path, tcti=tpm.tcti, passphrase="one").create()
    with SoftwareTpm(tmp_path / "other") as other, pytest.raises(KeyFileInvalid):
        TpmSealed(path, tcti=other.tcti, passphrase="one").unlock()


def test_a_tpm_key_is_never_left_unprotected(path):
    with pytest.raises(KeyFileInvalid, match="one of them"):
        TpmSealed(path)


def test_a_tpm_that_is_not_there_is_an_error_of_ours(path):
    with pytest.raises(KeyFileInvalid, match="be opened"):
        TpmSealed(path, tcti="swtpm:host=127.0.0.1,port=1", passphrase="x").create()


def test_a_broker_lives_under_a_tpm(tpm, tmp_path):
    directory.init(tmp_path / "b", root_key="tpm", settings={"tcti": tpm.tcti}, passphrase="one")
    open_broker(tmp_path / "b", passphrase="one").store.close()
    with pytest.raises(KeyFileInvalid):
        open_broker(tmp_path / "b", passphrase="two")


# -- PKCS #11 ------------------------------------------------------------------------------


@pytest.fixture
def token():
    found = soft_token()
    return {"module": found["module"], "token_label": found["token"]}


def test_a_token_unwraps_with_its_pin_and_without_it_nothing(token, path):
    key = Pkcs11Wrapped(path, pin=PIN, **token).create()
    assert Pkcs11Wrapped(path, pin=PIN, **token).unlock() == key
    assert key not in path.read_bytes()
    with pytest.raises(KeyFileInvalid, match="PinIncorrect"):
        Pkcs11Wrapped(path, pin="0000", **token).unlock()


def test_two_root_keys_of_one_token_do_not_mix(token, tmp_path):
    one, two = (Pkcs11Wrapped(tmp_path / name, pin=PIN, **token) for name in ("one", "two"))
    assert one.create() != two.create()
    assert one.unlock() != two.unlock()


def test_a_changed_file_is_refused(token, path):
    sealed = Pkcs11Wrapped(path, pin=PIN, **token)
    sealed.create()
    fields = json.loads(path.read_text())
    wrapped = fields["wrapped_in_token"]
    fields["wrapped_in_token"] = ("A" if wrapped[0] != "A" else "B") + wrapped[1:]
    path.write_text(json.dumps(fields))
    with pytest.raises(KeyFileInvalid):
        sealed.unlock()


def test_a_broker_lives_under_a_token(token, tmp_path):
    settings = {"module": token["module"], "token": token["token_label"]}
    directory.init(tmp_path / "b", root_key="pkcs11", settings=settings, passphrase=PIN)
    open_broker(tmp_path / "b", passphrase=PIN).store.close()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("planet", {}), ("pkcs11", {}), ("tpm", {"pcrs": ["x"]}), ("tpm", {"unknown": "1"}), ("passphrase", {})],
)
def test_settings_that_cannot_be_used_are_refused_before_anything_is_made(tmp_path, kind, settings):
    with pytest.raises((ConfigurationInvalid, KeyFileInvalid)):
        directory.init(tmp_path / "b", root_key=kind, settings=settings)
    assert not (tmp_path / "b" / "store.db").exists()


# -- somebody else's ----------------------------------------------------------------------------


class Vault:
    """A plugin that keeps root keys elsewhere."""

    keys = {}

    @hookimpl
    def strongroom_root_key_providers(self):
        return [RootKeyOffer("vault", self.make)]

    def make(self, path, settings, passphrase):
        vault = self

        class Kept:
            def create(self):
                vault.keys[settings["room"], path.name] = key = os.urandom(32)
                path.write_text("in the vault")
                return key

            def unlock(self):
                if passphrase != "sesame":
                    raise KeyFileInvalid("the vault stays closed")
                return vault.keys[settings["room"], path.name]

        return Kept()


@pytest.fixture
def vault(monkeypatch):
    class Point:
        dist = None

        def load(self):
            return Vault()

    real = plugins_module.metadata.entry_points
    monkeypatch.setattr(
        plugins_module.metadata,
        "entry_points",
        lambda *, group, name: [Point()] if name == "vault" else real(group=group, name=name),
    )


def test_a_broker_lives_under_a_plugins_root_key_and_remembers_the_plugin(vault, tmp_path):
    made = {"root_key": "vault", "settings": {"room": "7"}, "plugins": ("vault",), "passphrase": "sesame"}
    directory.init(tmp_path / "b", **made)
    open_broker(tmp_path / "b", passphrase="sesame").close()
    with pytest.raises(KeyFileInvalid, match="stays closed"):
        open_broker(tmp_path / "b", passphrase="open")


def test_a_provider_of_a_plugin_that_is_not_named_is_unknown(vault, tmp_path):
    with pytest.raises(ConfigurationInvalid, match="no root key provider is called 'vault'") as refused:
        directory.init(tmp_path / "b", root_key="vault", passphrase="sesame")
    assert "file, passphrase, pkcs11, tpm" in refused.value.hint
