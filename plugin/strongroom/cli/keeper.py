"""`strongroom keeper`: the process that holds the keys, as `launch` starts it or as a service of its own."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(keeper)


def keeper(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="the configuration (docs/configuration.md)")],
    models: Annotated[list[str] | None, typer.Argument(metavar="NAME=ARCHIVE…", help="sealed archives to hold")] = None,
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="where workers find it")] = None,
    charged: Annotated[bool, typer.Option("--charged", hidden=True, help="the launcher's list comes on stdin")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the socket and the archives as JSON")] = False,
) -> None:
    """Hold model keys and request keys for the workers of this host.

    `strongroom launch` starts one by itself. As a service of its own:

    Example: `strongroom keeper --config strongroom.toml digits=model_store/digits.mar`
    """
    import json
    import tempfile

    from strongroom.errors import WrongUse
    from strongroom.keeper.process import Charge, pinned_ca, run
    from strongroom.launch.admission import Gate
    from strongroom.launch.config import Configuration
    from strongroom.launch.measured import trust_roots
    from strongroom.worker.link import DEFAULT_SOCKET

    configuration = Configuration.load(config)
    if charged:
        charge = Charge.parse(sys.stdin.buffer.read())
    else:
        pairs = dict(each.partition("=")[::2] for each in models or [])
        if not pairs or not all(pairs.values()):
            raise WrongUse("no archive is named", hint="strongroom keeper --config FILE digits=digits.mar")
        gate = Gate.of(configuration)
        with tempfile.TemporaryDirectory() as fronts:  # admission writes fronts; a bare keeper needs none
            named = {name: Path(path) for name, path in pairs.items()}
            admitted = gate.admit(named, Path(fronts))
        _, authority = pinned_ca(configuration.broker.ca if configuration.broker is not None else None)
        roots = trust_roots((each.id for each in gate.authors), authority)
        charge = Charge(tuple(admitted), None, configuration.digest, roots)
    socket = socket or DEFAULT_SOCKET
    if charged:  # the launcher tells its own story
        run(configuration, charge, socket)
        return

    def ready() -> None:
        archives = {each.name: str(each.archive) for each in charge.admitted}
        told = json.dumps({"socket": str(socket), "archives": archives})
        with contextlib.suppress(OSError):  # a log whose disk is full ends no keeper
            print(told if as_json else f"keeper ready at {socket}, {len(archives)} archives", flush=True)

    run(configuration, charge, socket, ready=ready)
    with contextlib.suppress(OSError):
        print("strongroom: stopped", file=sys.stderr)
