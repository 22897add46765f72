"""`strongroom inspect`: what everybody can see of a sealed archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(inspect)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="SEALED.mar", help="a sealed archive of either form")],
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Show what is readable without a key: who signed it, for whom, how large.

    Example: `strongroom inspect resnet.sealed.mar`
    """
    import json

    from strongroom.archive.unseal import SealedArchive

    with SealedArchive.open(path) as archive:
        fields = describe(archive)
    if as_json:
        print(json.dumps(fields))
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        shown = ", ".join(map(str, value)) or _EMPTY.get(name, "none") if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):<{width}}  {'-' if shown is None else shown}")
    typer.echo(
        f"{path}: what everybody can read; `strongroom verify` says whether an author you trust signed it", err=True
    )


_EMPTY = {"recipients": "none in the file: a broker, or whoever has a key file, holds the key"}


def describe(archive: Any) -> dict[str, Any]:
    """The fields that `inspect` shows, from a `SealedArchive`."""
    from datetime import UTC, datetime

    from strongroom.archive.recipients import kind_name
    from strongroom.errors import ArchiveTampered

    core, header = archive.core, archive.header
    try:
        header.verify()
        signature = f"{header.author.kind.label}, holds; whether you trust this author is for `strongroom verify`"
    except ArchiveTampered:
        signature = f"{header.author.kind.label}, DOES NOT HOLD: nothing here can be believed"

    def when(seconds: int | None) -> str | None:
        try:
            return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
        except (ValueError, OverflowError):
            return f"{seconds} s after 1970"

    return {
        "path": str(archive.path),
        "form": archive.form,
        "model": archive.clear.name,
        "model_version": archive.clear.version,
        "settings": [f"{key}={value}" for key, value in archive.clear.settings.items()],
        "digest": str(core.digest),
        "resource": "/".join(core.resource),
        "signature": signature,
        "author": str(core.author),
        "tenant": core.tenant,
        "lineage": core.lineage,
        "version": core.version,
        "created": when(core.created),
        "expires": when(core.expiry),
        "owner": core.owner,
        "lease_required": core.lease_required,
        "broker_key": None if core.broker_key is None else core.broker_key.hex(),
        "recipients": [kind_name(slot) for slot in archive.area.current.slots],
        "suite": core.suite.name.lower(),
        "chunk_size": core.grid.chunk,
        "payload_size": core.payload_length,
        "index_size": len(core.index),
    }
