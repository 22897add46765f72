"""What `seal` and `archive` share: who keeps the key, the sealing itself, the progress bar, the closing line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from strongroom.archive.seal import BeforePublish, Sealed, Terms, seal_source, to_come
from strongroom.cli.connection import VERSION_LIMIT
from strongroom.cli.times import instant
from strongroom.errors import ConfigurationInvalid, KeyFileInvalid, WrongUse

if TYPE_CHECKING:
    from strongroom.archive.passphrase import Passphrase
    from strongroom.archive.provider import ProviderRecipient
    from strongroom.archive.recipients import KeyIdentity, Recipient
    from strongroom.archive.signature import Signer
    from strongroom.archive.source import Source
    from strongroom.plugins import Plugins


def holder(
    broker: str | None,
    admin_key: Path | None,
    key_out: Path | None,
    *,
    output: Path,
    version: int,
    lease_s: int | None = None,
    ca: Path | None = None,
    others: bool = False,
) -> BeforePublish:
    """Who gets the model key before the archive takes its name.

    Whatever would keep them from it is found now, not after an hour of sealing: raises `WrongUse`, also for nobody,
    `ConfigurationInvalid` and `KeyFileInvalid`.
    """
    if (broker is None) != (admin_key is None):
        raise WrongUse("--broker and --admin-key belong together", hint="`strongroom broker init` makes the admin key")
    if broker is None and key_out is None and not others:
        raise WrongUse(
            "nobody would keep the key, and the archive could never be opened",
            hint="say --broker URL --admin-key FILE, --key-out FILE, or --recipient",
        )
    if broker is None and lease_s is not None:
        raise WrongUse("--lease is about the key at a broker", hint="say --broker URL --admin-key FILE")
    if broker is not None:
        check_version(version)
    if key_out is not None:
        _check_key_out(key_out, output)

    def keep(sealed: Sealed) -> Callable[[], None] | None:
        if broker is not None and admin_key is not None:
            from strongroom.broker.client import register_model_key

            register_model_key(
                broker,
                admin_key,
                sealed.resource,
                sealed.digest,
                sealed.key,
                version=sealed.core.version,
                author=sealed.core.author,
                owner=sealed.core.owner,
                lease_s=lease_s,
                ca=ca,
            )
        if key_out is None:
            return None
        from strongroom.archive.modelkey import save_model_key

        # In a folder it gets the name under which a keeper with provider "file" looks for it.
        path = key_out / f"{sealed.digest}.key" if key_out.is_dir() else key_out
        save_model_key(path, sealed.digest, sealed.key)
        return lambda: path.unlink(missing_ok=True)

    return keep


def check_version(version: int) -> None:
    """Raise `ConfigurationInvalid` for a version that an archive may have and a broker's document may not."""
    if version > VERSION_LIMIT:
        raise ConfigurationInvalid(
            f"version {version} fits an archive, but a key broker knows versions up to {VERSION_LIMIT} only",
            hint="choose a smaller version, or keep the key without a broker by --key-out",
        )


def _check_key_out(key_out: Path, output: Path) -> None:
    """Raises `KeyFileInvalid` where the key could not be written, `ConfigurationInvalid` where it would not stay."""
    folder = key_out if key_out.is_dir() else key_out.parent
    place = key_out.resolve() if key_out.is_dir() else folder.resolve() / key_out.name
    same = os.path.exists(key_out) and os.path.exists(output) and os.path.samefile(key_out, output)
    if same or place.is_relative_to(output.parent.resolve() / output.name):
        raise ConfigurationInvalid(
            f"the archive {output} would replace its own key: --key-out {key_out} is in the same place",
            hint="write the key elsewhere: --key-out FILE",
        )
    if os.path.lexists(key_out) and not key_out.is_dir():
        raise KeyFileInvalid(f"{key_out} exists already", hint="choose another name; keys are not overwritten")
    try:
        os.lstat(key_out.with_name(f".{key_out.name}.{'0' * 12}") if key_out.name else folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise KeyFileInvalid(f"{key_out}: {error.strerror}", hint="choose another name for --key-out") from error
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise KeyFileInvalid(
            f"{key_out} cannot be written: {folder} is no folder that you may write to", hint="look at --key-out"
        )


def seal_for(
    source: Source,
    output: Path,
    *,
    author: str,
    terms: Terms,
    keep: BeforePublish,
    recipients: Iterable[str],
    passphrase: bool,
    plugins: Iterable[str],
    form: str,
    padding: bool,
    allow_requirements: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Seal with the people whom the options name, show how far it is, and say what came of it."""
    plugins = tuple(plugins)
    wraps = [recipient(each, plugins) for each in recipients]
    phrase = [ask_passphrase(confirm=True)] if passphrase else []
    with progress_bar("sealing", quiet=as_json) as progress:
        sealed = seal_source(
            source,
            output,
            author=signer(author, plugins),
            terms=terms,
            form=form,
            recipients=[*wraps, *phrase],
            padding=padding,
            allow_requirements=allow_requirements,
            overwrite=overwrite,
            progress=progress,
            before_publish=keep,
        )
    report(sealed, as_json=as_json)


def output_for(source: Path, *, directory: bool) -> Path:
    """The archive's name where none was given: beside the model, and never the model's own."""
    stem = source.name.removesuffix(".mar")
    if stem in {"", ".."}:
        raise ConfigurationInvalid(
            f"{str(source)!r} gives no name for the sealed archive", hint="say where to write it: -o SEALED.mar"
        )
    if not directory:
        return source.with_name(f"{stem}.sealed.mar")
    return source.with_name(f"{stem}.sealed" if source.is_dir() or stem == source.name else stem)


def ask_passphrase(*, confirm: bool) -> Passphrase:
    """A passphrase from the terminal; from the first line of standard input where there is none."""
    import getpass

    from strongroom.archive.passphrase import Passphrase

    try:
        if sys.stdin is None or not sys.stdin.isatty():
            # Standard input may be closed, and is None then.
            return Passphrase(sys.stdin.readline().rstrip("\n") if sys.stdin else "")
        first = getpass.getpass("passphrase: ")
        if confirm and getpass.getpass("again: ") != first:
            raise ConfigurationInvalid("the two passphrases differ", hint="try again")
    except UnicodeDecodeError:  # which would carry the passphrase along
        raise ConfigurationInvalid("the passphrase is no text in UTF-8", hint="give it in UTF-8") from None
    return Passphrase(first)


def signer(text: str, plugins: Iterable[str] = ()) -> Signer:
    """An author: a private key file, or ``scheme:…`` of a named plugin."""
    from strongroom.archive.provider import ProviderSigner
    from strongroom.archive.signature import AuthorKey

    scheme, separator, _ = text.partition(":")
    offers = _plugins(plugins).signers() if separator and plugins else {}
    return ProviderSigner(offers[scheme].open(text)) if scheme in offers else AuthorKey.load(text)


def recipient(text: str, plugins: Iterable[str] = ()) -> Recipient | ProviderRecipient:
    """Somebody to wrap the key for: a recipient file, or ``scheme:…`` of a named plugin."""
    from strongroom.archive.recipients import Recipient

    return _provider(text, plugins) or Recipient.load(text)


def identity(text: str, plugins: Iterable[str] = ()) -> KeyIdentity | ProviderRecipient:
    """Somebody who opens a slot: an identity file, or ``scheme:…`` of a named plugin."""
    from strongroom.archive.recipients import KeyIdentity

    return _provider(text, plugins) or KeyIdentity.load(text)


def _provider(text: str, plugins: Iterable[str]) -> ProviderRecipient | None:
    from strongroom.archive.provider import ProviderRecipient

    scheme, separator, _ = text.partition(":")
    offers = _plugins(plugins).recipients() if separator and plugins else {}
    return ProviderRecipient(scheme, offers[scheme].parse(text)) if scheme in offers else None


def _plugins(names: Iterable[str]) -> Plugins:
    from strongroom.plugins import Plugins

    return Plugins.load(names)


def moment(text: str | None) -> datetime | None:
    """A date or time to come; raises `WrongUse` as `instant` does, `SealRefused` where it is over."""
    return None if text is None else to_come(instant(text))


def spki(path: Path | None) -> bytes | None:
    """The DER SubjectPublicKeyInfo in a PEM file."""
    if path is None:
        return None
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyFileInvalid(
            f"{path} is no PEM public key", hint="`strongroom broker init` writes broker.pub"
        ) from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def broker_key(path: Path | None, broker: str | None, admin_key: Path | None, ca: Path | None) -> bytes | None:
    """Who may sign epoch seeds (mode fleet): the key in a file, else that of the broker that gets the model key."""
    if path is not None or broker is None or admin_key is None:
        return spki(path)
    from strongroom.broker.client import BrokerAdmin

    return BrokerAdmin(broker, admin_key, ca=ca).public_key()


@contextmanager
def progress_bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr where somebody looks at it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def report(sealed: Sealed, *, as_json: bool) -> None:
    """The one happy line, or its JSON."""
    if as_json:
        fields = {
            "path": str(sealed.path),
            "digest": str(sealed.digest),
            "resource": "/".join(sealed.resource),
            "author": str(sealed.core.author),
            "sealed": len(sealed.members),
            "clear": sealed.clear,
            "size": sealed.size,
        }
        print(json.dumps(fields))
    else:
        print(f"{sealed.path}: {len(sealed.members)} files sealed, {sealed.clear} left readable for TorchServe")
