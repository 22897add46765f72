"""`strongroom demo`: the whole journey on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="leave it running and print commands to try")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as one JSON object")] = False,
) -> None:
    """Seal a model, serve it in stock TorchServe, ask it in secret, and watch four attacks being refused.

    Example: `strongroom demo --keep`. Needs strongroom[demo]; takes under a minute on two cores.
    """
    try:
        import sklearn  # noqa: F401
        import ts  # noqa: F401
    except ImportError as error:
        from strongroom.errors import ConfigurationInvalid

        raise ConfigurationInvalid(f"the demo needs {error.name}", hint="pip install 'strongroom[demo]'") from error
    from strongroom.demo.story import run

    run(keep=keep, as_json=as_json)
