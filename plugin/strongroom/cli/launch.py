"""`strongroom launch`: admission, the keeper and stock TorchServe, started in that order and watched."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": False}


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command(context_settings=CONTEXT)(launch)


def launch(
    command: Annotated[
        list[str], typer.Argument(metavar="-- torchserve …", help="stock TorchServe with its usual flags")
    ],
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="the configuration (docs/configuration.md)")],
    patience: Annotated[
        float, typer.Option(help="seconds to wait for model keys before TorchServe starts anyway")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="print the admitted archives as JSON on stdout")] = False,
) -> None:
    """Check the archives, open them in a keeper, and serve them with stock TorchServe.

    Example: `strongroom launch --config strongroom.toml -- torchserve --start --model-store model_store
    --models digits=digits.mar --ts-config config.properties --ncs`
    """
    from strongroom.adapters.torchserve.launcher import describe, prepare, run

    prepared = prepare(config, command)
    if as_json:
        print(describe(prepared.admitted), flush=True)
    for each in prepared.admitted:
        say(f"strongroom: admitted {each.name}: archive {each.archive}, author {each.author}")
    run(prepared, patience=patience, say=say)
    say("strongroom: stopped; nothing was left behind")


def say(line: str) -> None:
    """One line on stderr, if it can be written: a log whose disk is full ends no server."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
