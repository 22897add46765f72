"""`strongroom collateral`: fetch, bundle and show what vendors sign about hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.trust import STORE, PluginNames

Folder = Annotated[
    Path, typer.Option("--store", metavar="DIR", help="where endorsements are kept", envvar="STRONGROOM_COLLATERAL")
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def register(app: typer.Typer) -> None:
    """Attach the verb and what is under it."""
    verbs = typer.Typer(
        name="collateral",
        help="Fetch, bundle and show what vendors sign about hardware: certificates, TCB levels, RIMs, CRLs.",
        no_args_is_help=True,
    )
    verbs.command()(fetch)
    verbs.command()(bundle)
    verbs.command()(show)
    app.add_typer(verbs)


def fetch(
    evidence: Annotated[
        list[Path], typer.Argument(metavar="EVIDENCE…", help="evidence files, as `strongroom explain` takes them")
    ],
    tee: Annotated[str | None, typer.Option(metavar="TEE", help="what raw evidence is, where it does not say")] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="also get lists of the makers that it names")
    ] = None,
    plugin: PluginNames = None,
    store: Folder = STORE,
    pccs: Annotated[str | None, typer.Option(metavar="URL", help="a PCCS in place of Intel's own service")] = None,
    kds: Annotated[str, typer.Option(metavar="URL", help="AMD's key service, or a mirror")] = "https://kdsintf.amd.com",
    rim_service: Annotated[
        str, typer.Option(metavar="URL", help="NVIDIA's RIM service, or a mirror")
    ] = "https://rim.attestation.nvidia.com/v1/rim",
    folder: Annotated[
        list[Path] | None, typer.Option("--folder", metavar="DIR", help="also look for files here, first")
    ] = None,
    bundles: Annotated[
        list[Path] | None, typer.Option("--bundle", metavar="FILE", help="also look into this bundle, first")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="ask no service, only folders and bundles")] = False,
    early: Annotated[
        bool, typer.Option("--early", help="Intel's newest TCB recovery, not the one enforced now")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Get, verify and keep everything that the given evidence will be judged by.

    Example: `strongroom collateral fetch evidence.json --store /var/lib/strongroom/collateral`
    """
    import sys

    from strongroom.collateral import sources
    from strongroom.collateral.cache import EndorsementCache, Kept
    from strongroom.collateral.store import Store
    from strongroom.errors import ConfigurationInvalid
    from strongroom.evidence.policy import Policy
    from strongroom.evidence.presentation import read_evidence
    from strongroom.plugins import Plugins

    asked = sources.places(
        pccs=pccs, kds=kds, rim_service=rim_service, folders=folder or (), bundles=bundles or (), offline=offline,
        early=early,
    )  # fmt: skip
    cache = EndorsementCache(Store(store.expanduser()), asked)
    held = None if policy is None else Policy.load(policy, Plugins.load(plugin or ()).verifiers())
    kept: list[Kept] = []
    for path in evidence:
        try:
            octets = path.read_bytes()
        except OSError as error:
            raise ConfigurationInvalid(f"{path}: cannot be read: {error.strerror}") from error
        found, missing = cache.fetch_for(read_evidence(octets, tee=tee), held)
        kept += found
        for trouble in missing:
            print(f"not had, and only needed where a policy demands revocation status: {trouble}", file=sys.stderr)
    rows = [
        {"name": each.entry.wanted.name, "until": f"{each.expires:%Y-%m-%dT%H:%M:%SZ}", "source": each.source}
        for each in kept
    ]
    _print(rows, as_json)
    if not as_json:
        first = f", the first to expire on {min(row['until'] for row in rows)}" if rows else ""
        print(f"{store}: {len(rows)} endorsements kept{first}")


def bundle(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="the bundle to write, or to read with --import")],
    store: Folder = STORE,
    take_in: Annotated[bool, typer.Option("--import", help="read the bundle into the store instead")] = False,
    as_json: AsJson = False,
) -> None:
    """Write everything that holds now into one file for hosts without a network, or read such a file.

    Every entry is verified on both sides. Only an earlier bundle is replaced.
    Examples: `strongroom collateral bundle all.json`, and there `strongroom collateral bundle all.json --import`
    """
    import json
    import sys

    from strongroom.cli.drafts import replacing
    from strongroom.collateral.cache import EndorsementCache
    from strongroom.collateral.store import Store, read_bundle, write_bundle

    cache = EndorsementCache(Store(store.expanduser()), ())
    if take_in:
        kept, refused = cache.take_in(read_bundle(output))
        count = len(kept)
    else:
        found = cache.show()
        refused = [trouble for _, _, trouble in found if trouble]
    for trouble in refused:
        print(f"left out: {trouble}", file=sys.stderr)
    if not take_in:
        with replacing(output, read_bundle, "collateral bundle") as draft:
            count = write_bundle((entry for entry, _, trouble in found if not trouble), draft)
    if as_json:
        print(json.dumps({"file": str(output), "entries": count, "left_out": len(refused)}))
    else:
        print(f"{output}: {count} endorsements {'taken in' if take_in else 'written'}, {len(refused)} left out")


def show(store: Folder = STORE, as_json: AsJson = False) -> None:
    """Show what is kept, until when it holds, and what no longer does.

    Example: `strongroom collateral show`
    """
    from strongroom.collateral.cache import EndorsementCache
    from strongroom.collateral.store import Store

    rows = [
        {
            "name": entry.wanted.name,
            "fetched": f"{entry.fetched:%Y-%m-%dT%H:%M:%SZ}",
            "until": f"{expires:%Y-%m-%dT%H:%M:%SZ}" if expires else "",
            "trouble": trouble,
        }
        for entry, expires, trouble in EndorsementCache(Store(store.expanduser()), ()).show()
    ]
    _print(rows, as_json)
    if not as_json:
        bad = sum(bool(row["trouble"]) for row in rows)
        print(f"{store}: {len(rows)} endorsements, {bad} of them no longer good")


def _print(rows: list[dict[str, str]], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        said = row.get("trouble") or f"until {row['until']}"
        print(f"{row['name']}  {said}" + (f"  ({row['source']})" if "source" in row else ""))
