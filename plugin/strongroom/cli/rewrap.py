"""`strongroom rewrap`: change who opens an archive without a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(rewrap)


def rewrap(
    path: Annotated[Path, typer.Argument(metavar="SEALED.mar", help="a sealed archive of either form")],
    identity: Annotated[
        str | None, typer.Option("--identity", metavar="FILE", help="an identity that opens it now")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="its model key, instead")] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="a passphrase opens it now; asks for it")] = False,
    add: Annotated[list[str] | None, typer.Option(metavar="FILE", help="recipient to add; may be repeated")] = None,
    add_passphrase: Annotated[bool, typer.Option("--add-passphrase", help="ask for a passphrase to add")] = False,
    remove: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="recipient to remove; may be repeated")
    ] = None,
    remove_passphrases: Annotated[bool, typer.Option("--remove-passphrases", help="remove all passphrases")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="remove all present recipients")] = False,
    allow_none: Annotated[
        bool, typer.Option("--allow-none", help="leave no recipient at all; a broker or somebody else keeps the key")
    ] = False,
    plugin: Annotated[list[str] | None, typer.Option(metavar="NAME", help="load this plugin; may be repeated")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the new recipients as JSON")] = False,
) -> None:
    """Add, remove or replace recipients; neither payload nor signature is touched.

    Example: `strongroom rewrap resnet.sealed.mar --identity escrow.identity --add ci.recipient`.
    Who had the key may have kept it: removing a recipient is not revocation, sealing again is.
    """
    import json

    from strongroom.archive.modelkey import load_model_key
    from strongroom.archive.recipients import Recipient, kind_name
    from strongroom.archive.rewrap import rewrap_archive
    from strongroom.archive.slots import PASSPHRASE, Slot
    from strongroom.cli import sealing
    from strongroom.errors import WrongUse
    from strongroom.keys import ArchiveDigest

    if identity is None and key is None and not passphrase:
        raise WrongUse("nothing is named that opens it", hint="give --identity FILE, --key FILE or --passphrase")

    def drop(slot: Slot, digest: ArchiveDigest) -> bool:
        return replace or (remove_passphrases and slot.kind == PASSPHRASE)

    identities = [sealing.identity(identity, plugin or ())] if identity is not None else []
    slots = rewrap_archive(
        path,
        key=None if key is None else load_model_key(key),
        identities=[*identities, *([sealing.ask_passphrase(confirm=False)] if passphrase else [])],
        add=[
            *(sealing.recipient(each, plugin or ()) for each in add or ()),
            *([sealing.ask_passphrase(confirm=True)] if add_passphrase else []),
        ],
        remove={str(each): Recipient.load(each) for each in remove or ()},
        drop=drop,
        allow_none=allow_none,
    )
    kinds = [kind_name(slot) for slot in slots]
    if as_json:
        print(json.dumps({"path": str(path), "recipients": kinds}))
    else:
        print(f"{path}: {len(kinds)} recipients now ({', '.join(kinds) or 'none'})")
