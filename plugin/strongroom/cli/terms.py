"""The options that `seal` and `archive` share: who signs, who opens it, and on which terms. `sealing` acts on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.connection import ARCHIVE_VERSION_LIMIT, LEASE_LIMIT_S

Author = Annotated[str, typer.Option("--author", metavar="KEY", help="the private key that signs it")]
Broker = Annotated[str | None, typer.Option(metavar="URL", help="the key broker that will hold its key")]
AdminKey = Annotated[Path | None, typer.Option(metavar="FILE", help="who may register keys at the broker")]
BrokerCa = Annotated[Path | None, typer.Option(metavar="PEM", help="the broker's certificate authority")]
BrokerKey = Annotated[
    Path | None,
    typer.Option(metavar="PEM", help="who may sign epoch seeds (mode fleet); default: the broker of --broker"),
]
Lease = Annotated[
    int | None,
    typer.Option(min=1, max=LEASE_LIMIT_S, metavar="SECONDS", help="how long a server may keep the key at a time"),
]
KeyOut = Annotated[
    Path | None, typer.Option(metavar="FILE", help="write the key to a file, or into a folder as DIGEST.key")
]
Recipients = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="who opens it without a broker; may be repeated")
]
Passphrase = Annotated[bool, typer.Option("--passphrase", help="ask for a passphrase that opens it too")]
Tenant = Annotated[str, typer.Option(help="who owns it, in the key's path at the broker")]
Lineage = Annotated[
    str | None, typer.Option(help="archives that replace each other share it; default: the model's name")
]
Version = Annotated[
    int, typer.Option(min=1, max=ARCHIVE_VERSION_LIMIT, help="version within the lineage, for refusing old ones")
]
Expires = Annotated[
    str | None, typer.Option(metavar="DATE", help="refused from then on: 2027-01-31 or 2027-01-31T12:00:00Z")
]
LeaseRequired = Annotated[bool, typer.Option("--lease-required", help="open it only under a broker's lease")]
Owner = Annotated[str | None, typer.Option(help="owner or policy id for release policies")]
Padding = Annotated[bool, typer.Option("--padding", help="hide the exact size (Padmé, at most 12 % more)")]
AllowRequirements = Annotated[
    bool, typer.Option("--allow-requirements", help="seal requirements.txt along; nobody installs it")
]
PluginNames = Annotated[list[str] | None, typer.Option(metavar="NAME", help="load this plugin; may be repeated")]
AsJson = Annotated[bool, typer.Option("--json", help="print digest, resource and sizes as JSON")]
