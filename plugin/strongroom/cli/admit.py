"""`strongroom admit`: every check of a launch, and no launch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.drafts import replacing

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
    init_data: Annotated[Path | None, typer.Option(metavar="FILE", help="as for `strongroom launch`")] = None,
    write_init_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="pack the configuration and the keys it names, for --init-data")
    ] = None,
    algorithm: Annotated[
        str, typer.Option(metavar="HASH", help="with --write-init-data: sha256 (a TPM needs it), sha384 or sha512")
    ] = "sha256",
    write_expected: Annotated[
        Path | None, typer.Option(metavar="FILE", help="list the installed distributions, for [surroundings]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the admitted archives as JSON")] = False,
) -> None:
    """Check configuration, surroundings, flags and archives as `launch` does, and start nothing.

    Examples: `strongroom admit --config strongroom.toml -- torchserve --start --model-store model_store
    --models digits=digits.mar` · `strongroom admit --write-expected installed.json` ·
    `strongroom admit --config strongroom.toml --write-init-data init-data.toml`
    """
    import shutil

    from strongroom.adapters.torchserve.launcher import describe, prepare
    from strongroom.evidence.init_data import ALGORITHMS, InitData
    from strongroom.launch import init_files
    from strongroom.launch.surroundings import Installed

    aside = sys.stderr if as_json else sys.stdout
    if write_expected is not None:
        with replacing(write_expected, Installed.read, "list of distributions") as draft:
            installed = Installed.all()
            Installed.write(draft, installed)
        print(f"{write_expected}: {len(installed)} distributions", file=aside)
    if write_init_data is not None:
        if config is None or algorithm not in ALGORITHMS:
            raise typer.BadParameter(f"--write-init-data needs --config FILE, and one of {', '.join(ALGORITHMS)}")
        known = "init-data file"
        with replacing(write_init_data, lambda path: InitData.parse(path.read_text("utf-8")), known) as draft:
            packed = init_files.pack(config, algorithm=algorithm)
            draft.write_text(packed, "utf-8")
        print(f"{write_init_data}: {algorithm} {InitData.parse(packed).digest.hex()}", file=aside)
    if not command or (config is None and init_data is None):
        if write_expected is None and write_init_data is None:
            raise typer.BadParameter("give --config FILE or --init-data FILE, and the server's command behind --")
        return
    prepared = prepare(config, command, init_data=init_data)
    shutil.rmtree(prepared.folder, ignore_errors=True)
    for warning in prepared.warnings:
        print(f"strongroom: warning: {warning}", file=sys.stderr)
    print(f"strongroom: model keys would come from {prepared.keys}", file=sys.stderr)
    if as_json:
        print(describe(prepared.admitted))
        return
    for each in prepared.admitted:
        print(f"{each.name}: archive {each.archive}, author {each.author}, version {each.version} of {each.lineage}")
    for event in prepared.measured:  # what a policy may demand before the first launch: launch = { … }
        print(f"launch.{event.event} {event.digest.hex()}")
    count = len(prepared.admitted)
    print(f"{count} archive{'' if count == 1 else 's'} would be served")
