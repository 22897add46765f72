"""`strongroom explain`: why a verdict is what it is, what evidence says, what an error means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strongroom.cli.trust import STORE, Collateral

if TYPE_CHECKING:
    from datetime import datetime

    from strongroom.evidence.policy import Policy
    from strongroom.evidence.told import Told
    from strongroom.evidence.types import Check, Endorsements, Evidence

WIDE = 110
"""Columns of a terminal from which on the table shows what was expected too; failures always say it."""


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
    collateral: Collateral = STORE,
    report_data: Annotated[
        str | None, typer.Option("--report-data", metavar="HEX", help="what the evidence has to be bound to")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="judge as of this time (UTC, unless it has a zone); default now"),
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", metavar="NAME", help="load this plugin too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Explain a verdict, a piece of evidence, or an error.

    Evidence is judged with the endorsements that --endorsement names and those that `strongroom collateral fetch` kept;
    nobody is asked over the network. A verdict may also be an entry of a broker's audit log.

    Examples: `strongroom explain refusal.json` · `strongroom explain report.bin --endorsement vcek=vcek.der` ·
    `strongroom explain ReleaseDenied`
    """
    from strongroom.errors import ConfigurationInvalid
    from strongroom.evidence.told import Told

    path = Path(what)
    if not path.exists():
        if not what.isidentifier():
            raise ConfigurationInvalid(f"{what}: no such file", hint="give a file, or the name of an error")
        return _explain_error(what, as_json)
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise ConfigurationInvalid(f"{path}: cannot be read: {error.strerror}") from error
    told = Told.parse(octets)
    if told is not None:
        return _show(told, f"{path}", as_json=octets.decode() if as_json else None)
    return _explain_evidence(
        octets, path, policy, tee, endorsement or [], collateral, report_data, at, plugin or [], as_json
    )


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


def _explain_evidence(
    octets: bytes,
    path: Path,
    policy_path: Path | None,
    tee: str | None,
    endorsement: list[str],
    store: Path,
    report_data: str | None,
    at: str | None,
    plugin: list[str],
    as_json: bool,
) -> None:
    import json
    from datetime import UTC, datetime

    from strongroom.cli.times import instant
    from strongroom.encoding import unhex
    from strongroom.evidence.judge import Presented, check_binding, examine, serialise_claims
    from strongroom.evidence.policy import Policy
    from strongroom.evidence.presentation import read_evidence
    from strongroom.evidence.told import Told
    from strongroom.evidence.types import Checklist
    from strongroom.plugins import Plugins

    verifiers = Plugins.load(plugin).verifiers()
    evidence = read_evidence(octets, tee=tee)
    if policy_path is not None:
        policy = Policy.load(policy_path, verifiers)
    else:
        policy = Policy.parse(_strictest(evidence.tee, verifiers), verifiers)
    now = datetime.now(UTC) if at is None else instant(at)
    endorsements = _endorsements(evidence, policy, endorsement, store, now)
    checks = Checklist()
    claims = examine(Presented(evidence, endorsements), policy, now, verifiers, checks)
    if claims is not None and report_data is not None:
        check_binding(claims, unhex(report_data, where="--report-data"), checks)
    said = {
        "accepted": claims is not None and not checks.failed,
        "policy": policy.name,
        "tee": evidence.tee,
        "bound": report_data is not None,
        "at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "endorsements": sorted(endorsements.items),
        "checks": [check.serialise() for check in checks],
        "claims": serialise_claims(claims) if claims is not None else {},
    }
    _show(Told.of(said), str(path), as_json=json.dumps(said) if as_json else None)


def _endorsements(evidence: Evidence, policy: Policy, named: list[str], store: Path, now: datetime) -> Endorsements:
    """What was kept for this evidence, and over it what the command line names."""
    from strongroom.collateral.cache import EndorsementCache
    from strongroom.collateral.store import Store
    from strongroom.errors import ConfigurationInvalid, WrongUse
    from strongroom.evidence.types import Endorsements

    items = dict(EndorsementCache(Store(store.expanduser()), (), clock=lambda: now)(evidence, policy).items)
    for each in named:
        role, equals, name = each.partition("=")
        if not equals:
            raise WrongUse(f"--endorsement {each} is not ROLE=FILE", hint="for instance --endorsement vcek=vcek.der")
        if not Path(name).is_file():
            raise ConfigurationInvalid(f"--endorsement {each}: there is no such file", hint="check the path")
        items[role] = Path(name).read_bytes()
    return Endorsements(items)


def _strictest(tee: str, verifiers: Mapping[str, Any]) -> str:
    """A policy with an empty table for this TEE: everything that can be checked without values of one's own."""
    from strongroom.errors import EvidenceMalformed

    if tee not in verifiers:
        raise EvidenceMalformed(f"no verifier for {tee!r} is loaded", hint="name its plugin with --plugin")
    table = "protects_nothing = true\nany_measurement = true\n" if tee == "simulated" else ""
    return f'name = "strictest defaults, no values of your own"\n["{tee}"]\n{table}'


def _show(told: Told, name: str, *, as_json: str | None) -> None:
    """Print a verdict, a refusal or explained evidence; exit with 1 where something failed."""
    if as_json is not None:
        print(as_json)
    else:
        for label, part in told.parts.items():
            _table(label, part.checks)
            _claims(part.claims)
        for check in told.failed:
            _failure(check)
        failed, number = told.failed, len(told.checks)
        if told.accepted:
            bound = "" if told.bound else "; it was not compared with any report data"
            print(f"{name}: all {number} checks hold under policy {told.policy!r}{bound}")
        elif not failed:
            print(f"{name}: refused, and no check says why")
        else:
            print(
                f"{name}: refused, {len(failed)} of {number} checks failed: {', '.join(each.name for each in failed)}"
            )
    if not told.accepted:
        raise typer.Exit(1)


def _failure(check: Check) -> None:
    """One failed check, whole, in lines that can be copied."""
    print(f"FAIL {check.name}")
    for label, text in (
        ("expected", check.expected),
        ("found", check.found),
        ("source", check.source),
        ("next", check.hint or "no next step is known; docs/attestation/ has a page for each TEE"),
    ):
        if text:
            print(f"     {label + ':':<9} {text}")
    print()


def _table(label: str, checks: Iterable[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    columns = ("expected", "found") if console.width >= WIDE else ("found",)
    table = Table(title=escape(label) or None, title_justify="left")
    table.add_column("")
    table.add_column("check", no_wrap=True)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = "[green]ok[/green]" if check.ok else "[bold red]FAIL[/bold red]"
        table.add_row(mark, escape(check.name), *(escape(_short(getattr(check, each))) for each in columns))
    console.print(table)


def _claims(claims: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not claims:
        return
    said = Table(title="claims", title_justify="left")
    for heading in ("claim", "value", "says who"):
        said.add_column(heading, overflow="fold")
    for name, claim in claims.items():
        said.add_row(escape(name), escape(_short(claim.get("value"))), escape(str(claim.get("provenance", ""))))
    Console().print(said)


def _short(value: object) -> str:
    text = str(value)
    if len(text) >= 32 and not text.strip("0"):
        return f"zeros ({len(text) // 2} bytes)"
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
