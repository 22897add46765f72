"""What the broker's commands have in common: where it is, who asks, and how the result is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strongroom.errors import WrongUse

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

ROLES = ("admin", "owner", "auditor")
"""Who may ask: everything, the keys of one repository, or reading alone."""

Url = Annotated[str, typer.Option("--broker", metavar="URL", help="the key broker")]
AdminKeyFile = Annotated[Path, typer.Option("--admin-key", metavar="FILE", help="an administrator's key")]
Role = Annotated[str, typer.Option(help="the role of that key: admin, owner or auditor")]
Ca = Annotated[Path | None, typer.Option("--broker-ca", metavar="PEM", help="the broker's certificate authority")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def connect(broker: str, admin_key: Path, role: str, ca: Path | None) -> BrokerAdmin:
    """An administrator's connection; raises `KeyFileInvalid`, and `WrongUse` for a role that nobody has."""
    from strongroom.broker.client import BrokerAdmin

    if role not in ROLES:
        raise WrongUse(f"--role {role}: nobody has such a role", hint=f"one of {', '.join(ROLES)}")
    return BrokerAdmin(broker, admin_key, role=role, ca=ca)


def tell(line: str, *, as_json: bool, **fields: object) -> None:
    """The one happy line, or its JSON."""
    print(json.dumps(fields) if as_json else line)
