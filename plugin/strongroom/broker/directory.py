"""A broker on disk: what `strongroom broker init` makes and `serve` opens (docs/release.md section 13).

broker.json   name, root key provider
root.key      the root key, as its provider keeps it
store.db      keys, policies, leases, audit log (SQLite)
admin.key     the first administrator's private key; move it to the administrator's machine
tls.crt, tls.key   a certificate of its own, where one was asked for
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from strongroom.archive.keyfile import sync_folder
from strongroom.broker import admin
from strongroom.broker.audit import AuditLog
from strongroom.broker.certificate import check_host, self_signed
from strongroom.broker.handshake import Policies
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.release import Broker
from strongroom.broker.rootkey import write_private
from strongroom.broker.store import Store
from strongroom.broker.tokens import TokenSigner
from strongroom.encoding import Fields, parse_json
from strongroom.errors import AuditError, ConfigurationInvalid, KeyFileInvalid, MalformedInput, StoreError
from strongroom.evidence.judge import Endorse, no_endorsements
from strongroom.evidence.policy import Policy
from strongroom.hookspecs import RootKeyProvider
from strongroom.plugins import Plugins

_FORMAT = "broker/1"


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `init` made: where the administrator's key lies, and how the broker is known."""

    directory: Path
    broker_id: str
    audit_key: str
    admin_key: Path
    certificate: Path | None


@dataclass(frozen=True, slots=True)
class Settings:
    """``broker.json``: the broker's name in its notes, and who keeps the root key, with what settings and plugins."""

    name: str
    root_key: str
    settings: dict[str, Any]
    plugins: tuple[str, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> Settings:
        """Raises `ConfigurationInvalid`."""
        path = directory / "broker.json"
        try:
            read = Fields(parse_json(path.read_bytes(), where=str(path)), where=str(path))
            if read.text("strongroom") != _FORMAT:
                raise MalformedInput(f"{path}: not a broker of this release")
            settings = cls(
                read.text("name"),
                read.text("root_key"),
                dict(read.value("settings")),
                read.texts("plugins", limit=16, default=()),
            )
            read.done()
        except OSError as error:
            raise ConfigurationInvalid(
                f"{directory} is not a broker's folder", hint=f"strongroom broker init {directory}"
            ) from error
        except (MalformedInput, TypeError, ValueError) as error:
            raise ConfigurationInvalid(str(error)) from error
        return settings

    def serialise(self) -> bytes:
        """The exact inverse of `load`'s file."""
        fields = {"strongroom": _FORMAT, "name": self.name, "root_key": self.root_key, "settings": self.settings}
        fields |= {"plugins": list(self.plugins)} if self.plugins else {}
        return (json.dumps(fields, indent=1) + "\n").encode()


@contextmanager
def occupied(directory: Path) -> Iterator[None]:
    """Serve, restore or rotate this broker, and nobody else meanwhile; raises `ConfigurationInvalid`.

    The kernel forgets the lock with the process, however it ends.
    """
    refusal = ConfigurationInvalid(
        f"the broker in {directory} is running, or being restored or rotated",
        hint="stop it first; a backup, administrators and everything by URL work while it runs",
    )
    with _locked(directory / "lock", fcntl.LOCK_EX, refusal):
        yield


@contextmanager
def copied(directory: Path) -> Iterator[None]:
    """Copy this broker's files, or write beside a running one; nobody exchanges the files meanwhile.

    Raises `ConfigurationInvalid`.
    """
    refusal = ConfigurationInvalid(
        f"the broker in {directory} is being restored or rotated", hint="try again when that is done"
    )
    with _locked(directory / "backup.lock", fcntl.LOCK_SH, refusal):
        yield


@contextmanager
def exchanged(directory: Path) -> Iterator[None]:
    """Exchange this broker's root key or store, and nobody copies them meanwhile; raises `ConfigurationInvalid`."""
    refusal = ConfigurationInvalid(
        f"a backup of the broker in {directory} is being made, or an administrator", hint="wait until it is done"
    )
    with _locked(directory / "backup.lock", fcntl.LOCK_EX, refusal):
        yield


@contextmanager
def _locked(path: Path, how: int, refusal: ConfigurationInvalid) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationInvalid(f"{path.parent} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except OSError as error:
            raise refusal from error
        yield
    finally:
        os.close(descriptor)


def provider(directory: Path, settings: Settings, passphrase: str | None, *, file: str = "root.key") -> RootKeyProvider:
    """The root key provider that a broker's settings name; raises `ConfigurationInvalid`, `KeyFileInvalid`."""
    offers = Plugins.load(settings.plugins).root_key_providers()
    if settings.root_key not in offers:
        raise ConfigurationInvalid(
            f"no root key provider is called {settings.root_key!r}", hint=f"there are {', '.join(sorted(offers))}"
        )
    try:
        return offers[settings.root_key].make(directory / file, settings.settings, passphrase)
    except MalformedInput as error:
        raise ConfigurationInvalid(f"the settings of the root key cannot be used: {error}") from error


def init(
    directory: Path,
    *,
    name: str = "",
    root_key: str = "file",
    settings: dict[str, Any] | None = None,
    passphrase: str | None = None,
    hosts: tuple[str, ...] = (),
    plugins: tuple[str, ...] = (),
) -> Initialised:
    """Make a broker in a new or empty folder, without any policy: it releases nothing yet.

    `hosts` are the DNS names and addresses of its own TLS certificate; without any it has none. `plugins` are those
    that its root key needs. What fails leaves nothing behind. Raises `ConfigurationInvalid`, `KeyFileInvalid`,
    `PluginInvalid`, `StoreError`.
    """
    for host in hosts:
        check_host(host)
    identity = Ed25519PrivateKey.generate()
    broker_id = admin.key_id_of(identity.public_key())
    chosen = Settings(name or f"strongroom-broker/{broker_id[:8]}", root_key, settings or {}, plugins)
    if not chosen.name.isprintable() or re.search(r"[\s+]", chosen.name):
        raise ConfigurationInvalid(
            f"{name!r} cannot sign an audit log", hint="a name has no spaces and no '+': keys.example/broker"
        )
    root = provider(directory, chosen, passphrase)
    fresh = not directory.exists()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ConfigurationInvalid(f"{directory} is not empty", hint="name a new folder")
    directory.chmod(0o700)
    with occupied(directory):
        if any(each.name != "lock" for each in directory.iterdir()):
            raise ConfigurationInvalid(f"{directory} is not empty", hint="name a new folder")
        try:
            return _made(directory, chosen, root.create(), identity, hosts)
        except BaseException:
            _clear(directory, whole=fresh)  # nobody else made anything there: it was empty, and is ours
            raise


def _clear(directory: Path, *, whole: bool) -> None:
    for each in directory.iterdir():
        with suppress(OSError):
            each.unlink()
    if whole:
        with suppress(OSError):
            directory.rmdir()


def _made(
    directory: Path, chosen: Settings, root_key: bytes, identity: Ed25519PrivateKey, hosts: tuple[str, ...]
) -> Initialised:
    broker_id = admin.key_id_of(identity.public_key())
    store = Store.create(directory / "store.db", root_key)
    try:
        administrator = admin.AdminKey(Ed25519PrivateKey.generate(), broker_id)
        with store.transaction():
            store.keep_secret("identity", _der(identity))
            store.keep_secret("token-key", _der(ec.generate_private_key(ec.SECP256R1())))
            key_id = admin.register(store, administrator.private.public_key(), "admin")
            audit = AuditLog(store, identity, chosen.name)
            audit.append({"at": int(time.time()), "event": "init", "broker": broker_id, "administrator": key_id})
        pem = identity.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / "broker.pub").write_bytes(pem)
        write_private(directory / "admin.key", administrator.serialise())
        certificate = None
        if hosts:
            pem, key = self_signed(chosen.name, hosts)
            certificate = directory / "tls.crt"
            certificate.write_bytes(pem)
            write_private(directory / "tls.key", key)
        # Last, so that a folder with this file is a whole broker.
        (directory / "broker.json").write_bytes(chosen.serialise())
        return Initialised(directory, broker_id, audit.key.serialise(), directory / "admin.key", certificate)
    finally:
        store.close()


def _der(private: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def open_store(directory: Path, settings: Settings, passphrase: str | None) -> Store:
    """The store under its root key, also after a rotation or a restore that was cut off before its last step."""
    pending = directory / "root.key.new"
    waiting = pending.exists()

    def under(file: str) -> Store:
        return Store(directory / "store.db", provider(directory, settings, passphrase, file=file).unlock())

    try:
        return under("root.key")
    except (StoreError, KeyFileInvalid):
        if not waiting:
            raise
    try:
        store = under(pending.name)
    except KeyFileInvalid:
        if pending.exists():
            raise
        return under("root.key")  # another process has just given it its name
    with suppress(FileNotFoundError):
        pending.replace(directory / "root.key")
    sync_folder(directory)
    return store


def identity_of(store: Store) -> Ed25519PrivateKey:
    """The broker's own key; raises `StoreError`."""
    identity = load_der_private_key(store.secret("identity"), None)
    if not isinstance(identity, Ed25519PrivateKey):
        raise StoreError("the store's identity is of another kind than Ed25519")
    return identity


def open_log(store: Store, settings: Settings) -> AuditLog:
    """The audit log of a store, verified; raises `AuditError`, `StoreError`."""
    log = AuditLog(store, identity_of(store), settings.name)
    if not log.size:
        raise AuditError(
            "the audit log is empty, and its first entry says that the broker was made",
            hint="somebody changed the store; keep it for an investigation and restore a backup elsewhere",
        )
    return log


def open_broker(
    directory: Path,
    *,
    passphrase: str | None = None,
    plugins: Plugins | None = None,
    endorsements: Endorse = no_endorsements,
    clock: Callable[[], float] = time.time,
    steady: Callable[[], float] = time.monotonic,
) -> Broker:
    """The broker of a folder, with the policies it was last given. Raises a `StrongroomError`."""
    settings = Settings.load(directory)
    store = open_store(directory, settings, passphrase)
    plugins = plugins or Plugins.load()
    token_key = load_der_private_key(store.secret("token-key"), None)
    if not isinstance(token_key, ec.EllipticCurvePrivateKey):
        raise StoreError("the store's token key is of another kind than P-256")
    release, appraisal = store.policy("release"), store.policy("appraisal")
    policies = Policies(
        appraisal=Policy.parse(appraisal, plugins.verifiers()) if appraisal is not None else None,
        release=ReleasePolicy.parse(release) if release is not None else None,
    )
    return Broker(
        store,
        open_log(store, settings),
        TokenSigner(token_key),
        identity=identity_of(store),
        plugins=plugins,
        policies=policies,
        endorsements=endorsements,
        clock=clock,
        steady=steady,
    )


@contextmanager
def _administered(directory: Path, passphrase: str | None) -> Iterator[Broker]:
    """The broker of a folder, running or not, whose root key and store nobody exchanges meanwhile."""
    Settings.load(directory)  # before a lock is made in a folder that is no broker's
    with copied(directory), closing(open_broker(directory, passphrase=passphrase)) as broker:
        yield broker


def make_administrator(
    directory: Path, key_file: Path, *, role: str, repository: str = "", passphrase: str | None = None
) -> str:
    """Write a new administrator's private key and register its public one; the key's id.

    The broker may be running: it looks administrators up at each request. Raises `ConfigurationInvalid`,
    `KeyFileInvalid`, `StoreError`.
    """
    with _administered(directory, passphrase) as broker:
        key = admin.AdminKey(Ed25519PrivateKey.generate(), broker.id)
        with broker.store.transaction():
            key_id = admin.register(broker.store, key.private.public_key(), role, repository)
            write_private(key_file, key.serialise())
            broker.journal.record({"event": "administrator", "key": key_id, "role": role, "repository": repository})
        return key_id


def remove_administrator(directory: Path, key_id: str, *, passphrase: str | None = None) -> None:
    """Forget an administrator; raises `ConfigurationInvalid` for an unknown id, and for the last one."""
    with _administered(directory, passphrase) as broker, broker.store.transaction():
        if not broker.store.write("DELETE FROM administrators WHERE key_id = ?", key_id):
            raise ConfigurationInvalid(f"no administrator has the id {key_id}")
        if not broker.store.rows("SELECT 1 FROM administrators WHERE role = 'admin'"):
            raise ConfigurationInvalid("the last administrator of role admin stays", hint="make another one first")
        broker.journal.record({"event": "administrator-removed", "key": key_id})
