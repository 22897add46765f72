"""Key providers beside the key broker, offered through the same hook as anybody's (docs/release.md section 17).

`file` takes model keys from a folder of key files, for development; `pkcs11` takes them from files that only a
token can unwrap, for a machine that its owner watches. Neither attests anything: who has the folder or the token
has the keys. That is why `file` refuses to work beside any TEE but the simulated one, and why both say so.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strongroom.broker.rootkey_pkcs11 import Pkcs11Wrapped
from strongroom.encoding import Fields
from strongroom.errors import ConfigurationInvalid, KeyFileInvalid, MalformedInput, ReleaseError, ResourceMissing
from strongroom.hookspecs import KeyProvider, KeyProviderOffer, hookimpl
from strongroom.keys import ArchiveDigest, ModelKey

_log = logging.getLogger(__name__)


class FileProvider:
    """Model keys from ``<folder>/<archive digest>.key``, as `strongroom seal --key-out` writes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def make(cls, settings: Mapping[str, Any]) -> FileProvider:
        """From ``{"folder": …, "tee": "simulated"}``; raises `ConfigurationInvalid`."""
        read = _read(settings)
        folder, tee = Path(_text(read, "folder")), _text(read, "tee")
        _done(read)
        if tee != "simulated":
            raise ConfigurationInvalid(
                f"keys in files are for development, and this is TEE {tee}",
                hint="let a key broker release them to attested machines: [broker] url",
            )
        warning = f"model keys come from files in {folder}: whoever reads them reads the models"
        print(f"strongroom: warning: {warning}", file=sys.stderr, flush=True)
        _log.warning(warning)
        return cls(folder)

    def model_key(self, archive: ArchiveDigest) -> ModelKey:
        """See `KeyProvider`."""
        from strongroom.archive.modelkey import load_model_key

        path = self._folder / f"{archive}.key"
        if not path.exists():
            raise ResourceMissing(f"there is no key of archive {archive} in {self._folder}", hint=f"expected: {path}")
        try:
            return load_model_key(path, of=archive)
        except KeyFileInvalid as error:
            raise ReleaseError(str(error), hint=error.hint) from error


class Pkcs11Provider:
    """Model keys from ``<folder>/<archive digest>.p11``, each wrapped by a key of a PKCS #11 token."""

    def __init__(self, folder: Path, *, module: str, token: str, pin: str) -> None:
        self._folder, self._module, self._token, self._pin = folder, module, token, pin

    @classmethod
    def make(cls, settings: Mapping[str, Any]) -> Pkcs11Provider:
        """From ``{"folder", "module", "token", "pin_file"}``; raises `ConfigurationInvalid`, `KeyFileInvalid`."""
        from strongroom.broker.rootkey import read_private

        read = _read(settings)
        folder, module, token = Path(_text(read, "folder")), _text(read, "module"), _text(read, "token")
        pin_file = Path(_text(read, "pin_file"))
        _done(read)
        lines = read_private(pin_file, limit=4096).decode("utf-8").splitlines()
        return cls(folder, module=module, token=token, pin=lines[0] if lines else "")

    def _wrapped(self, archive: ArchiveDigest) -> Pkcs11Wrapped:
        return Pkcs11Wrapped(
            self._folder / f"{archive}.p11",
            module=self._module,
            token_label=self._token,
            pin=self._pin,
            key_label=f"strongroom model key {str(archive)[:16]}",
        )

    def keep(self, archive: ArchiveDigest, key: ModelKey) -> None:
        """Wrap a model key in the token and write its file; never over an existing one."""
        self._wrapped(archive).keep(key.reveal())

    def model_key(self, archive: ArchiveDigest) -> ModelKey:
        """See `KeyProvider`."""
        path = self._folder / f"{archive}.p11"
        if not path.exists():
            raise ResourceMissing(f"there is no key of archive {archive} in {self._folder}", hint=f"expected: {path}")
        try:
            return ModelKey(self._wrapped(archive).unlock())
        except KeyFileInvalid as error:
            raise ReleaseError(str(error), hint=error.hint) from error


def _read(settings: Mapping[str, Any]) -> Fields:
    return Fields(dict(settings), where="key provider")


def _text(read: Fields, name: str) -> str:
    try:
        return read.text(name)
    except MalformedInput as error:
        raise ConfigurationInvalid(str(error)) from error


def _done(read: Fields) -> None:
    try:
        read.done()
    except MalformedInput as error:
        raise ConfigurationInvalid(str(error)) from error


def _file(settings: Mapping[str, Any]) -> KeyProvider:
    return FileProvider.make(settings)


def _pkcs11(settings: Mapping[str, Any]) -> KeyProvider:
    return Pkcs11Provider.make(settings)


@hookimpl
def strongroom_key_providers() -> Sequence[KeyProviderOffer]:
    """The two providers of this package; the key broker itself is not a plugin."""
    return [KeyProviderOffer("file", _file), KeyProviderOffer("pkcs11", _pkcs11)]
