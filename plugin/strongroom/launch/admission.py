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

from strongroom.archive.signature import AuthorPublic, SignatureKind
from strongroom.archive.unseal import SealedArchive, VerifiedArchive
from strongroom.errors import ArchiveError, LaunchRefused
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.config import Admission

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A model's name becomes a file's name in the private store and a part of URLs."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """One archive that passed: the name it is served under, where its payload lies, who signed what."""

    name: str
    path: Path
    archive: ArchiveDigest
    author: AuthorId
    lineage: str
    version: int
    model_version: str


class Gate:
    """The rules of one configuration. `leased` says whether a lease may come with a model key."""

    def __init__(self, rules: Admission, *, leased: bool = True) -> None:
        self._rules = rules
        self._leased = leased
        self._authors = tuple(AuthorPublic.load(path) for path in rules.authors)
        self._demand = SignatureKind.named("hybrid") if rules.hybrid_signatures else None

    @property
    def authors(self) -> tuple[AuthorPublic, ...]:
        """Whose archives pass."""
        return self._authors

    def verified(self, path: Path) -> VerifiedArchive:
        """Open an archive's front and check it; raises an `ArchiveError` or `LaunchRefused`."""
        verified = SealedArchive.open(path).verified(self._authors, now=datetime.now(UTC), demand=self._demand)
        lowest = self._rules.minimum_versions.get(verified.core.lineage, 0)
        if verified.core.version < lowest:
            raise LaunchRefused(
                f"{path.name} is version {verified.core.version} of {verified.core.lineage!r}; "
                f"this host serves {lowest} or later",
                hint="serve the newer archive, or lower minimum_versions if the rollback is meant",
            )
        if verified.core.lease_required and not self._leased:
            raise LaunchRefused(
                f"{path.name} may be opened only under a lease, and the configured source of keys grants none",
                hint="let a strongroom broker release its key ([broker]), or seal it without --lease-required",
            )
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
            core = verified.core
            admitted.append(
                Admitted(
                    name, path.resolve(), core.digest, core.author, core.lineage, core.version, verified.clear.version
                )
            )
        _all_different(admitted)
        return admitted


def _all_different(admitted: Iterable[Admitted]) -> None:
    seen: dict[ArchiveDigest, str] = {}
    for each in admitted:
        if each.archive in seen:
            raise LaunchRefused(
                f"{seen[each.archive]!r} and {each.name!r} are the same archive",
                hint="serve it under one name; more workers share one decrypted copy anyway",
            )
        seen[each.archive] = each.name
