"""`strongroom seal`: from an ordinary model to a sealed, signed one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strongroom.cli.connection import ARCHIVE_VERSION_LIMIT, LEASE_LIMIT_S

if TYPE_CHECKING:
    from strongroom.archive.seal import Sealed


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(seal)


def seal(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL.mar", help="an ordinary archive (zip, tar.gz) or model folder")
    ],
    author: Annotated[str, typer.Option("--author", metavar="KEY", help="the private key that signs it")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="SEALED.mar")] = None,
    broker: Annotated[str | None, typer.Option(metavar="URL", help="the key broker that will hold its key")] = None,
    admin_key: Annotated[Path | None, typer.Option(metavar="FILE", help="who may register keys at the broker")] = None,
    broker_ca: Annotated[Path | None, typer.Option(metavar="PEM", help="the broker's certificate authority")] = None,
    lease: Annotated[
        int | None,
        typer.Option(min=1, max=LEASE_LIMIT_S, metavar="SECONDS", help="how long a server may keep the key at a time"),
    ] = None,
    key_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the key to a file, or into a folder as DIGEST.key")
    ] = None,
    recipient: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="who opens it without a broker; may be repeated")
    ] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="ask for a passphrase that opens it too")] = False,
    tenant: Annotated[str, typer.Option(help="who owns it, in the key's path at the broker")] = "default",
    lineage: Annotated[
        str | None, typer.Option(help="archives that replace each other share it; default: the model's name")
    ] = None,
    version: Annotated[
        int, typer.Option(min=1, max=ARCHIVE_VERSION_LIMIT, help="version within the lineage, for refusing old ones")
    ] = 1,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="refused from then on: 2027-01-31 or 2027-01-31T12:00:00Z")
    ] = None,
    lease_required: Annotated[bool, typer.Option(help="open it only under a broker's lease")] = False,
    owner: Annotated[str | None, typer.Option(help="owner or policy id for release policies")] = None,
    broker_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="who may sign epoch seeds (mode fleet); default: the broker of --broker"),
    ] = None,
    directory: Annotated[bool, typer.Option("--directory", help="write an unpacked model folder (no-archive)")] = False,
    padding: Annotated[bool, typer.Option("--padding", help="hide the exact size (Padmé, at most 12 % more)")] = False,
    allow_requirements: Annotated[
        bool, typer.Option("--allow-requirements", help="seal requirements.txt along; nobody installs it")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the output if it exists")] = False,
    plugin: Annotated[list[str] | None, typer.Option(metavar="NAME", help="load this plugin; may be repeated")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print digest, resource and sizes as JSON")] = False,
) -> None:
    """Encrypt and sign an archive; stock TorchServe still registers it.

    Example: `strongroom seal resnet.mar --author author.key --broker https://keys.example
    --admin-key admin.key`
    """
    from strongroom.archive.seal import seal_archive
    from strongroom.cli import sealing

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
    wraps = [sealing.recipient(each, plugin or ()) for each in recipient or ()]
    phrase = [sealing.ask_passphrase(confirm=True)] if passphrase else []
    with sealing.progress_bar("sealing", quiet=as_json) as progress:
        sealed: Sealed = seal_archive(
            source,
            output,
            author=sealing.signer(author, plugin or ()),
            tenant=tenant,
            lineage=lineage,
            version=version,
            expiry=sealing.moment(expires),
            lease_required=lease_required,
            owner=owner,
            broker_key=sealing.broker_key(broker_key, broker, admin_key, broker_ca),
            form="directory" if directory else "file",
            recipients=[*wraps, *phrase],
            padding=padding,
            allow_requirements=allow_requirements,
            overwrite=force,
            progress=progress,
            before_publish=keep,
        )
    sealing.report(sealed, as_json=as_json)
