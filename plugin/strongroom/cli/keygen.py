"""`strongroom keygen`: keys for those who seal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from strongroom.errors import ConfigurationInvalid, KeyFileInvalid


def register(app: typer.Typer) -> None:
    """Attach the verbs."""
    keygen = typer.Typer(no_args_is_help=True, help="Make keys: `author` to sign, `identity` to open without a broker.")
    keygen.command()(author)
    keygen.command()(identity)
    app.add_typer(keygen, name="keygen")


def author(
    output: Annotated[
        Path, typer.Argument(metavar="NAME", help="writes NAME.key (private) and NAME.pub (public)")
    ] = Path("author"),
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="sign with ML-DSA-65 too, against quantum computers")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the id and the paths as JSON")] = False,
) -> None:
    """Make an author's key pair, which signs sealed archives.

    Example: `strongroom keygen author --hybrid alice` writes alice.key and alice.pub.
    """
    import json

    from strongroom.archive.signature import AuthorKey

    private, public = _names(output, ".key", ".pub")
    key = AuthorKey.generate("hybrid" if hybrid else "ed25519")
    key.save(private)
    key.public.save(public)
    if as_json:
        print(json.dumps({"id": str(key.public.id), "kind": key.kind.label, "key": str(private), "pub": str(public)}))
    else:
        print(f"{private}: author {key.public.id}; keep it to yourself, and give {public} to those who verify")


def identity(
    output: Annotated[
        Path, typer.Argument(metavar="NAME", help="writes NAME.identity (private) and NAME.recipient (public)")
    ] = Path("backup"),
    classical: Annotated[
        bool, typer.Option("--classical", help="X25519 alone instead of X-Wing, for recipients that others wrote")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the kind and the paths as JSON")] = False,
) -> None:
    """Make a key pair that can open archives sealed to it, without a broker.

    Example: `strongroom keygen identity escrow`, then `strongroom seal … --recipient escrow.recipient`.
    """
    import json

    from strongroom.archive.recipients import KeyIdentity

    private, public = _names(output, ".identity", ".recipient")
    made = KeyIdentity.generate("x25519" if classical else "xwing")
    made.save(private)
    made.recipient.save(public)
    if as_json:
        print(json.dumps({"kind": made.kind.label, "identity": str(private), "recipient": str(public)}))
    else:
        print(f"{private}: {made.kind.label} identity; keep it to yourself, and give {public} to those who seal")


def _names(output: Path, *endings: str) -> list[Path]:
    """Where both halves go; raises `ConfigurationInvalid` for no name, `KeyFileInvalid` unless both are free."""
    if output.name in {"", ".."}:
        raise ConfigurationInvalid(
            f"{str(output)!r} gives no name for key files", hint="say a name, as in `strongroom keygen author alice`"
        )
    found = [output.with_name(output.name + each) for each in endings]
    for path in found:
        if os.path.lexists(path):
            raise KeyFileInvalid(f"{path} exists already", hint="choose another name; keys are not overwritten")
    return found
