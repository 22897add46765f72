"""Load the plugins that a configuration names, and ask them.

Nothing is loaded for being installed. The built-ins come in through the same hooks as
everybody else's, first, so that a name they offer cannot be offered again. What each
hook promises stands in `strongroom.hookspecs`; here stands what is done when a plugin
breaks it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy

from strongroom import hookspecs
from strongroom.encoding import labelled
from strongroom.errors import AttesterUnavailable, AuditError, PluginInvalid
from strongroom.evidence.judge import Verdict
from strongroom.evidence.types import Attester, Verifier
from strongroom.hookspecs import (
    AttesterOffer,
    Denial,
    KeyProviderOffer,
    PolicyTemplate,
    RecipientOffer,
    RootKeyOffer,
    SignerOffer,
    VerifierOffer,
    hookimpl,
)

GROUP = "strongroom"
_log = logging.getLogger(__name__)
_SIGNATURE_LINES = re.compile(r"(?:— [^\s+]+ [A-Za-z0-9+/]+={0,2}\n)+")
BUILT_IN = (
    "strongroom.attest.offers",
    "strongroom.keeper.providers",
    "strongroom.broker.rootkeys",
    "strongroom.broker.templates",
)
"""Built-in plugins of higher floors, by module name; the verifiers' is `BuiltInVerifiers` below."""

_VERIFIERS = {
    "snp": "strongroom.evidence.snp:SnpVerifier",
    "tdx": "strongroom.evidence.tdx:TdxVerifier",
    "sgx": "strongroom.evidence.sgx:SgxVerifier",
    "az-snp-vtpm": "strongroom.evidence.azure:AzureSnpVerifier",
    "az-tdx-vtpm": "strongroom.evidence.azure:AzureTdxVerifier",
    "nvidia": "strongroom.evidence.nvidia:NvidiaVerifier",
    "cca": "strongroom.evidence.cca:CcaVerifier",
    "tpm": "strongroom.evidence.tpm:TpmVerifier",
    "aws-nitro": "strongroom.evidence.nitro:NitroVerifier",
    "ear": "strongroom.evidence.ear:EarVerifier",
    "simulated": "strongroom.evidence.simulated:SimulatedVerifier",
}


class BuiltInVerifiers:
    """The verifiers of this package; each module is imported when its TEE is first seen."""

    @hookimpl
    def strongroom_verifiers(self) -> list[VerifierOffer]:
        """One offer a TEE."""
        return [VerifierOffer(tee, _loader(path)) for tee, path in _VERIFIERS.items()]


def _loader(path: str) -> Callable[[], Verifier]:
    def load() -> Verifier:
        module, _, name = path.partition(":")
        verifier: Verifier = getattr(importlib.import_module(module), name)()
        return verifier

    return load


@dataclass(frozen=True, slots=True)
class PluginDigest:
    """What is known of a loaded plugin's distribution: it goes into the evidence (`distribution_digest`)."""

    name: str
    version: str
    digest: bytes


class Verifiers(Mapping[str, Verifier]):
    """TEE name → verifier, loaded at first use; raises `PluginInvalid` where loading fails."""

    def __init__(self, offers: Mapping[str, VerifierOffer]) -> None:
        self._offers = dict(offers)
        self._loaded: dict[str, Verifier] = {}

    def __getitem__(self, tee: str) -> Verifier:
        if tee not in self._loaded:
            offer = self._offers[tee]
            try:
                verifier = offer.load()
            except ImportError as error:
                raise PluginInvalid(
                    f"the verifier of {tee} needs {error.name or 'a package'} that is not installed",
                    hint=f"pip install 'strongroom[{tee}]', or the plugin's own dependencies",
                ) from error
            if verifier.tee != tee:
                raise PluginInvalid(f"the verifier offered for {tee} says that it verifies {verifier.tee}")
            self._loaded[tee] = verifier
        return self._loaded[tee]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)

    def __contains__(self, tee: object) -> bool:
        return tee in self._offers  # `Mapping` would load the verifier to answer


class Plugins:
    """The built-ins and the named plugins, checked once at the start."""

    def __init__(self) -> None:
        """Only the built-ins; `load` adds named plugins."""
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._distributions: dict[str, metadata.Distribution] = {}
        self._manager.register(BuiltInVerifiers(), "strongroom.evidence")
        for module in BUILT_IN:
            self._manager.register(importlib.import_module(module), module)
        self._collect()

    @classmethod
    def load(cls, names: Iterable[str] = ()) -> Plugins:
        """The built-ins and the plugins of these entry-point names; raises `PluginInvalid`."""
        plugins = cls()
        for name in names:
            plugins._add(name)
        plugins._collect()
        return plugins

    def _add(self, name: str) -> None:
        offered = list(metadata.entry_points(group=GROUP, name=name))
        if not offered:
            raise PluginInvalid(
                f"no installed package offers the plugin {name!r}",
                hint="pip install it into the environment that runs this command",
            )
        if len(offered) > 1:
            owners = ", ".join(sorted(each.dist.name if each.dist else "?" for each in offered))
            raise PluginInvalid(f"plugin {name!r} is offered by more than one package: {owners}")
        try:
            plugin = offered[0].load()
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except Exception as error:  # whatever a stranger's module raises at import
            raise PluginInvalid(f"plugin {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
        for caller in self._manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and (
                    implementation.hookwrapper
                    or implementation.wrapper
                    or implementation.tryfirst
                    or implementation.trylast
                ):
                    raise PluginInvalid(f"plugin {name!r}: {caller.name} is a wrapper or asks for an order")
        if offered[0].dist is not None:
            self._distributions[name] = offered[0].dist

    # -- asking ----------------------------------------------------------------

    def _each(self, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Every plugin that implements `hook`, asked alone so that none can speak for another."""
        everybody = self._manager.get_plugins()
        for name, plugin in self._manager.list_name_plugin():
            caller = self._manager.subset_hook_caller(hook, [other for other in everybody if other is not plugin])
            if plugin is not None and caller.get_hookimpls():

                def ask(caller: pluggy.HookCaller = caller, **arguments: Any) -> Any:
                    answers = caller(**arguments)
                    return answers[0] if answers else None

                yield name, ask

    def _offers(self, hook: str, kind: type, key: str) -> dict[str, Any]:
        offers: dict[str, Any] = {}
        for name, ask in self._each(hook):
            try:
                answer = list(ask() or ())
            except Exception as error:
                raise PluginInvalid(f"plugin {name!r}: {hook} raised {type(error).__name__}: {error}") from error
            for offer in answer:
                if not isinstance(offer, kind):
                    raise PluginInvalid(f"plugin {name!r}: {hook} offers a {type(offer).__name__}")
                word = getattr(offer, key)
                if word in offers:
                    raise PluginInvalid(
                        f"plugin {name!r}: {hook} offers {word!r}, which is offered already",
                        hint="nobody replaces what another offers; choose another name",
                    )
                offers[word] = offer
        return offers

    def _collect(self) -> None:
        self._verifiers = Verifiers(self._offers("strongroom_verifiers", VerifierOffer, "tee"))
        self._attesters: dict[str, AttesterOffer] = self._offers("strongroom_attesters", AttesterOffer, "tee")
        self._providers: dict[str, KeyProviderOffer] = self._offers(
            "strongroom_key_providers", KeyProviderOffer, "name"
        )
        self._root_keys: dict[str, RootKeyOffer] = self._offers("strongroom_root_key_providers", RootKeyOffer, "name")
        self._policies: dict[str, PolicyTemplate] = self._offers("strongroom_policies", PolicyTemplate, "name")
        self._recipients: dict[str, RecipientOffer] = self._offers("strongroom_recipients", RecipientOffer, "scheme")
        self._signers: dict[str, SignerOffer] = self._offers("strongroom_signers", SignerOffer, "scheme")

    def verifiers(self) -> Mapping[str, Verifier]:
        """TEE name → verifier; each is imported at first use."""
        return self._verifiers

    def attesters(self) -> Mapping[str, AttesterOffer]:
        """TEE name → the offer to attest on this machine."""
        return dict(self._attesters)

    def attester(self, tee: str) -> Attester:
        """Open the attester of that TEE; raises `AttesterUnavailable`. Never another one."""
        offer = self._attesters.get(tee)
        if offer is None:
            raise AttesterUnavailable(
                f"no attester for {tee!r} is known", hint="one of: " + ", ".join(sorted(self._attesters))
            )
        return offer.make()

    def key_providers(self) -> Mapping[str, KeyProviderOffer]:
        """Name → key provider."""
        return dict(self._providers)

    def root_key_providers(self) -> Mapping[str, RootKeyOffer]:
        """Name → keeper of a broker's root key."""
        return dict(self._root_keys)

    def policies(self) -> Mapping[str, PolicyTemplate]:
        """Name → policy template."""
        return dict(self._policies)

    def recipients(self) -> Mapping[str, RecipientOffer]:
        """Scheme → kind of key slot."""
        return dict(self._recipients)

    def signers(self) -> Mapping[str, SignerOffer]:
        """Scheme → kind of author key."""
        return dict(self._signers)

    def vetoes(self, verdict: Verdict, archive: str, context: Mapping[str, Any]) -> tuple[tuple[str, Denial], ...]:
        """Ask every plugin whether this key should stay; (plugin, denial) for each that says so.

        An empty result is the only one under which a key may go. Exceptions and answers out of
        contract are denials.
        """
        denials = []
        for name, ask in self._each("strongroom_veto_release"):
            try:
                answer = ask(verdict=verdict, archive=archive, context=dict(context))
            except Exception as error:  # the contract: whatever it raises is a denial
                answer = Denial(f"the plugin failed with {type(error).__name__}")
            if answer is not None:
                if not isinstance(answer, Denial):
                    answer = Denial(f"the plugin answered with a {type(answer).__name__}")
                denials.append((name, answer))
        return tuple(denials)

    def audit(self, event: Mapping[str, Any]) -> None:
        """Hand a copy of an audit entry to every plugin; raises `AuditError` if one fails."""
        for name, ask in self._each("strongroom_audit"):
            try:
                ask(event=dict(event))
            except Exception as error:
                raise AuditError(f"plugin {name!r} could not log: {type(error).__name__}") from error

    def cosignatures(self, checkpoint: str) -> str:
        """The signature lines of every witness that answers in form; what does not is logged and left out."""
        lines = ""
        for name, ask in self._each("strongroom_cosign"):
            try:
                answer = ask(checkpoint=checkpoint)
            except Exception as error:  # the contract: a witness that is away stops nothing
                _log.warning("plugin %r did not cosign the checkpoint: %s", name, type(error).__name__)
                continue
            if answer is not None:
                if isinstance(answer, str) and _SIGNATURE_LINES.fullmatch(answer):
                    lines += answer
                else:
                    _log.warning("plugin %r answered with something else than signature lines", name)
        return lines

    def digests(self) -> tuple[PluginDigest, ...]:
        """The named plugins' distributions, sorted by name: what the evidence says about them."""
        return tuple(
            PluginDigest(name, each.version, distribution_digest(each))
            for name, each in sorted(self._distributions.items())
        )


def distribution_digest(distribution: metadata.Distribution) -> bytes:
    """SHA-256 that names an installed distribution's files, as its installer recorded them.

    Over name, version and RECORD (which holds a SHA-256 for each file). An editable install's RECORD
    does not list its sources, so their digests are added. This is what the software says about
    itself: it tells versions and mistakes apart, not an attacker who can write to the disk.
    """
    record = distribution.read_text("RECORD") or ""
    lines = sorted(line for line in record.splitlines() if not line.rpartition("/")[2].startswith("direct_url.json"))
    parts = [distribution.name.lower().encode(), distribution.version.encode(), "\n".join(lines).encode()]
    for package in _editable_packages(distribution):
        for path in sorted(package.rglob("*.py")):
            name = str(path.relative_to(package.parent)).encode()
            parts += [name, hashlib.sha256(path.read_bytes()).digest()]
    return hashlib.sha256(labelled("strongroom distribution v1", *parts)).digest()


def _editable_packages(distribution: metadata.Distribution) -> list[Path]:
    direct = distribution.read_text("direct_url.json") or ""
    if '"editable": true' not in direct:
        return []
    packages = []
    for name in (distribution.read_text("top_level.txt") or "").split():
        spec = importlib.util.find_spec(name)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            packages.append(Path(location))
    return sorted(packages)
