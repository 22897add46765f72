"""What may be served: archives are checked and their fronts written anew, before any server starts.

The model store is the host's. From each archive in it the author's signature is verified over the header,
and then the outer files are *written* from the verified values into a private store in memory. No byte of
an archive is copied: an archive's folder comes first on a worker's import path and zip readers disagree
about what is in one, so whatever it carries outside the signed values must not reach the server. The
payload stays where it is; its path is an untrusted hint. Admission reads the header only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from strongroom.archive.packaging import REFUSED
from strongroom.archive.signature import AuthorPublic, SignatureKind
from strongroom.archive.unseal import SealedArchive, VerifiedArchive
from strongroom.broker.epochs import public_key_of
from strongroom.errors import ArchiveError, LaunchRefused, ReleaseError
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.config import Admission, Configuration

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A model's name becomes a file's name in the private store and a part of URLs."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """One archive that passed: the name it is served under, where its payload lies, who signed what.

    `resource` is what its key is stored under, `broker_key` who may sign seeds for it (both from the signed header).
    """

    name: str
    path: Path
    archive: ArchiveDigest
    author: AuthorId
    lineage: str
    version: int
    model_version: str
    resource: tuple[str, str, str]
    broker_key: bytes | None


class Gate:
    """The rules of one configuration: whom it trusts, and in which mode of the channel it serves.

    `leased` says whether a lease may come with a model key.
    """

    def __init__(self, rules: Admission, mode: str = "host", *, leased: bool = True) -> None:
        self._rules = rules
        self._mode = mode
        self._leased = leased
        self._authors = tuple(AuthorPublic.load(path) for path in rules.authors)
        self._demand = SignatureKind.named("hybrid") if rules.hybrid_signatures else None

    @classmethod
    def of(cls, configuration: Configuration) -> Self:
        """What one configuration demands."""
        return cls(configuration.admission, configuration.channel.mode, leased=configuration.keys.leased)

    @property
    def authors(self) -> tuple[AuthorPublic, ...]:
        """Whose archives pass."""
        return self._authors

    def verified(self, path: Path) -> VerifiedArchive:
        """Open an archive's front and check it; raises an `ArchiveError` or `LaunchRefused`."""
        archive = SealedArchive.open(path)
        try:
            verified = archive.verified(self._authors, now=datetime.now(UTC), demand=self._demand)
            lowest = self._rules.minimum_versions.get(verified.core.lineage, 0)
            if verified.core.version < lowest:
                raise LaunchRefused(
                    f"{path.name} is version {verified.core.version} of {verified.core.lineage!r}; "
                    f"this host serves {lowest} or later",
                    hint="serve the newer archive, or lower minimum_versions if the rollback is meant",
                )
            allowed = self._rules.archives
            if allowed is not None and verified.core.digest not in allowed:
                raise LaunchRefused(
                    f"{path.name} is archive {verified.core.digest}, and the configuration admits others only",
                    hint="serve the archive that is listed, or list this one in archives of [admission]",
                )
            for name, reason in REFUSED.items():  # our own sealer makes no such archive; the format allows it
                if verified.clear.settings.get(name):
                    raise LaunchRefused(
                        f"{path.name} asks for {name}, and {reason}", hint="its author seals it without that"
                    )
            if verified.core.lease_required and not self._leased:
                raise LaunchRefused(
                    f"{path.name} may be opened only under a lease, and the configured source of keys grants none",
                    hint="let a strongroom broker release its key ([broker]), or seal it without --lease-required",
                )
            if self._mode == "fleet":
                _check_broker_key(verified, path)
        except BaseException:
            archive.close()
            raise
        return verified

    def admit(self, models: Mapping[str, Path], store: Path) -> list[Admitted]:
        """Check every model and write its front into `store`; raises for the first that does not pass."""
        admitted = []
        for name, path in models.items():
            if not NAME.fullmatch(name):
                raise LaunchRefused(
                    f"{name!r} is no name to serve a model under",
                    hint="letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit",
                )
            try:
                verified = self.verified(path)
            except ArchiveError as error:
                raise type(error)(f"{path.name} is not admitted: {error}", hint=error.hint) from error
            (store / f"{name}.mar").write_bytes(verified.front())
            verified.close()
            core = verified.core
            admitted.append(
                Admitted(
                    name=name,
                    path=path.resolve(),
                    archive=core.digest,
                    author=core.author,
                    lineage=core.lineage,
                    version=core.version,
                    model_version=verified.clear.version,
                    resource=core.resource,
                    broker_key=core.broker_key,
                )
            )
        _all_different(admitted)
        return admitted


def _check_broker_key(verified: VerifiedArchive, path: Path) -> None:
    """In mode fleet the archive has to name who may sign its seeds (docs/protocol.md section 7.1)."""
    hint = "its author seals it again: `strongroom seal --broker` names that broker, --broker-key FILE another one"
    if verified.core.broker_key is None:
        raise LaunchRefused(f"mode fleet needs the broker's key, and {path.name} names none", hint=hint)
    try:
        public_key_of(verified.core.broker_key)
    except ReleaseError as error:
        raise LaunchRefused(f"mode fleet cannot serve {path.name}: {error}", hint=hint) from error


def _all_different(admitted: Iterable[Admitted]) -> None:
    seen: dict[ArchiveDigest, str] = {}
    for each in admitted:
        if each.archive in seen:
            raise LaunchRefused(
                f"{seen[each.archive]!r} and {each.name!r} are the same archive",
                hint="serve it under one name; more workers share one decrypted copy anyway",
            )
        seen[each.archive] = each.name
