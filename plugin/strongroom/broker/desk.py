"""What an administrator can ask of a running broker: one function a request (docs/release.md section 14).

Each takes the broker, who asks, the path's parameters, the query and the body; checks the role; acts
inside one store transaction with its audit entry; and returns None, bytes or a JSON value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from strongroom.broker import epochs, leases
from strongroom.broker.admin import Administrator
from strongroom.broker.document import ModelKeyDocument, check_name, is_model_key
from strongroom.broker.protocol import Resource
from strongroom.broker.refusals import Refused
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.release import Broker
from strongroom.broker.store import REVOCABLE, Revocation, spelled
from strongroom.encoding import Fields, b64url, parse_json, unb64url
from strongroom.errors import ConfigurationInvalid, MalformedInput
from strongroom.evidence.policy import Policy

ROUTES = (
    ("GET", "resources", "list_resources"),
    ("GET", "revocations", "list_revocations"),
    ("POST", "revocations", "revoke"),
    ("DELETE", "revocations", "unrevoke"),
    ("POST", "minimum-version", "raise_minimum_version"),
    ("POST", "limit", "set_limit"),
    ("GET", "leases", "list_leases"),
    ("DELETE", "leases/{lease}", "end_lease"),
    ("GET", "audit/checkpoint", "checkpoint"),
    ("GET", "audit/entries", "audit_entries"),
    ("GET", "status", "status"),
)
"""(method, path under /kbs/v0/strongroom/admin, function here)."""

Params = Mapping[str, str]


def _fields(body: bytes, where: str) -> Fields:
    return Fields(parse_json(body, where=where), where=where)


def _entry(who: Administrator, event: str, **facts: Any) -> dict[str, Any]:
    return {"event": event, "administrator": who.key_id, "decision": "granted"} | facts


def _name(path: Params) -> Resource:
    return Resource(path["repository"], path["type"], path["tag"])


# -- resources ------------------------------------------------------------------


def put_resource(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> None:
    """Store a resource; a model key must be named after its archive."""
    name = _name(path)
    who.may("resource", name.repository)
    facts: dict[str, Any] = {}
    if is_model_key(body):
        document = ModelKeyDocument.parse(body)
        if document.lease is not None or document.broker_time is not None:
            raise MalformedInput("a stored model key has no lease and no broker time")
        check_name(name, document)
        author = None if document.author is None else str(document.author)
        facts = {"archive": str(document.archive), "version": document.version, "author": author}
        facts |= {"owner": document.owner} if document.owner is not None else {}
    with broker.store.transaction():
        broker.store.put_resource(name, body, at=int(broker.clock()), **facts)
        broker.journal.record(_entry(who, "resource-put", resource=str(name), **facts))


def delete_resource(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> None:
    """Forget a resource, and the epoch seeds of a model key."""
    name = _name(path)
    who.may("resource", name.repository)
    with broker.store.transaction():
        if not broker.store.delete_resource(name):
            raise Refused.plugin(f"there is no resource {name}")
        epochs.forget(broker.store, name)
        broker.journal.record(_entry(who, "resource-delete", resource=str(name)))


def list_resources(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """Names and facts, never contents."""
    who.may("status", who.repository or None)
    rows = broker.store.rows("SELECT path, added_at, archive, version, author, owner FROM resources ORDER BY path")
    names = ("resource", "added_at", "archive", "version", "author", "owner")
    return [dict(zip(names, row, strict=True)) for row in rows if _visible(who, row[0])]


def _visible(who: Administrator, path: str) -> bool:
    return not who.repository or path.startswith(f"{who.repository}/")


# -- policies ---------------------------------------------------------------------


def _policy_text(body: bytes, kind: str) -> str:
    read = _fields(body, "policy")
    if read.has("type") and read.text("type", limit=16) != kind:
        raise Refused("ParsePolicyError", "Parse policy error", f"this broker's policy of that kind is {kind}")
    read.text("policy_id", limit=64, default="default")
    text = unb64url(read.text("policy", limit=1 << 20), where="policy")
    read.done()
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedInput("policy: not UTF-8") from error


def set_release_policy(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> None:
    """Replace the Rego release policy."""
    who.may("policy")
    text = _policy_text(body, "rego")
    try:
        policy = ReleasePolicy.parse(text)
    except ConfigurationInvalid as error:
        raise Refused("ParsePolicyError", f"Parse policy error: {error}", str(error)) from error
    broker.set_release_policy(policy, by=who.key_id)


def get_release_policy(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """The Rego text in force."""
    who.may("policy")
    return {"policy": broker.policies.release.text if broker.policies.release else None}


def set_appraisal_policy(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> None:
    """Replace the TOML appraisal policy."""
    who.may("policy")
    text = _policy_text(body, "toml")
    try:
        policy = Policy.parse(text, broker.plugins.verifiers())
    except ConfigurationInvalid as error:
        raise Refused("ParsePolicyError", f"Parse policy error: {error}", str(error)) from error
    broker.set_appraisal_policy(policy, text, by=who.key_id)


def get_appraisal_policy(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """The TOML text in force."""
    who.may("policy")
    return {"policy": broker.store.policy("appraisal")}


# -- revocations, versions, limits, leases -------------------------------------------


_DIGEST = "64 hexadecimal digits"
_FORMS = {
    "archive": (re.compile(r"[0-9a-f]{64}"), f"{_DIGEST}, as `strongroom inspect` shows an archive's digest"),
    "author": (re.compile(r"[0-9a-f]{64}"), f"{_DIGEST}, as `strongroom inspect` shows an author's id"),
    "measurement": (
        re.compile(r"(?:[0-9a-f]{2}){32,64}"),
        "64 to 128 hexadecimal digits, as `release list --json` has it",
    ),
    "lineage": (None, "tenant/lineage: acme/digits"),
    "keeper": (None, "a keeper's name as `release list` shows it, or the identity of its chip"),
}
"""Kind of revocation → (what its lower-cased value looks like, and that in words for whoever wrote something else)."""


def _revocable(who: Administrator, kind: str, value: str) -> str:
    """The value as releases are compared with it; raises `Refused` where no release could ever have it."""
    if kind not in REVOCABLE:
        raise _unusable(f"one of {', '.join(REVOCABLE)} can be revoked, and no {kind[:16]!r}")
    pattern, form = _FORMS[kind]
    value = spelled(kind, value)
    if not value or len(value) > 256 or (pattern and not pattern.fullmatch(value)) or not value.isprintable():
        raise _unusable(f"{value[:40]!r} is no {kind}; write {form}")
    if kind == "lineage":
        value = _lineage(value)
    if not who.repository:
        who.may("revoke")
    elif kind == "lineage":
        who.may("revoke", value.partition("/")[0])
    else:
        raise Refused.admin(f"an owner revokes lineages of its own repository, not a {kind}")
    return value


def _unusable(reason: str) -> Refused:
    """An administrator wrote something that cannot be meant, and reads why."""
    return Refused("PluginInternalError", f"Plugin internal error: {reason}", reason)


def revoke(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> None:
    """Release no more keys for an archive, lineage, author, measurement or keeper."""
    read = _fields(body, "revocation")
    kind, value = read.text("kind", limit=16), read.text("value", limit=256)
    reason = read.text("reason", limit=512, default="")
    read.done()
    value = _revocable(who, kind, value)
    with broker.store.transaction():
        broker.store.revoke(Revocation(kind, value, reason, int(broker.clock())))
        broker.journal.record(_entry(who, "revoke", kind=kind, value=value, reason=reason))


def unrevoke(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> None:
    """Take a revocation back."""
    kind, value = query.get("kind", ""), query.get("value", "")
    value = _revocable(who, kind, value)
    with broker.store.transaction():
        if not broker.store.unrevoke(kind, value):
            raise Refused.plugin(f"{kind} {value} is not revoked")
        broker.journal.record(_entry(who, "unrevoke", kind=kind, value=value))


def list_revocations(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """Every revocation; to an owner those of lineages and archives in its own repository."""
    who.may("status", who.repository or None)
    rows = broker.store.rows("SELECT path, archive FROM resources WHERE archive IS NOT NULL")
    own = {archive for path, archive in rows if _visible(who, path)}
    found = [
        each
        for each in broker.store.revocations()
        if not who.repository
        or (each.kind == "lineage" and _visible(who, each.value))
        or (each.kind == "archive" and each.value in own)
    ]
    return [{"kind": each.kind, "value": each.value, "reason": each.reason, "at": each.at} for each in found]


def raise_minimum_version(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """Release no version of a lineage below this one, from now on and for good."""
    read = _fields(body, "minimum version")
    lineage, version = _lineage(read.text("lineage", limit=257)), read.number("version", high=2**32 - 1)
    read.done()
    who.may("limit", lineage.partition("/")[0])
    with broker.store.transaction():
        raised = broker.store.raise_minimum_version(lineage, version)
        if raised:
            broker.journal.record(_entry(who, "minimum-version", lineage=lineage, version=version))
    return {"lineage": lineage, "version": broker.store.minimum_version(lineage)}


def _lineage(lineage: str) -> str:
    tenant, _, rest = lineage.partition("/")
    try:
        Resource(tenant, rest, "tag")  # both halves are segments of a resource name
    except MalformedInput as error:
        raise _unusable(f"{lineage[:40]!r} is no lineage; write {_FORMS['lineage'][1]}") from error
    return lineage


def set_limit(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """How many keepers may hold keys of a lineage, and for how long at most; what is in force then.

    A member that is not there leaves its limit alone, and null takes it away.
    """
    read = _fields(body, "limit")
    lineage = _lineage(read.text("lineage", limit=257))
    given = {
        name: _number_or_none(read.value(name), name, low, high)
        for name, low, high in (("keepers", 0, 10**6), ("lease_s", 1, 366 * 86400))
        if read.has(name)
    }
    read.done()
    who.may("limit", lineage.partition("/")[0])
    if not given:
        raise _unusable("a limit has keepers, lease_s or both, a number or null")
    with broker.store.transaction():
        keepers, lease_s = broker.store.limit(lineage)
        limits = {"keepers": keepers, "lease_s": lease_s} | given
        broker.store.set_limit(lineage, **limits)
        broker.journal.record(_entry(who, "limit", lineage=lineage, **limits))  # both, for a restore sets both
    return {"lineage": lineage} | limits


def _number_or_none(value: Any, name: str, low: int, high: int) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        return value
    raise _unusable(f"{name} is a number from {low} to {high}, or null for no limit")


def list_leases(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """Who holds which key, live leases only unless ``?all=1``."""
    who.may("lease", who.repository or None)
    now = int(broker.clock())
    rows = broker.store.rows(
        "SELECT id, path, keeper, measurement, granted_at, renewed_at, expires_at, ended_at FROM leases"
        " ORDER BY granted_at"
    )
    names = ("lease", "resource", "keeper", "measurement", "granted_at", "renewed_at", "expires_at", "ended_at")
    found = [dict(zip(names, row, strict=True)) for row in rows if _visible(who, row[1])]
    live = [each for each in found if each["ended_at"] is None and (each["expires_at"] or now + 1) > now]
    return found if query.get("all") else live


def end_lease(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> None:
    """Forget a lease of a keeper that is gone, so that it no longer counts; it does not stop a live one."""
    lease = path["lease"]
    rows = broker.store.rows("SELECT path FROM leases WHERE id = ?", lease)
    who.may("lease-end", rows[0][0].partition("/")[0] if rows else None)
    with broker.store.transaction():
        if not leases.end(broker.store, lease, int(broker.clock())):
            raise Refused.plugin(f"no live lease {lease}")
        broker.journal.record(_entry(who, "lease-end", lease=lease))


# -- audit and status ----------------------------------------------------------------


def checkpoint(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> bytes:
    """The signed checkpoint over the whole log."""
    who.may("audit")
    return broker.audit.checkpoint().encode()


def audit_entries(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """Entries from ``?first=``, at most 256 of them."""
    who.may("audit")
    first = query.get("first", "0")
    if not (first.isascii() and first.isdigit() and len(first) <= 15):
        raise MalformedInput("first is a number")
    return [entry.decode() for entry in broker.audit.entries(int(first), 256)]


def status(broker: Broker, who: Administrator, path: Params, query: Params, body: bytes) -> Any:
    """What `strongroom broker status` shows."""
    who.may("status", who.repository or None)
    appraisal, release = broker.policies.appraisal, broker.policies.release
    return {
        "broker": broker.id,
        "broker_key": b64url(broker.public_key),
        "appraisal_policy": appraisal.name if appraisal else None,
        "tees": sorted(appraisal.tees) if appraisal else [],
        "release_policy": release is not None,
        "sessions": len(broker.sessions),
        "audit_entries": broker.audit.size,
        "trouble": broker.journal.trouble(),
    }
