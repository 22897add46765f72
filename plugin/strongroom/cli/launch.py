"""`strongroom launch`: admission first, then the keeper and stock TorchServe, watched together."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from strongroom.launch.variables import check_environment

CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": False}


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command(context_settings=CONTEXT)(launch)


def launch(
    command: Annotated[
        list[str], typer.Argument(metavar="-- torchserve …", help="stock TorchServe with its usual flags")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="the configuration (docs/configuration.md)")
    ] = None,
    init_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the configuration in an init-data file that the hardware vouches for"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the admitted archives as JSON on stdout")] = False,
) -> None:
    """Check the archives, open them in a keeper, and serve them with stock TorchServe.

    With --init-data (docs/attestation/init-data.md) authors, broker and settings are those that the guest was started
    with: the launch is refused where the hardware holds another digest.

    Example: `strongroom launch --config strongroom.toml -- torchserve --start --model-store model_store
    --models digits=digits.mar --ts-config config.properties --ncs`
    """
    check_environment(os.environ)  # before anything is read or opened
    from strongroom.adapters.torchserve.launcher import describe, prepare, run
    from strongroom.errors import WrongUse

    if (config is None) == (init_data is None):
        raise WrongUse("the configuration comes from one place", hint="give --config FILE, or --init-data FILE")
    prepared = prepare(config, command, init_data=init_data)
    if as_json:
        print(describe(prepared.admitted), flush=True)
    for each in prepared.admitted:
        say(f"strongroom: admitted {each.name}: archive {each.archive}, author {each.author}")
    run(prepared, say=say)


def say(line: str) -> None:
    """One line on stderr, if it can be written: a log whose disk is full ends no server."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
