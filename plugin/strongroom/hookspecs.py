"""Every place where strongroom can be extended: this file is the list.

A plugin is a module or object that implements some of these functions with
``@hookimpl`` and is offered under the entry-point group ``strongroom``. It is loaded only
when the configuration names it, and its distribution's digest is then in the evidence
(docs/hooks.md has a worked example).

Hooks collect offers or collect vetoes. None takes the first answer, since any installed
package could then answer for everybody: two offers of the same name are an error, one veto
is enough, and no return value can grant anything. Wrappers and ordering marks of pluggy are
refused, because they could change another plugin's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pluggy

from strongroom.evidence.judge import Verdict
from strongroom.evidence.types import Attester, Verifier
from strongroom.keys import ArchiveDigest, ModelKey

hookspec = pluggy.HookspecMarker("strongroom")
hookimpl = pluggy.HookimplMarker("strongroom")


@dataclass(frozen=True, slots=True)
class VerifierOffer:
    """A verifier of one TEE. `load` imports what it needs and is called when evidence of it is first seen."""

    tee: str
    load: Callable[[], Verifier]


@dataclass(frozen=True, slots=True)
class AttesterOffer:
    """A way to obtain evidence of one TEE on this machine.

    `missing` says in one sentence what this machine lacks for it, empty when nothing: `strongroom doctor`
    prints it, and it must not change anything. `make` opens the device; raises `AttesterUnavailable`.
    """

    tee: str
    missing: Callable[[], str]
    make: Callable[[], Attester]


@dataclass(frozen=True, slots=True)
class Grant:
    """A model key, and for how long it may be held. Times in seconds.

    `lease_s` counts on CLOCK_BOOTTIME from `asked_at`, or from before the provider was asked where that is None;
    a lease of None does not end. `broker_time` is the granting side's Unix time, for noticing a paused guest.
    """

    key: ModelKey = field(repr=False)
    lease_s: int | None = None
    broker_time: int | None = None
    asked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """The keeper that asks: what a key provider may know of it, and attest with.

    `tee` is the configured TEE and `attester` makes its evidence, `devices` that of devices beside the CPU; `statement`
    is what the keeper says about itself (docs/release.md section 10); relative paths among the settings start at
    `folder`. `init_data` is the text whose digest the hardware holds, where the guest was started with one.
    """

    tee: str
    attester: Attester
    statement: Mapping[str, Any]
    folder: Path
    devices: Sequence[Attester] = ()
    init_data: str | None = None


class KeyProvider(Protocol):
    """Where a keeper gets model keys."""

    def release(self, archive: ArchiveDigest, resource: tuple[str, str, str]) -> Grant:
        """The key of that archive, whose name at a key broker is `resource` (tenant, lineage, version and digest).

        Called when the archive is first wanted, again after two thirds of each lease, and again and again while it
        fails; from several threads, one for each archive. Raises `BrokerUnreachable` where nobody answered: then a
        lease that is held goes on until its grace is over. Any other `ReleaseError` is a refusal and ends it at once.
        """


def nothing_missing(settings: Mapping[str, Any], folder: Path) -> str:
    """The answer of an offer that looks for nothing."""
    return ""


@dataclass(frozen=True, slots=True)
class KeyProviderOffer:
    """A key provider by the name that a configuration uses (docs/configuration.md, ``[keys]``).

    `make` gets the settings of its table and the keeper that asks; raises `ConfigurationInvalid`. `missing` says in
    one sentence what this machine lacks for those settings, empty when nothing: `strongroom doctor` prints it.
    """

    name: str
    make: Callable[[Mapping[str, Any], Asker], KeyProvider]
    missing: Callable[[Mapping[str, Any], Path], str] = nothing_missing


class RootKeyProvider(Protocol):
    """Keeps the root key of a broker's store (docs/release.md section 13)."""

    def create(self) -> bytes:
        """Make a fresh root key of 32 bytes, keep it, and return it. Raises `KeyFileInvalid`.

        Called by ``broker init`` and by a rotation; never over a key that is kept already.
        """

    def unlock(self) -> bytes:
        """The 32 bytes that `create` returned; called at each start. Raises `KeyFileInvalid`."""


@dataclass(frozen=True, slots=True)
class RootKeyOffer:
    """A keeper of root keys by the name that ``broker init --root-key`` uses.

    `make` gets the file in which it may keep what it needs, the settings that the broker was made with, and the
    passphrase, if one was given; raises `ConfigurationInvalid`, `KeyFileInvalid`.
    """

    name: str
    make: Callable[[Path, Mapping[str, Any], str | None], RootKeyProvider]


@dataclass(frozen=True, slots=True)
class PolicyTemplate:
    """A policy to start from. `kind` is ``toml`` (appraisal) or ``rego`` (release).

    `text` says inside itself what it does not check.
    """

    name: str
    kind: str
    text: str


class Recipient(Protocol):
    """Somebody who can open a key slot of an archive (docs/format.md, slots)."""

    def wrap(self, model_key: ModelKey, context: bytes) -> bytes:
        """The slot's octets: `model_key` sealed for this recipient, bound to `context`."""

    def unwrap(self, wrapped: bytes, context: bytes) -> ModelKey:
        """The exact inverse; raises `NoRecipient` where the slot is not ours to open."""


@dataclass(frozen=True, slots=True)
class RecipientOffer:
    """A kind of key slot. `parse` reads what a user gives (``kind:…``) and returns the recipient."""

    scheme: str
    parse: Callable[[str], Recipient]


class Signer(Protocol):
    """Somebody who signs archives without showing a private key: a card, an HSM, a signing service."""

    def public_keys(self) -> bytes:
        """The author's component public keys, as docs/format.md encodes them."""

    def sign(self, message: bytes) -> bytes:
        """The signature, as docs/format.md encodes it."""


@dataclass(frozen=True, slots=True)
class SignerOffer:
    """A kind of author key. `open` reads what a user gives to ``--author`` (``scheme:…``)."""

    scheme: str
    open: Callable[[str], Signer]


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a key stays where it is: one sentence, for the broker's log, never for the peer."""

    reason: str


@hookspec
def strongroom_verifiers() -> Sequence[VerifierOffer]:
    """Offer verifiers of evidence.

    Called once, when plugins are loaded. A TEE that is already offered, by a built-in or by another
    plugin, is an error: nobody replaces a verifier. An exception, or something else than offers, fails
    the start. A verifier that raises later counts as a refusal.
    """
    raise NotImplementedError


@hookspec
def strongroom_attesters() -> Sequence[AttesterOffer]:
    """Offer ways to obtain evidence on this machine.

    Called once, when plugins are loaded; rules as for verifiers. Which one is used is said by the
    configuration, or decided by `strongroom doctor`'s order among those that miss nothing; the simulated
    TEE is never chosen, only named.
    """
    raise NotImplementedError


@hookspec
def strongroom_key_providers() -> Sequence[KeyProviderOffer]:
    """Offer sources of model keys.

    Called once, when plugins are loaded. ``kbs`` (the key broker), ``file``, ``pkcs11`` and ``cdh`` are offered by
    strongroom itself. A keeper uses one provider, the one that its configuration names. The key is checked
    against the archive's commitment before anything is opened with it; an exception that is no `ReleaseError`
    counts as nobody having answered.
    """
    raise NotImplementedError


@hookspec
def strongroom_root_key_providers() -> Sequence[RootKeyOffer]:
    """Offer keepers of a broker's root key.

    Called once, when plugins are loaded. ``file``, ``passphrase``, ``tpm`` and ``pkcs11`` are offered by strongroom
    itself. A broker uses the one that it was made with; the name of its plugin stands in ``broker.json``.
    """
    raise NotImplementedError


@hookspec
def strongroom_policies() -> Sequence[PolicyTemplate]:
    """Offer policies to start from, listed and printed by `strongroom policy templates`.

    Called once, when plugins are loaded. The release policies that come along are offered by strongroom itself. A
    template decides nothing until somebody sets it; a release policy can be named wherever theirs can (`broker serve
    --rego`, `policy set`, `policy test`), and is checked then as any other text.
    """
    raise NotImplementedError


@hookspec
def strongroom_veto_release(verdict: Verdict, archive: str, context: Mapping[str, Any]) -> Denial | None:
    """Refuse to release a key, or have no opinion.

    Called by the broker for every request, after the evidence was judged and the policy agreed. `archive`
    is the resource path; `context` holds what else the broker knows: ``tenant``, ``version`` and ``owner`` of the
    archive's signed header (None where they are not known), and ``keeper``, the name of the keeper that asks,
    empty where it has none. Every plugin is asked, in no order to rely on. One `Denial` is enough to keep the key
    and no return value can release one. An exception, or any other value than None, counts as a denial.
    """
    raise NotImplementedError


@hookspec
def strongroom_audit(event: Mapping[str, Any]) -> None:
    """Take a copy of an audit entry, after the broker's own log has it.

    Called once for each entry, in order. Events hold no keys. An exception fails the action that was being
    logged (`AuditError`): whoever asked for a second log wants it complete.
    """
    raise NotImplementedError


@hookspec
def strongroom_cosign(checkpoint: str) -> str | None:
    """Have a witness sign a checkpoint of the broker's audit log, or have none at the moment.

    Called by the broker whenever it publishes its log, at most once a minute, in no order to rely on.
    `checkpoint` is the signed note (C2SP tlog-checkpoint). Return the witness's signature lines as C2SP
    signed-note has them, each ending in a newline, or None. They are published below the broker's own. An exception,
    or something else than such lines, is logged and left out: a witness that is away stops no release.
    """
    raise NotImplementedError


@hookspec
def strongroom_recipients() -> Sequence[RecipientOffer]:
    """Offer kinds of key slots.

    Called once, when plugins are loaded. Slots are octets to everybody else, so an archive with a slot of a
    kind that a reader lacks still opens through another slot.
    """
    raise NotImplementedError


@hookspec
def strongroom_signers() -> Sequence[SignerOffer]:
    """Offer kinds of author keys for `seal`.

    Called once, when plugins are loaded. Verification never asks a plugin: the signature has to be one that
    docs/format.md knows.
    """
    raise NotImplementedError
