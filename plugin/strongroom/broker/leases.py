"""Who holds which key, for how long, and who may not any more (docs/release.md section 11).

A lease is what a release leaves behind: a keeper asks again, with fresh evidence, before it ends. So a
revocation, a raised minimum version or a new limit takes effect at the next renewal. Everything here runs
inside the store transaction of the release.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.broker.protocol import Resource
from strongroom.broker.refusals import Refused
from strongroom.broker.sessions import Session
from strongroom.broker.store import ResourceFacts, Store
from strongroom.evidence.judge import Verdict

DEFAULT_LEASE_S = 3600
"""A lineage whose keepers are limited in number, and whose lease nobody set, leases for this long."""


KEPT_S = 30 * 86400
"""Leases that are over for so long are forgotten; the audit log has them all."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One keeper's right to one key, from `at` (Unix seconds) for `seconds`, or without end."""

    id: str
    at: int
    seconds: int | None


def lineage_of(name: Resource) -> str:
    """``tenant/lineage``: what minimum versions and limits are about."""
    return f"{name.repository}/{name.type}"


def measurements_of(verdict: Verdict) -> frozenset[str]:
    """What software was measured, in hex, over all submodules: what a lease records."""
    found: set[str] = set()
    for submodule in verdict.submodules.values():
        for claim in ("measurement", "mr_td", "mr_enclave", "rim"):
            found |= _hexes(submodule.claims.get(claim))
    return frozenset(found)


def revocable_of(verdict: Verdict) -> frozenset[str]:
    """Every value of the evidence that a revocation of a ``measurement`` may name, in hex: PCRs and signers too."""
    found: set[str] = set()
    for submodule in verdict.submodules.values():
        for claim in submodule.claims.values.values():
            found |= _hexes(claim.value)
    return frozenset(found)


def _hexes(value: Any) -> set[str]:
    """The digests (32 to 64 bytes) in a claim's value, in hex."""
    if isinstance(value, bytes):
        return {value.hex()} if 32 <= len(value) <= 64 else set()
    if isinstance(value, str):
        return {value.lower()} if re.fullmatch(r"(?:[0-9a-fA-F]{2}){32,64}", value) else set()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return {each for inner in value for each in _hexes(inner)}
    return set()


def keepers_of(session: Session, verdict: Verdict) -> frozenset[str]:
    """The names under which this keeper can be revoked: its own, and the identities of its chips."""
    devices = {submodule.claims.device_id for submodule in verdict.submodules.values()}
    return frozenset(devices | {session.keeper}) - {""}


def check_standing(store: Store, session: Session, name: Resource, facts: ResourceFacts) -> None:
    """Raise `Refused` for anything revoked, and for a version below the lineage's minimum."""
    if session.verdict is None:
        raise Refused.bad_token("this session was never judged")
    asked = {
        "archive": frozenset({facts.archive} if facts.archive else ()),
        "lineage": frozenset({lineage_of(name)}),
        "author": frozenset({facts.author} if facts.author else ()),
        "measurement": revocable_of(session.verdict),
        "keeper": keepers_of(session, session.verdict),
    }
    for kind, values in asked.items():
        for value in values:
            if store.revoked(kind, value):
                raise Refused.policy(f"{kind} {value} is revoked")
    minimum = store.minimum_version(lineage_of(name))
    if minimum and (facts.version is None or facts.version < minimum):
        raise Refused.policy(f"version {facts.version} is below the minimum of {minimum}")


def grant(store: Store, session: Session, name: Resource, *, lease_s: int | None, now: int) -> Lease:
    """Give or renew this keeper's lease; raises `Refused` where the lineage's limit is reached.

    A limit that was lowered reaches those who hold a lease, the last ones first, at their next renewal.
    """
    keepers, limit_s = store.limit(lineage_of(name))
    candidates = [each for each in (lease_s, limit_s) if each is not None]
    seconds = min(candidates) if candidates else (DEFAULT_LEASE_S if keepers is not None else None)
    expires = None if seconds is None else now + seconds
    with store.transaction():
        if keepers is not None:
            _check_limit(store, session.keeper, name, keepers, now)
        held = live_lease(store, name, session.keeper, now)
        if held is not None:
            store.write("UPDATE leases SET renewed_at = ?, expires_at = ? WHERE id = ?", now, expires, held)
            return Lease(held, now, seconds)
        lease = Lease(secrets.token_hex(16), now, seconds)
        measurement = ",".join(sorted(measurements_of(session.verdict))) if session.verdict else ""
        store.write(
            "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            lease.id, str(name), session.keeper, measurement, now, now, expires,
        )  # fmt: skip
    return lease


def restored(store: Store, lease_id: str, path: str, keeper: str, *, at: int, seconds: int | None) -> None:
    """A release of the audit log once more: it gave this lease, or renewed it. The log has no measurement."""
    store.write(
        "INSERT INTO leases VALUES (?1, ?2, ?3, '', ?4, ?4, ?5, NULL)"
        " ON CONFLICT (id) DO UPDATE SET renewed_at = excluded.renewed_at, expires_at = excluded.expires_at",
        lease_id, path, keeper, at, None if seconds is None else at + seconds,
    )  # fmt: skip


def live_lease(store: Store, name: Resource, keeper: str, now: int) -> str | None:
    """The id of the lease that this keeper holds on this resource; None for a keeper without a name."""
    if not keeper:
        return None
    rows = store.rows(
        "SELECT id FROM leases WHERE path = ? AND keeper = ? AND ended_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > ?)",
        str(name), keeper, now,
    )  # fmt: skip
    return rows[0][0] if rows else None


def _check_limit(store: Store, keeper: str, name: Resource, limit: int, now: int) -> None:
    """Raise `Refused` where as many others hold keys of the lineage, and have for longer, as the limit allows."""
    first = holders(store, name, now, limit)
    if keeper not in first and len(first) >= limit:
        raise Refused.policy(f"{len(first)} keepers hold keys of {lineage_of(name)} already, the limit is {limit}")


def holders(store: Store, name: Resource, now: int, number: int) -> list[str]:
    """The first `number` keepers that hold keys of the lineage of this resource, by their oldest live lease.

    A keeper counts once, however many versions it holds. One without a name is another at every release.
    """
    lineage = lineage_of(name)
    rows = store.rows(
        "SELECT CASE keeper WHEN '' THEN 'lease ' || id ELSE keeper END AS holder FROM leases"
        " WHERE path > ? AND path < ? AND ended_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
        " GROUP BY holder ORDER BY min(granted_at), min(id) LIMIT ?",
        f"{lineage}/", f"{lineage}0", now, number,  # 0 is what follows the slash
    )  # fmt: skip
    return [row[0] for row in rows]


def count(store: Store, now: int) -> int:
    """How many leases have not ended, of all lineages."""
    rows = store.rows(
        "SELECT count(*) FROM leases WHERE ended_at IS NULL AND (expires_at IS NULL OR expires_at > ?)", now
    )
    return int(rows[0][0])


def end(store: Store, lease_id: str, now: int) -> bool:
    """End a lease; whether it was live."""
    return store.write("UPDATE leases SET ended_at = ? WHERE id = ? AND ended_at IS NULL", now, lease_id) > 0


def sweep(store: Store, now: int) -> int:
    """Forget leases that are over for a month, and endless ones that a keeper without a name got a month ago.

    The latter are never renewed, since every release to such a keeper is a lease of its own. How many there were.
    """
    return store.write(
        "DELETE FROM leases WHERE expires_at < ?1 OR ended_at < ?1"
        " OR (expires_at IS NULL AND keeper = '' AND renewed_at < ?1)",
        now - KEPT_S,
    )
