"""`strongroom verify`: an author's signature over every byte of an archive, without its key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(verify)


def verify(
    path: Annotated[Path, typer.Argument(metavar="SEALED.mar", help="a sealed archive of either form")],
    author: Annotated[list[Path], typer.Option("--author", metavar="PUB", help="an author you trust; may be repeated")],
    demand: Annotated[str | None, typer.Option(metavar="KIND", help="refuse less than ed25519 or hybrid")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="also open it with this model key")] = None,
    identity: Annotated[
        str | None, typer.Option("--identity", metavar="FILE", help="also open it with this identity")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(metavar="NAME", help="load this plugin; may be repeated")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Check an archive's author and every byte of it.

    Example: `strongroom verify resnet.sealed.mar --author author.pub`
    """
    import json
    from datetime import UTC, datetime

    from strongroom.archive.modelkey import load_model_key
    from strongroom.archive.signature import AuthorPublic, SignatureKind
    from strongroom.archive.unseal import SealedArchive
    from strongroom.cli import sealing
    from strongroom.errors import WrongUse

    if key is not None and identity is not None:
        raise WrongUse("--key and --identity each open the archive", hint="give one of them")
    kinds = [each.label for each in SignatureKind]
    if demand is not None and demand not in kinds:
        raise WrongUse(f"--demand {demand}: no signature is of that kind", hint=f"one of {', '.join(kinds)}")
    authors = [AuthorPublic.load(each) for each in author]
    with SealedArchive.open(path) as archive, sealing.progress_bar("verifying", quiet=as_json) as progress:
        verified = archive.verified(authors, now=datetime.now(UTC), demand=demand)
        block = verified.core.grid.block
        verified.check_payload(progress=progress and (lambda done, total: progress(done * block, total * block)))
        opened = None
        if key is not None:
            opened = verified.unlock(load_model_key(key, of=verified.digest))
        elif identity is not None:
            opened = verified.unlock_with([sealing.identity(identity, plugin or ())])
        if opened is not None:
            opened.check_slots()
            opened.check_members(progress)
        size, digest, by = verified.core.payload_length, verified.digest, verified.author
    if as_json:
        fields = {
            "path": str(path),
            "digest": str(digest),
            "author": str(by.id),
            "kind": by.kind.label,
            "opened": opened is not None,
        }
        print(json.dumps(fields))
    else:
        inside = f", and its {len(opened.members)} files open" if opened is not None else ""
        print(f"{path}: signed by {by.id} ({by.kind.label}), all {size} payload bytes are as signed{inside}")
