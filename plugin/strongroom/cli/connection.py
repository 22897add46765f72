"""What every command that asks a running broker has in common: where it is, and who asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from strongroom.broker.client import BrokerAdmin

LEASE_LIMIT_S = 366 * 86400
"""A broker gives no longer lease; this and the next two are the bounds of its documents."""

VERSION_LIMIT = 2**32 - 1
"""A broker knows no higher version."""

KEEPERS_LIMIT = 10**6
"""A broker counts no more keepers."""

ARCHIVE_VERSION_LIMIT = 2**64 - 1
"""An archive has no higher version (docs/format.md section 5.1)."""

Url = Annotated[str, typer.Option("--broker", metavar="URL", help="the key broker")]
AdminKeyFile = Annotated[Path, typer.Option("--admin-key", metavar="FILE", help="an administrator's key")]
Role = Annotated[str, typer.Option(help="the role of that key: admin, owner or auditor")]
Ca = Annotated[Path | None, typer.Option("--broker-ca", metavar="PEM", help="the broker's certificate authority")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def connect(broker: str, admin_key: Path, role: str, ca: Path | None) -> BrokerAdmin:
    """An administrator's connection; raises `KeyFileInvalid`."""
    from strongroom.broker.client import BrokerAdmin

    return BrokerAdmin(broker, admin_key, role=role, ca=ca)
