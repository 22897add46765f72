"""Strongroom's own keepers of root keys, offered through the same hook as anybody's (docs/release.md section 13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strongroom.broker import rootkey_pkcs11, rootkey_tpm
from strongroom.broker.rootkey import PassphraseFile, PlainFile
from strongroom.encoding import Fields
from strongroom.errors import ConfigurationInvalid, KeyFileInvalid
from strongroom.hookspecs import RootKeyOffer, RootKeyProvider, hookimpl


def _file(path: Path, settings: Mapping[str, Any], passphrase: str | None) -> RootKeyProvider:
    _read(settings).done()
    return PlainFile(path)


def _passphrase(path: Path, settings: Mapping[str, Any], passphrase: str | None) -> RootKeyProvider:
    if passphrase is None:
        raise KeyFileInvalid("this broker's root key is under a passphrase", hint="--passphrase-file FILE")
    _read(settings).done()
    return PassphraseFile(path, passphrase)


def _tpm(path: Path, settings: Mapping[str, Any], passphrase: str | None) -> RootKeyProvider:
    read = _read(settings)
    try:
        pcrs = tuple(int(each) for each in read.texts("pcrs", default=()))
    except ValueError as error:
        raise ConfigurationInvalid("the settings of the root key cannot be used: pcrs are numbers") from error
    tcti = read.text("tcti", default=rootkey_tpm.DEFAULT_TCTI)
    read.done()
    return rootkey_tpm.TpmSealed(path, tcti=tcti, pcrs=pcrs, passphrase=None if pcrs else passphrase)


def _pkcs11(path: Path, settings: Mapping[str, Any], passphrase: str | None) -> RootKeyProvider:
    read = _read(settings)
    module, token, key = read.text("module"), read.text("token"), read.text("key", default="strongroom root key")
    read.done()
    return rootkey_pkcs11.Pkcs11Wrapped(path, module=module, token_label=token, key_label=key, pin=passphrase)


def _read(settings: Mapping[str, Any]) -> Fields:
    return Fields(dict(settings), where="root key settings")


@hookimpl
def strongroom_root_key_providers() -> Sequence[RootKeyOffer]:
    """The four of this package."""
    return [
        RootKeyOffer("file", _file),
        RootKeyOffer("passphrase", _passphrase),
        RootKeyOffer("tpm", _tpm),
        RootKeyOffer("pkcs11", _pkcs11),
    ]
