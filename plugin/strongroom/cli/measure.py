"""`strongroom measure`: reference values for a policy, from this guest or from a piece of evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(measure)


def measure(
    evidence: Annotated[
        Path | None, typer.Argument(metavar="[EVIDENCE]", help="a report or quote; default: ask this machine")
    ] = None,
    tee: Annotated[str | None, typer.Option(metavar="TEE", help="attest as this TEE, or what raw evidence is")] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="the name of the policy")] = "measured",
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="keep the evidence too, for explain")] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", metavar="NAME", help="load this plugin too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Print a policy with the reference values that a guest has now. Nothing is verified: look before you trust.

    Examples: `strongroom measure > policy.toml` (in the guest) · `strongroom measure report.bin` ·
    `strongroom measure --tee simulated`
    """
    import json
    import secrets
    import sys

    from strongroom.attest.machine import chosen, tees
    from strongroom.errors import AttesterUnavailable
    from strongroom.evidence.presentation import read_evidence, write_evidence
    from strongroom.evidence.reference import reference_policy
    from strongroom.plugins import Plugins

    plugins = Plugins.load(plugin or [])
    if evidence is not None:
        found = read_evidence(evidence.read_bytes(), tee=tee)
    else:
        wanted = tee or chosen(tees(plugins))
        if wanted is None:
            raise AttesterUnavailable(
                "this machine has no TEE to measure", hint="`strongroom doctor` says what is missing; --tee names one"
            )
        found = plugins.attester(wanted).evidence(secrets.token_bytes(64))
    if save is not None:
        save.write_text(json.dumps(write_evidence(found)))
    measured = reference_policy(found, plugins.verifiers(), name=name)
    if as_json:
        print(json.dumps(measured.serialise()))
    else:
        print(measured.toml(), end="")
    print(
        f"{found.tee}: {len(measured.values)} reference values; check that this is the guest you trust", file=sys.stderr
    )
