"""`strongroom explain`: why a verdict is what it is, what evidence says, what an error means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

WIDE = 110
"""Columns of a terminal from which on the table shows sources too; ``--json`` always has them."""


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(explain)


def explain(
    what: Annotated[str, typer.Argument(metavar="FILE|ERROR", help="a verdict, evidence, or the name of an error")],
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="hold evidence against this policy")] = None,
    tee: Annotated[str | None, typer.Option(metavar="TEE", help="what raw evidence is, where it does not say")] = None,
    endorsement: Annotated[
        list[str] | None, typer.Option("--endorsement", metavar="ROLE=FILE", help="vcek=…, collateral=…, crl=…")
    ] = None,
    report_data: Annotated[
        str | None, typer.Option("--report-data", metavar="HEX", help="what the evidence has to be bound to")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="judge as of this time (RFC 3339); default now")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", metavar="NAME", help="load this plugin too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Explain a verdict, a piece of evidence, or an error.

    Examples: `strongroom explain refusal.json` · `strongroom explain report.bin --endorsement vcek=vcek.der` ·
    `strongroom explain ReleaseDenied`
    """
    from strongroom.errors import ConfigurationInvalid

    path = Path(what)
    if not path.exists():
        if not what.isidentifier():
            raise ConfigurationInvalid(f"{what}: no such file", hint="give a file, or the name of an error")
        return _explain_error(what, as_json)
    octets = path.read_bytes()
    told = _verdict_in(octets)
    if told is not None:
        _show(told, f"{path}", as_json=as_json)
        return None
    _explain_evidence(octets, path, policy, tee, endorsement or [], report_data, at, plugin or [], as_json)
    return None


def _explain_error(name: str, as_json: bool) -> None:
    import json

    from strongroom import errors

    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.StrongroomError)):
        known = sorted(each for each in vars(errors) if isinstance(getattr(errors, each), type))
        raise errors.ConfigurationInvalid(
            f"{name} is neither a file nor one of our errors", hint="errors: " + ", ".join(known)
        )
    parents = [each.__name__ for each in kind.__mro__[1:] if issubclass(each, errors.StrongroomError)]
    meaning = " ".join((kind.__doc__ or "").split())
    if as_json:
        print(json.dumps({"error": name, "meaning": meaning, "parents": parents}))
    else:
        print(f"{name}: {meaning}")
        print(f"a kind of {' < '.join(parents)}; docs/errors.md says what to do")


def _verdict_in(octets: bytes) -> dict[str, Any] | None:
    """The verdict or refusal in a JSON file, as our tools write them; None for anything else."""
    from strongroom.encoding import parse_json
    from strongroom.errors import MalformedInput

    try:
        value = parse_json(octets, where="file", limit=1 << 24)
    except MalformedInput:
        return None
    for each in (value, value.get("verdict"), value.get("refusal")) if isinstance(value, dict) else ():
        if isinstance(each, dict) and ("submodules" in each or "checks" in each):
            return each
    return None


def _explain_evidence(
    octets: bytes,
    path: Path,
    policy_path: Path | None,
    tee: str | None,
    endorsement: list[str],
    report_data: str | None,
    at: str | None,
    plugin: list[str],
    as_json: bool,
) -> None:
    from datetime import UTC, datetime

    from strongroom.encoding import unhex
    from strongroom.errors import ConfigurationInvalid
    from strongroom.evidence.judge import Presented, check_binding, examine, serialise_claims
    from strongroom.evidence.policy import Policy
    from strongroom.evidence.presentation import read_evidence
    from strongroom.evidence.types import Checklist, Endorsements
    from strongroom.plugins import Plugins

    verifiers = Plugins.load(plugin).verifiers()
    evidence = read_evidence(octets, tee=tee)
    items = {}
    for each in endorsement:
        role, equals, name = each.partition("=")
        if not equals or not Path(name).is_file():
            raise ConfigurationInvalid(f"--endorsement {each}: ROLE=FILE is expected, with a file that is there")
        items[role] = Path(name).read_bytes()
    if policy_path is not None:
        policy = Policy.load(policy_path, verifiers)
    else:
        policy = Policy.parse(_strictest(evidence.tee, verifiers), verifiers)
    try:
        now = datetime.now(UTC) if at is None else datetime.fromisoformat(at).astimezone(UTC)
    except ValueError as error:
        raise ConfigurationInvalid(f"--at {at}: not a time, for instance 2026-05-01T00:00:00Z") from error
    checks = Checklist()
    claims = examine(Presented(evidence, Endorsements(items)), policy, now, verifiers, checks)
    if claims is not None and report_data is not None:
        check_binding(claims, unhex(report_data, where="--report-data"), checks)
    told = {
        "accepted": claims is not None and not checks.failed,
        "policy": policy.name,
        "tee": evidence.tee,
        "bound": report_data is not None,
        "checks": [check.serialise() for check in checks],
        "claims": serialise_claims(claims) if claims is not None else {},
    }
    _show(told, str(path), as_json=as_json)


def _strictest(tee: str, verifiers: Mapping[str, Any]) -> str:
    """A policy with an empty table for this TEE: everything that can be checked without values of one's own."""
    from strongroom.errors import EvidenceMalformed

    if tee not in verifiers:
        raise EvidenceMalformed(f"no verifier for {tee!r} is loaded", hint="name its plugin with --plugin")
    table = "protects_nothing = true\nany_measurement = true\n" if tee == "simulated" else ""
    return f'name = "strictest defaults, no values of your own"\n["{tee}"]\n{table}'


def _show(told: Mapping[str, Any], name: str, *, as_json: bool) -> None:
    """Print a verdict, a refusal or explained evidence; exit with 1 where something failed."""
    import json

    groups = told.get("submodules") or {told.get("tee", ""): told}
    checks = told["checks"] if "checks" in told else [c for each in groups.values() for c in each.get("checks", [])]
    failed = [check for check in checks if not check.get("ok")]
    accepted = told.get("accepted", not failed) and bool(checks) and not failed
    if as_json:
        print(json.dumps(told))
    else:
        for label, group in groups.items():
            _table(label, group.get("checks", []), group.get("claims", {}))
        if accepted:
            bound = "" if told.get("bound", True) else "; it was not compared with any report data"
            print(f"{name}: all {len(checks)} checks hold under policy {told.get('policy', '?')!r}{bound}")
        else:
            print(f"{name}: refused, {len(failed)} of {len(checks)} checks failed")
            for check in failed:
                source = f" ({check['source']})" if check.get("source") else ""
                print(f"  {check['name']}: {check.get('hint') or 'no next step is known'}{source}")
    if not accepted:
        raise typer.Exit(1)


def _table(label: str, checks: Iterable[Mapping[str, Any]], claims: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    columns = ("expected", "found", "source") if console.width >= WIDE else ("expected", "found")
    table = Table(title=label or None, title_justify="left")
    table.add_column("")
    table.add_column("check", no_wrap=True)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = "[green]ok[/green]" if check["ok"] else "[bold red]FAIL[/bold red]"
        table.add_row(mark, escape(str(check["name"])), *(escape(_short(check.get(each, ""))) for each in columns))
    console.print(table)
    if claims:
        said = Table(title="claims", title_justify="left")
        for heading in ("claim", "value", "says who"):
            said.add_column(heading, overflow="fold")
        for name, claim in claims.items():
            said.add_row(escape(name), escape(_short(claim.get("value"))), str(claim.get("provenance", "")))
        console.print(said)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
