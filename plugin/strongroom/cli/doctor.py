"""`strongroom doctor`: which TEE this machine is, what is missing, how well memory is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(doctor)


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="look also at where its model keys come from")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", metavar="NAME", help="load this plugin too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Look at this machine: TEE devices, the attester that would be used, what is missing, how memory is kept.

    Two processes harden themselves as a keeper and a worker do, and try each other.

    Examples: `strongroom doctor` · `strongroom doctor --config strongroom.toml`, which also looks at where model keys
    come from. Exit status 0 where a hardware TEE can be used and no key source is missing, else 1.
    """
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from strongroom.attest.machine import chosen, hardening, processes, summary, tees
    from strongroom.keeper.sources import missing, origin
    from strongroom.launch.config import Configuration
    from strongroom.plugins import Plugins

    configuration = None if config is None else Configuration.load(config)
    plugins = Plugins.load(dict.fromkeys([*(configuration.plugins if configuration else ()), *(plugin or ())]))
    findings, shields = tees(plugins), [*hardening(), *processes()]
    tee = chosen(findings)
    keys, lacks = ("", "") if configuration is None else (origin(configuration), missing(configuration, plugins))
    if as_json:
        told: dict[str, Any] = {
            "attester": tee,
            "tees": [each.serialise() for each in findings],
            "hardening": [each.serialise() for each in shields],
        }
        if configuration is not None:
            told["keys"] = {"provider": configuration.keys.provider, "from": keys, "missing": lacks}
        print(json.dumps(told))
    else:
        console = Console()
        table = Table(title="TEEs", title_justify="left")
        for heading in ("", "TEE", "attester", "verifier"):
            table.add_column(heading, overflow="fold")
        for each in findings:
            mark = "[green]here[/green]" if not each.missing else "[dim]no[/dim]"
            table.add_row(mark, each.tee, each.missing or "ready", each.verifier or "ready")
        console.print(table)
        for shield in shields:
            mark = "[green]ok  [/green]" if shield.ok else "[yellow]look[/yellow]"
            rest = "" if shield.ok else f"; next: {shield.hint}"
            console.print(f"{mark} {escape(f'{shield.what}: {shield.found}{rest}')}", soft_wrap=True, highlight=False)
        looks = sum(not each.ok for each in shields)
        rest = f"; {looks} of {len(shields)} protections want a look" if looks else "; every protection holds"
        if keys:
            print(f"model keys come from {keys}: {lacks or 'ready'}")
        print(summary(findings) + rest)
    if tee is None or lacks:
        raise typer.Exit(1)
