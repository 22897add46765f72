"""Where a keeper's model keys come from: the one provider that its configuration names.

A provider is asked through the hook's contract (`strongroom.hookspecs.KeyProvider`) and believed nothing: what it
gives is checked for its type here, and against the archive's key commitment by whoever opens the archive.
`check_source` is for a launcher, which loads no plugin; `missing` is for `strongroom doctor`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strongroom.broker.epochs import EpochSeed
from strongroom.broker.statement import KeeperStatement
from strongroom.errors import ConfigurationInvalid, ReleaseError
from strongroom.evidence.types import Attester
from strongroom.hookspecs import Asker, Grant, KeyProvider, KeyProviderOffer
from strongroom.keeper.keyfiles import FileProvider, Pkcs11Provider
from strongroom.keeper.providers import cdh_configured
from strongroom.keeper.release import ReleaseClient, Released
from strongroom.keys import ArchiveDigest
from strongroom.launch.config import BROKER, Configuration
from strongroom.plugins import Plugins


class ModelKeySource:
    """The provider of one keeper, by its name. May be asked from several threads."""

    def __init__(self, name: str, provider: KeyProvider) -> None:
        self.name = name
        self.provider = provider

    @classmethod
    def open(
        cls,
        configuration: Configuration,
        plugins: Plugins,
        attester: Attester,
        statement: KeeperStatement,
        *,
        ca: Path | None = None,
        init_data: str | None = None,
    ) -> ModelKeySource:
        """The configured one; raises `ConfigurationInvalid`, `KeyFileInvalid`, `AttesterUnavailable`.

        `ca` stands for the configured CA of the broker: a file that nobody changes any more. `init_data` is the text
        whose digest the hardware holds.
        """
        offer = _offer(configuration, plugins)
        devices = [plugins.attester(name) for name in configuration.devices]
        asker = Asker(configuration.tee, attester, statement.serialise(), configuration.keys.folder, devices, init_data)
        settings = _settings(configuration)
        if "ca" in settings and ca is not None:
            settings = {**settings, "ca": str(ca)}
        return cls(offer.name, offer.make(settings, asker))

    def fetch(self, resource: tuple[str, str, str], archive: ArchiveDigest) -> Released:
        """The key of `archive`; raises what the provider raises, and `ReleaseError` for what is no grant."""
        asked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        grant = self.provider.release(archive, resource)
        if not isinstance(grant, Grant):
            raise ReleaseError(
                f"key provider {self.name!r} gave a {type(grant).__name__}", hint="the plugin broke its contract"
            )
        if grant.asked_at is not None:
            asked_at = min(max(asked_at, grant.asked_at), time.clock_gettime(time.CLOCK_BOOTTIME))
        return Released(archive, grant.key, asked_at, lease_s=grant.lease_s, broker_time=grant.broker_time)

    def fetch_epoch(
        self, resource: tuple[str, str, str], archive: ArchiveDigest, broker_key: bytes, epoch: int
    ) -> EpochSeed:
        """The seed of one epoch, verified; raises a `ReleaseError`. Only a key broker gives seeds."""
        if not isinstance(self.provider, ReleaseClient):
            raise ReleaseError(f"key provider {self.name!r} gives no seeds", hint='mode = "host", or the key broker')
        return self.provider.fetch_epoch(resource, archive, broker_key, epoch)


def _settings(configuration: Configuration) -> Mapping[str, Any]:
    if configuration.keys.provider != BROKER:
        return configuration.keys.settings
    broker = configuration.broker
    if broker is None:
        raise ConfigurationInvalid(
            "no broker is configured, so no model key can come",
            hint="add a [broker] table, or another provider: [keys] provider",
        )
    return {"url": broker.url} | ({} if broker.ca is None else {"ca": str(broker.ca)})


def _offer(configuration: Configuration, plugins: Plugins) -> KeyProviderOffer:
    offers, name = plugins.key_providers(), configuration.keys.provider
    if name not in offers:
        raise ConfigurationInvalid(f"no key provider is called {name!r}", hint=f"there are {', '.join(sorted(offers))}")
    return offers[name]


def check_source(configuration: Configuration) -> tuple[str, ...]:
    """Everything about the source that can be told without a plugin, a TEE or the network; warnings to print.

    Raises `ConfigurationInvalid`, `KeyFileInvalid`.
    """
    keys, settings = configuration.keys, _settings(configuration)
    if keys.provider == "file":
        return (FileProvider.configured(settings, keys.folder).warning,)
    if keys.provider == "pkcs11":
        Pkcs11Provider.configured(settings, keys.folder)
    if keys.provider == "cdh":
        cdh_configured(settings, keys.folder)
    return ()


def missing(configuration: Configuration, plugins: Plugins) -> str:
    """What is missing for keys to come from the configured source, in one sentence; empty where nothing is."""
    try:
        return _offer(configuration, plugins).missing(_settings(configuration), configuration.keys.folder)
    except Exception as error:  # a plugin's look may fail in any way; doctor goes on
        return f"{type(error).__name__}: {error}"


def origin(configuration: Configuration) -> str:
    """Where keys come from, for an operator."""
    keys = configuration.keys
    if keys.provider == BROKER:
        return f"the key broker at {configuration.broker.url}" if configuration.broker else "no key broker yet"
    own = {
        "file": f"files in {keys.settings.get('folder')}",
        "pkcs11": f"files in {keys.settings.get('folder')}, unwrapped by the token {keys.settings.get('token')!r}",
        "cdh": "the guest's data hub, which every process of this guest can ask",
    }
    return own.get(keys.provider, f"the plugin's provider {keys.provider!r}")
