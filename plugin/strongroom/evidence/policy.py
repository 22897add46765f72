"""An appraisal policy: which evidence is believed, written by people in TOML.

    name = "production"
    description = "Our SNP guests, image of May."
    init_data = ["5f0c…"]

    [snp]
    measurements = ["1c40…"]

    [devices]
    gpu = 8

    [admitted]
    authors = ["9f2b…"]

    [channel]
    modes = ["host"]

A kind of TEE that has no table is refused, so an empty policy refuses everything. What
stands inside a TEE's table is its verifier's business (docs/attestation/); what else a
policy may say is here. Lists that are present and empty deny; lists that are absent do
not decide. Unknown tables and keys are errors.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strongroom.encoding import Fields, unhex
from strongroom.errors import ConfigurationInvalid, MalformedInput
from strongroom.evidence.allowlist import HexSet, hex_set
from strongroom.evidence.types import Checklist, Verifier, Word
from strongroom.keys import ArchiveDigest, AuthorId

DEVICE_CLASSES = ("gpu", "switch")
CHANNEL_MODES = ("host", "fleet")
LARGEST_POLICY = 1 << 20


@dataclass(frozen=True, slots=True)
class AdmittedModel:
    """One model that admission let in, as the evidence behind a channel key lists it."""

    name: str
    version: int
    archive: ArchiveDigest
    author: AuthorId


@dataclass(frozen=True, slots=True)
class Admission:
    """The ``[admitted]`` table: what may stand behind a channel key. None = does not decide.

    Models admitted together trust each other, so *every* admitted model has to satisfy the lists, not
    only the one that a client asks for. `models` maps a name to the lowest version accepted; a model
    that it does not name is refused. `configuration` and `plugins` list digests (32 bytes).
    """

    archives: frozenset[ArchiveDigest] | None = None
    authors: frozenset[AuthorId] | None = None
    models: Mapping[str, int] | None = None
    configuration: frozenset[bytes] | None = None
    plugins: frozenset[bytes] | None = None

    @classmethod
    def parse(cls, read: Fields) -> Admission:
        """From the decoded table; raises `MalformedInput`."""
        models = None
        if read.has("models"):
            table = read.table("models")
            models = {name: table.number(name) for name in table.left()}
        admission = cls(
            archives=_digests(read, "archives", ArchiveDigest),
            authors=_digests(read, "authors", AuthorId),
            models=models,
            configuration=_digests(read, "configuration", _digest),
            plugins=_digests(read, "plugins", _digest),
        )
        read.done()
        return admission

    def appraise(
        self,
        admitted: Sequence[AdmittedModel],
        checks: Checklist,
        *,
        configuration: bytes = b"",
        plugins: Sequence[bytes] = (),
    ) -> None:
        """Hold an admitted set, a configuration digest and plugin digests against this table.

        Records ``admitted.archives``, ``.authors``, ``.models``, ``.configuration`` and ``.plugins``, each
        only where the table has the list. `Word.ADMITTED`.
        """
        if self.archives is not None:
            _all_in(checks, "archives", [each.archive for each in admitted], self.archives)
        if self.authors is not None:
            _all_in(checks, "authors", [each.author for each in admitted], self.authors)
        if self.configuration is not None:
            _all_in(checks, "configuration", [configuration], self.configuration)
        if self.plugins is not None:
            _all_in(checks, "plugins", list(plugins), self.plugins)
        if self.models is not None:
            allowed = self.models
            wrong = [
                f"{each.name} {each.version}"
                for each in admitted
                if each.name not in allowed or each.version < allowed[each.name]
            ]
            checks.that(
                not wrong, "admitted.models", Word.ADMITTED,
                expected=", ".join(f"{name} from version {low}" for name, low in sorted(allowed.items())) or "none",
                found=", ".join(wrong or [f"{each.name} {each.version}" for each in admitted]) or "no model",
                source="docs/protocol.md, admitted set",
                hint="ask the operator why this model is served here, or add it to [admitted.models]",
            )  # fmt: skip


def _all_in(checks: Checklist, what: str, found: Sequence[bytes], allowed: frozenset[Any]) -> None:
    wrong = [each for each in found if each not in allowed]
    checks.that(
        not wrong and bool(allowed), f"admitted.{what}", Word.ADMITTED,
        expected="only " + ", ".join(sorted(bytes(each).hex() for each in allowed)) if allowed else "nothing",
        found=", ".join(bytes(each).hex() or "none" for each in (wrong or found)) or "none",
        source="docs/protocol.md, admitted set",
        hint=f"if you trust it, add it to {what} in the policy's [admitted] table",
    )  # fmt: skip


def _digest(octets: bytes) -> bytes:
    if len(octets) != 32:
        raise MalformedInput(f"a digest has 32 bytes, found {len(octets)}")
    return octets


def _digests(read: Fields, name: str, kind: Any) -> frozenset[Any] | None:
    if not read.has(name):
        return None
    return frozenset(kind(unhex(each, where=f"{read.where}: {name}")) for each in read.texts(name))


def _modes(read: Fields) -> tuple[str, ...]:
    modes = read.texts("modes", limit=16, default=CHANNEL_MODES[:1])
    if not set(modes) <= set(CHANNEL_MODES):
        raise MalformedInput(f"{read.where}: modes is not a list out of {' and '.join(CHANNEL_MODES)}")
    read.done()
    return modes


@dataclass(frozen=True, slots=True)
class Policy:
    """One appraisal policy. `tees` maps a TEE name to what its verifier parsed from the table.

    `devices` maps ``gpu`` or ``switch`` to the exact number demanded beside the CPU; a class it does
    not name may have any number of devices, none included. `max_age` is how old evidence may be, in
    seconds, where a protocol lets it be reused (docs/protocol.md); `init_data` lists digests of the files that a
    guest may have been started with (docs/attestation/init-data.md); `digest` is the SHA-256 of the text.
    `modes` are the channel's modes that a client accepts: without a ``[channel]`` table, keys that nobody
    outside the TEE has (``host``).
    """

    name: str
    description: str = ""
    tees: Mapping[str, Any] = field(default_factory=dict)
    devices: Mapping[str, int] = field(default_factory=dict)
    admitted: Admission | None = None
    max_age: int = 300
    digest: bytes = b""
    init_data: HexSet | None = None
    modes: tuple[str, ...] = CHANNEL_MODES[:1]

    @classmethod
    def parse(cls, text: str, verifiers: Mapping[str, Verifier]) -> Policy:
        """Build a policy from TOML; raises `ConfigurationInvalid`, naming the line or key.

        `verifiers` are those at hand: a table for a TEE without one is an error, not ignored.
        """
        octets = text.encode()
        if len(octets) > LARGEST_POLICY:
            raise ConfigurationInvalid(f"policy: {len(octets)} bytes, the limit is {LARGEST_POLICY}")
        try:
            return cls._parse(Fields(tomllib.loads(text), where="policy"), hashlib.sha256(octets).digest(), verifiers)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationInvalid(f"policy: not TOML: {error}") from error
        except MalformedInput as error:
            raise ConfigurationInvalid(str(error), hint="docs/attestation/ lists the keys of each table") from error

    @classmethod
    def _parse(cls, read: Fields, digest: bytes, verifiers: Mapping[str, Verifier]) -> Policy:
        name = read.text("name", limit=128)
        description = read.text("description", default="")
        max_age = read.number("max_age", high=7 * 24 * 3600, default=300)
        init_data = hex_set(read, "init_data", sizes=(32, 48, 64))
        devices: dict[str, int] = {}
        if read.has("devices"):
            table = read.table("devices")
            devices = {each: table.number(each, high=64) for each in DEVICE_CLASSES if table.has(each)}
            table.done()
        admitted = Admission.parse(read.table("admitted")) if read.has("admitted") else None
        modes = _modes(read.table("channel")) if read.has("channel") else CHANNEL_MODES[:1]
        tees = {}
        for tee in read.left():
            if tee not in verifiers:
                raise MalformedInput(
                    f"policy: [{tee}] is neither a TEE that a verifier is loaded for nor another known table"
                )
            table = read.table(tee)
            tees[tee] = verifiers[tee].policy(table)
            table.done()
        return cls(name, description, tees, devices, admitted, max_age, digest, init_data, modes)

    @classmethod
    def load(cls, path: Path, verifiers: Mapping[str, Verifier]) -> Policy:
        """Read and parse a policy file; raises `ConfigurationInvalid`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationInvalid(f"{path}: cannot be read as a policy", hint=str(error)) from error
        try:
            return cls.parse(text, verifiers)
        except ConfigurationInvalid as error:
            raise ConfigurationInvalid(f"{path}: {error}", hint=error.hint) from error
