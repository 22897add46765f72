"""What every command that asks a running broker has in common: where it is, and who asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from strongroom.broker.client import BrokerAdmin

Url = Annotated[str, typer.Option("--broker", metavar="URL", help="the key broker")]
AdminKeyFile = Annotated[Path, typer.Option("--admin-key", metavar="FILE", help="an administrator's key")]
Role = Annotated[str, typer.Option(help="the role of that key: admin, owner or auditor")]
Ca = Annotated[Path | None, typer.Option("--broker-ca", metavar="PEM", help="the broker's certificate authority")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def connect(broker: str, admin_key: Path, role: str, ca: Path | None) -> BrokerAdmin:
    """An administrator's connection; raises `KeyFileInvalid`."""
    from strongroom.broker.client import BrokerAdmin

    return BrokerAdmin(broker, admin_key, role=role, ca=ca)
