"""`strongroom release`: who holds which key, and taking it back."""

from __future__ import annotations

from typing import Annotated

import typer

from strongroom.cli import connection
from strongroom.cli.connection import AdminKeyFile, AsJson, Ca, Role, Url, connect, tell

Kind = Annotated[str, typer.Argument(metavar="KIND", help="archive, lineage, author, measurement or keeper")]
Value = Annotated[
    str, typer.Argument(metavar="VALUE", help="digest, tenant/lineage, author id, hex, or a keeper's name")
]


def register(app: typer.Typer) -> None:
    """Attach the verb and what is under it."""
    verbs = typer.Typer(name="release", help="Who holds which key, and taking it back.", no_args_is_help=True)
    verbs.command(name="list")(list_releases)
    verbs.command()(revoke)
    verbs.command()(restore)
    verbs.command()(minimum)
    verbs.command()(limit)
    verbs.command()(end)
    app.add_typer(verbs)


def list_releases(
    broker: Url,
    admin_key: AdminKeyFile,
    everything: Annotated[bool, typer.Option("--all", help="also leases that have ended")] = False,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """List the leases on keys.

    Example: `strongroom release list --broker https://keys.example --admin-key admin.key`
    """
    import json
    from datetime import UTC, datetime

    found = connect(broker, admin_key, role, ca).leases(all=everything)
    if as_json:
        print(json.dumps(found))
        return
    for each in found:
        until = each["expires_at"]
        said = "without end" if until is None else f"until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S}Z"
        print(f"{each['lease']}  {each['resource']}  keeper {each['keeper'] or 'without a name'}  {said}")
    print(f"{len(found)} leases")


def revoke(
    kind: Kind,
    value: Value,
    broker: Url,
    admin_key: AdminKeyFile,
    reason: Annotated[str, typer.Option(help="one sentence, for the audit log")] = "",
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Release no more keys for this archive, lineage, author, measurement or keeper.

    Example: `strongroom release revoke lineage acme/digits --broker https://keys.example --admin-key admin.key`
    """
    _check_kind(kind)
    connect(broker, admin_key, role, ca).revoke(kind, value, reason=reason)
    line = f"{kind} {value}: revoked; it takes effect when a lease is renewed"
    tell(line, as_json=as_json, kind=kind, value=value, revoked=True)


def restore(
    kind: Kind,
    value: Value,
    broker: Url,
    admin_key: AdminKeyFile,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Take a revocation back.

    Example: `strongroom release restore lineage acme/digits --broker https://keys.example --admin-key admin.key`
    """
    _check_kind(kind)
    connect(broker, admin_key, role, ca).unrevoke(kind, value)
    tell(f"{kind} {value}: no longer revoked", as_json=as_json, kind=kind, value=value, revoked=False)


def _check_kind(kind: str) -> None:
    from strongroom.broker.store import REVOCABLE
    from strongroom.errors import WrongUse

    if kind not in REVOCABLE:
        raise WrongUse(f"nothing of the kind {kind!r} is revoked", hint=f"one of {', '.join(REVOCABLE)}")


def minimum(
    lineage: Annotated[str, typer.Argument(metavar="TENANT/LINEAGE")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=0, max=connection.VERSION_LIMIT)],
    broker: Url,
    admin_key: AdminKeyFile,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Release no version of a lineage below this one. It never falls again.

    Example: `strongroom release minimum acme/digits 7 --broker https://keys.example --admin-key admin.key`
    """
    in_force = connect(broker, admin_key, role, ca).raise_minimum_version(lineage, version)
    tell(f"{lineage}: version {in_force} and newer", as_json=as_json, lineage=lineage, version=in_force)


def limit(
    lineage: Annotated[str, typer.Argument(metavar="TENANT/LINEAGE")],
    broker: Url,
    admin_key: AdminKeyFile,
    keepers: Annotated[
        str | None, typer.Option(metavar="N|none", help="how many may hold its keys at once; none: any number")
    ] = None,
    lease: Annotated[
        str | None, typer.Option(metavar="SECONDS|none", help="how long at a time, at most; none: as the key says")
    ] = None,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Say how many keepers may hold keys of a lineage, and for how long at a time. What is not given stays as it is.

    Example: `strongroom release limit acme/digits --keepers 3 --lease 900 --broker https://keys.example
    --admin-key admin.key`
    """
    from strongroom.errors import WrongUse

    limits: dict[str, int | None] = {}
    if keepers is not None:
        limits["keepers"] = _number(keepers, "--keepers", 0, connection.KEEPERS_LIMIT)
    if lease is not None:
        limits["lease_s"] = _number(lease, "--lease", 1, connection.LEASE_LIMIT_S)
    if not limits:
        raise WrongUse("nothing to change", hint="give --keepers, --lease or both: a number, or none")
    known = connect(broker, admin_key, role, ca).set_limit(lineage, **limits)
    holders, seconds = known["keepers"], known["lease_s"]
    line = (
        f"{lineage}: {'any number of' if holders is None else holders} keepers, "
        f"{'any number of' if seconds is None else seconds} seconds"
    )
    tell(line, as_json=as_json, lineage=lineage, keepers=holders, lease_s=seconds)


def _number(text: str, option: str, low: int, high: int) -> int | None:
    """The number that an option gives, or None for ``none``."""
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise typer.BadParameter(f"{text!r} is neither a number from {low} to {high} nor none", param_hint=option)
    return int(text)


def end(
    lease: Annotated[str, typer.Argument(metavar="LEASE", help="as `release list` shows it")],
    broker: Url,
    admin_key: AdminKeyFile,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Forget the lease of a keeper that is gone, so that it no longer counts.

    Example: `strongroom release end 5f0c… --broker https://keys.example --admin-key admin.key`
    """
    connect(broker, admin_key, role, ca).end_lease(lease)
    tell(f"lease {lease}: ended", as_json=as_json, lease=lease, ended=True)
