"""`strongroom seal`: from an ordinary model to a sealed, signed one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli import terms


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(seal)


def seal(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL.mar", help="an ordinary archive (zip, tar.gz) or model folder")
    ],
    author: terms.Author,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="SEALED.mar")] = None,
    broker: terms.Broker = None,
    admin_key: terms.AdminKey = None,
    broker_ca: terms.BrokerCa = None,
    lease: terms.Lease = None,
    key_out: terms.KeyOut = None,
    recipient: terms.Recipients = None,
    passphrase: terms.Passphrase = False,
    tenant: terms.Tenant = "default",
    lineage: terms.Lineage = None,
    version: terms.Version = 1,
    expires: terms.Expires = None,
    lease_required: terms.LeaseRequired = False,
    owner: terms.Owner = None,
    broker_key: terms.BrokerKey = None,
    directory: Annotated[bool, typer.Option("--directory", help="write an unpacked model folder (no-archive)")] = False,
    padding: terms.Padding = False,
    allow_requirements: terms.AllowRequirements = False,
    force: Annotated[bool, typer.Option("--force", help="replace the output if it exists")] = False,
    plugin: terms.PluginNames = None,
    as_json: terms.AsJson = False,
) -> None:
    """Encrypt and sign an archive; stock TorchServe still registers it.

    Example: `strongroom seal resnet.mar --author author.key --broker https://keys.example
    --admin-key admin.key`
    """
    from strongroom.archive.seal import Terms
    from strongroom.archive.source import open_source
    from strongroom.cli import sealing

    expiry = sealing.moment(expires)
    output = output or sealing.output_for(source, directory=directory)
    keep = sealing.holder(
        broker,
        admin_key,
        key_out,
        output=output,
        version=version,
        lease_s=lease,
        ca=broker_ca,
        others=bool(recipient) or passphrase,
    )
    with open_source(source) as opened:
        sealing.seal_for(
            opened,
            output,
            author=author,
            terms=Terms(
                tenant=tenant,
                lineage=lineage,
                version=version,
                expiry=expiry,
                lease_required=lease_required,
                broker_key=sealing.broker_key(broker_key, broker, admin_key, broker_ca),
                owner=owner,
            ),
            keep=keep,
            recipients=recipient or (),
            passphrase=passphrase,
            plugins=plugin or (),
            form="directory" if directory else "file",
            padding=padding,
            allow_requirements=allow_requirements,
            overwrite=force,
            as_json=as_json,
        )
