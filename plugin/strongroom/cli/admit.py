"""`strongroom admit`: every check of a launch, and no launch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": False}


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command(context_settings=CONTEXT)(admit)


def admit(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- torchserve …", help="as for `strongroom launch`")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="the configuration (docs/configuration.md)")
    ] = None,
    write_expected: Annotated[
        Path | None, typer.Option(metavar="FILE", help="list the installed distributions, for [surroundings]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the admitted archives as JSON")] = False,
) -> None:
    """Check configuration, surroundings, flags and archives as `launch` does, and start nothing.

    Examples: `strongroom admit --config strongroom.toml -- torchserve --start --model-store model_store
    --models digits=digits.mar` · `strongroom admit --write-expected installed.json`
    """
    import shutil

    from strongroom.adapters.torchserve.launcher import describe, prepare
    from strongroom.launch.surroundings import Installed

    if write_expected is not None:
        installed = Installed.all()
        Installed.write(write_expected, installed)
        print(f"{write_expected}: {len(installed)} distributions", file=sys.stderr if as_json else sys.stdout)
    if config is None or not command:
        if write_expected is None:
            raise typer.BadParameter("give --config FILE and the server's command behind --")
        return
    prepared = prepare(config, command)
    shutil.rmtree(prepared.folder, ignore_errors=True)
    for warning in prepared.warnings:
        print(f"strongroom: warning: {warning}", file=sys.stderr)
    print(f"strongroom: model keys would come from {prepared.keys}", file=sys.stderr)
    if as_json:
        print(describe(prepared.admitted))
        return
    for each in prepared.admitted:
        print(f"{each.name}: archive {each.archive}, author {each.author}, version {each.version} of {each.lineage}")
    print(f"{len(prepared.admitted)} archives would be served")
