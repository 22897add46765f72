"""`strongroom proxy`: plain HTTP on loopback, sealed beyond."""

from __future__ import annotations

from typing import Annotated

import typer

from strongroom.cli.trust import STORE, CaFile, Collateral, Kems, Offline, PluginNames, PolicyFile, Timeout


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(proxy)


def proxy(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="the server's address, http://host:8080")],
    policy: PolicyFile,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="on 127.0.0.1; 0 takes a free one")
    ] = 8765,
    origin: Annotated[
        list[str] | None, typer.Option("--origin", metavar="ORIGIN", help="a web origin that may use it (repeatable)")
    ] = None,
    padding: Annotated[
        str, typer.Option("--padding", metavar="POLICY", help="none, power-of-two or bucket:BYTES")
    ] = "none",
    kem: Kems = None,
    plugin: PluginNames = None,
    collateral: Collateral = STORE,
    offline: Offline = False,
    timeout: Timeout = 600.0,
    cacert: CaFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the address as JSON")] = False,
) -> None:
    """Let curl, a browser or any SDK talk plain HTTP to this machine, and sealed requests go on from here.

    Example: `strongroom proxy http://host:8080 --policy policy.toml`, then
    `curl http://127.0.0.1:8765/predictions/digits -T scan.png`
    """
    import json
    import signal
    import sys
    import threading

    from strongroom.cli.trust import check_address, make_adapter, outer_arguments
    from strongroom.client.proxy import SealedProxy

    check_address(server)
    adapter = make_adapter(policy, kems=kem, plugins=plugin, collateral=collateral, offline=offline, padding=padding)
    running = SealedProxy(server, adapter, port=port, origins=origin or (), **outer_arguments(timeout, cacert))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    running.start()
    print(json.dumps({"url": running.url}) if as_json else f"{running.url} leads to {server}, sealed", flush=True)
    stop.wait()
    running.close()
    print("strongroom: stopped", file=sys.stderr)
