"""`strongroom verify-server`: hold a server's evidence against a policy, and show every check."""

from __future__ import annotations

from typing import Annotated

import typer

from strongroom.cli.trust import STORE, CaFile, Collateral, Kems, Offline, PluginNames, PolicyFile, Timeout, Token


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command("verify-server")(verify_server)


def verify_server(
    url: Annotated[str, typer.Argument(metavar="URL", help="a model's endpoint")],
    policy: PolicyFile,
    token: Token = None,
    kem: Kems = None,
    plugin: PluginNames = None,
    collateral: Collateral = STORE,
    offline: Offline = False,
    timeout: Timeout = 60.0,
    cacert: CaFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Ask a server for its evidence over a fresh nonce and judge it. Nothing else is sent.

    Example: `strongroom verify-server http://host:8080/predictions/digits --policy policy.toml`
    """
    import json

    from strongroom.cli.trust import make_adapter, outer_arguments, reached, read_token
    from strongroom.errors import ServerRefused
    from strongroom.evidence.judge import format_checks
    from strongroom.evidence.types import Check

    adapter = make_adapter(policy, kems=kem, plugins=plugin, collateral=collateral, offline=offline)
    bearer = read_token(token)
    headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
    try:
        with reached(url):
            server = adapter.verify_server(url, headers, **outer_arguments(timeout, cacert))
    except ServerRefused as error:
        checks = [check for check in error.checks if isinstance(check, Check)]
        if as_json:
            print(json.dumps({"accepted": False, "checks": [check.serialise() for check in checks]}))
        else:
            print("\n".join(format_checks(checks)))
        raise
    if as_json:
        print(json.dumps(server.serialise()))
        return
    print("\n".join(f"ok    {check.name}: expected {check.expected}, found {check.found}" for check in server.checks))
    model = server.parts.model
    print(f"{model.name} {model.version}: {len(server.checks)} checks passed, requests are sealed with {server.suite}")
