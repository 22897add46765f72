"""Model keys in files, without a broker: in the clear for development, or wrapped by a PKCS #11 token.

docs/release.md section 17. Neither attests anything: who has the folder, or the token and its PIN, has the keys. That
is why `FileProvider` refuses to work beside any TEE but the simulated one, loudly at every start. Both are offered by
`providers`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strongroom.encoding import Fields, b64url, labelled, parse_json
from strongroom.errors import (
    ConfigurationInvalid,
    KeyFileInvalid,
    MalformedInput,
    ReleaseError,
    ResourceMissing,
    WrongKey,
)
from strongroom.hookspecs import Asker, Grant
from strongroom.keys import ArchiveDigest, ModelKey

if TYPE_CHECKING:
    from strongroom.broker.pkcs11 import Pkcs11Token

FILE_WARNING = "keys of models come from files: whoever reads {folder} reads the models; for development only"
_TOKEN_FORMAT = "model-key-token/1"


class FileProvider:
    """Model keys from ``<folder>/<archive digest>.key``, as `strongroom seal --key-out FOLDER` writes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def configured(cls, settings: Mapping[str, Any], base: Path) -> FileProvider:
        """From ``{"folder": …}``; raises `ConfigurationInvalid`. Says nothing yet."""
        read = Settings("file", settings, base)
        provider = cls(read.path("folder"))
        read.done()
        return provider

    @classmethod
    def make(cls, settings: Mapping[str, Any], asker: Asker) -> FileProvider:
        """The provider of a keeper that starts; warns on stderr. Raises `ConfigurationInvalid`."""
        provider = cls.configured(settings, asker.folder)
        if asker.tee != "simulated":
            raise ConfigurationInvalid(
                f"keys in files are for development, and this is TEE {asker.tee}",
                hint="let a key broker release them to attested machines: [broker] url",
            )
        print(f"strongroom: warning: {provider.warning}", file=sys.stderr, flush=True)
        return provider

    @property
    def warning(self) -> str:
        """What has to be said at every start."""
        return FILE_WARNING.format(folder=self._folder)

    @staticmethod
    def missing(settings: Mapping[str, Any], base: Path) -> str:
        """Whether the folder is there."""
        folder = FileProvider.configured(settings, base)._folder
        return "" if folder.is_dir() else f"there is no folder {folder}"

    def release(self, archive: ArchiveDigest, resource: tuple[str, str, str]) -> Grant:
        """See `KeyProvider`."""
        from strongroom.archive.modelkey import load_model_key

        with _refusals():
            return Grant(load_model_key(_file_of(self._folder, archive, "key"), of=archive))


class Pkcs11Provider:
    """Model keys from ``<folder>/<archive digest>.p11``, each wrapped by a key of a PKCS #11 token."""

    def __init__(self, folder: Path, token: Pkcs11Token) -> None:
        self._folder, self._token = folder, token

    @classmethod
    def configured(cls, settings: Mapping[str, Any], base: Path) -> Pkcs11Provider:
        """From ``{"folder", "module", "token", "pin_file"}`` and perhaps ``environment``.

        Reads the PIN; raises `ConfigurationInvalid`, `KeyFileInvalid`.
        """
        from strongroom.broker.pkcs11 import Pkcs11Token
        from strongroom.broker.rootkey import read_private

        read = Settings("pkcs11", settings, base)
        folder, module, token = read.path("folder"), read.text("module"), read.text("token")
        pin_file, environment = read.path("pin_file"), read.texts("environment")
        read.done()
        lines = read_private(pin_file, limit=4096).decode("utf-8", "replace").splitlines()
        if not lines or not lines[0]:
            raise KeyFileInvalid(f"{pin_file} holds no PIN", hint="its first line is the token's PIN")
        os.environ.update(environment)  # read by the token's library when it is loaded, in this process only
        return cls(folder, Pkcs11Token(module, token, lines[0]))

    @classmethod
    def make(cls, settings: Mapping[str, Any], asker: Asker) -> Pkcs11Provider:
        """The provider of a keeper that starts."""
        return cls.configured(settings, asker.folder)

    @staticmethod
    def missing(settings: Mapping[str, Any], base: Path) -> str:
        """Whether folder, library and token are there. The PIN is read and not tried: tokens count failures."""
        provider = Pkcs11Provider.configured(settings, base)
        if not provider._folder.is_dir():
            return f"there is no folder {provider._folder}"
        return provider._token.missing()

    def keep(self, archive: ArchiveDigest, key: ModelKey) -> Path:
        """Wrap a model key in the token and write its file, never over an existing one; where it lies.

        Raises `KeyFileInvalid`.
        """
        from strongroom.archive.keyfile import write_private

        path = self._folder / f"{archive}.p11"
        if path.exists():  # before the token makes a key that nobody would use
            raise KeyFileInvalid(f"{path} exists already", hint="keys are not overwritten; move it away first")
        wrapped = self._token.wrap(key.reveal(), label=_label(archive), context=_context(archive))
        fields = {
            "strongroom": _TOKEN_FORMAT,
            "archive": str(archive),
            "key": b64url(wrapped.key),
            "nonce": b64url(wrapped.nonce),
            "wrapped": b64url(wrapped.octets),
        }
        write_private(path, json.dumps(fields, indent=1) + "\n")
        return path

    def release(self, archive: ArchiveDigest, resource: tuple[str, str, str]) -> Grant:
        """See `KeyProvider`."""
        from strongroom.broker.pkcs11 import WrappedSecret
        from strongroom.broker.rootkey import read_private

        with _refusals():
            path = _file_of(self._folder, archive, "p11")
            read = Fields(parse_json(read_private(path), where=str(path), limit=4096), where=str(path))
            if read.text("strongroom", limit=64) != _TOKEN_FORMAT or read.text("archive", limit=64) != str(archive):
                raise KeyFileInvalid(f"{path} is not the wrapped key of archive {archive}")
            key, nonce = read.blob("key", limit=64), read.blob("nonce", size=12)
            wrapped = WrappedSecret(key, nonce, read.blob("wrapped", size=48))
            read.done()
            return Grant(ModelKey(self._token.unwrap(wrapped, label=_label(archive), context=_context(archive))))


def _label(archive: ArchiveDigest) -> str:
    return f"strongroom model key {str(archive)[:16]}"


def _context(archive: ArchiveDigest) -> bytes:
    return labelled(_TOKEN_FORMAT, archive)


def _file_of(folder: Path, archive: ArchiveDigest, kind: str) -> Path:
    path = folder / f"{archive}.{kind}"
    if not path.exists():
        raise ResourceMissing(f"there is no key of archive {archive} in {folder}", hint=f"expected: {path}")
    return path


@contextmanager
def _refusals() -> Iterator[None]:
    """What is wrong with a key file is a refusal, as a broker's would be."""
    try:
        yield
    except (KeyFileInvalid, MalformedInput, WrongKey) as error:
        raise ReleaseError(str(error), hint=error.hint) from error


class Settings:
    """A strict reader of one provider's settings; raises `ConfigurationInvalid`."""

    def __init__(self, provider: str, settings: Mapping[str, Any], base: Path) -> None:
        self._read, self._base = Fields(dict(settings), where=f"keys of provider {provider!r}"), base

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        try:
            return self._read.text(name, default=default)
        except MalformedInput as error:
            raise self._invalid(error) from error

    def path(self, name: str) -> Path:
        """A path, relative to the configuration's folder."""
        return self._base / self.text(name)

    def texts(self, name: str) -> dict[str, str]:
        """A table of strings, empty where it is left out."""
        if not self._read.has(name):
            return {}
        try:
            table = self._read.table(name)
            return {each: table.text(each) for each in table.left()}
        except MalformedInput as error:
            raise self._invalid(error) from error

    def done(self) -> None:
        """Refuse what nobody read."""
        try:
            self._read.done()
        except MalformedInput as error:
            raise self._invalid(error) from error

    @staticmethod
    def _invalid(error: MalformedInput) -> ConfigurationInvalid:
        return ConfigurationInvalid(str(error), hint="docs/configuration.md lists the settings of each provider")
