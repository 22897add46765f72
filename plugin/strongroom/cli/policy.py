"""`strongroom policy`: what a broker accepts, and trying a policy before it is in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strongroom.cli.connection import AdminKeyFile, AsJson, Ca, Role, Url, connect, tell
from strongroom.cli.trust import STORE, Collateral, Offline, PluginNames

if TYPE_CHECKING:
    from strongroom.broker.rego import ReleasePolicy


def register(app: typer.Typer) -> None:
    """Attach the verb and what is under it."""
    verbs = typer.Typer(name="policy", help="What a broker accepts, and trying it first.", no_args_is_help=True)
    verbs.command(name="set")(set_policy)
    verbs.command()(get)
    verbs.command()(allow)
    verbs.command(name="test")(try_policy)
    verbs.command()(templates)
    app.add_typer(verbs)


def set_policy(
    policy: Annotated[
        str, typer.Argument(metavar="FILE|TEMPLATE", help="a .toml (appraisal), a .rego (release), or a name")
    ],
    broker: Url,
    admin_key: AdminKeyFile,
    plugin: PluginNames = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Put an appraisal policy (TOML) or a release policy (Rego) in force.

    Example: `strongroom policy set measured --broker https://keys.example --admin-key admin.key`
    """
    link = connect(broker, admin_key, "admin", ca)
    path = Path(policy)
    if path.suffix == ".toml":
        from strongroom.broker.rego import policy_text

        link.set_appraisal_policy(policy_text(path))
        kind = "appraisal"
    else:
        link.set_release_policy(release_policy(policy, plugin).text)
        kind = "release"
    tell(f"{policy}: in force as the {kind} policy", as_json=as_json, kind=kind, policy=policy)


def get(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="appraisal or release")],
    broker: Url,
    admin_key: AdminKeyFile,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Print the policy in force.

    Example: `strongroom policy get release --broker https://keys.example --admin-key admin.key`
    """
    from strongroom.errors import ConfigurationInvalid, WrongUse

    if kind not in ("appraisal", "release"):
        raise WrongUse(f"no policy is called {kind!r}", hint="there are appraisal and release")
    link = connect(broker, admin_key, role, ca)
    text = link.appraisal_policy() if kind == "appraisal" else link.release_policy()
    if text is None:
        raise ConfigurationInvalid(f"no {kind} policy is set", hint="strongroom policy set")
    tell(text.removesuffix("\n"), as_json=as_json, kind=kind, policy=text)
    if not as_json:
        typer.echo(f"{broker}: this {kind} policy is in force", err=True)


def allow(
    tee: Annotated[str, typer.Argument(metavar="TEE", help="the table of the policy: snp, tdx, simulated …")],
    measurement: Annotated[str, typer.Option(metavar="HEX", help="the measurement to accept")],
    broker: Url,
    admin_key: AdminKeyFile,
    field: Annotated[str, typer.Option(help="the list in that table")] = "measurements",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Accept one more measurement, leaving the rest of the appraisal policy as it is written.

    Example: `strongroom policy allow snp --measurement 1c40… --broker https://keys.example --admin-key admin.key`
    """
    from strongroom.broker.allowing import allow as extended
    from strongroom.errors import ConfigurationInvalid

    link = connect(broker, admin_key, "admin", ca)
    text = link.appraisal_policy()
    if text is None:
        raise ConfigurationInvalid("no appraisal policy is set", hint="strongroom policy set FILE.toml")
    measurement = measurement.lower()
    link.set_appraisal_policy(extended(text, tee, field, measurement))
    line = f"[{tee}] {field}: {measurement} is accepted"
    tell(line, as_json=as_json, tee=tee, field=field, measurement=measurement)


def try_policy(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="a .rego file or a template's name")],
    evidence: Annotated[
        Path,
        typer.Argument(metavar="EVIDENCE", help="a token, its claims, or {tee, evidence} together with --appraisal"),
    ],
    appraisal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the appraisal policy that judges it first")
    ] = None,
    resource: Annotated[str, typer.Option(metavar="R/T/T", help="the name that is asked for")] = "tenant/lineage/1-00",
    owner: Annotated[
        str | None, typer.Option(metavar="TEXT", help="the owner that its archive was sealed with (seal --owner)")
    ] = None,
    plugin: PluginNames = None,
    collateral: Collateral = STORE,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Show what a release policy decides about evidence, and which statement stops it. Freshness is not looked at.

    Example: `strongroom policy test measured token.jwt --resource acme/digits/3-1c40`
    """
    import json
    from dataclasses import asdict

    from strongroom.broker.protocol import Resource
    from strongroom.broker.trial import claims_of, trial
    from strongroom.cli.trust import endorsements
    from strongroom.plugins import Plugins

    checks, claims = claims_of(
        evidence.read_bytes(),
        appraisal,
        plugins=Plugins.load(plugin or ()),
        endorse=endorsements(collateral, offline=offline),
    )
    result = None
    if claims is not None:
        result = trial(release_policy(policy, plugin), claims, Resource.parse(resource), owner=owner)
    granted = result is not None and result.decision.granted
    if as_json:
        told = {
            "granted": granted,
            "rules": {} if result is None else dict(result.rules),
            "trace": [] if result is None else [asdict(each) for each in result.statements],
            "checks": [each.serialise() for each in checks],
        }
        print(json.dumps(told))
    else:
        from strongroom.evidence.judge import format_checks

        for line in format_checks(checks):
            typer.echo(line, err=True)
        for line in _submodules(claims or {}):
            typer.echo(line, err=True)
        for name, value in result.rules if result is not None else ():
            typer.echo(f"rule  {name} = {'undefined' if value is None else json.dumps(value)}", err=True)
        for each in result.statements if result is not None else ():
            shown = " ".join(each.text.split())
            typer.echo(f"{each.state:<12}line {each.line}, {each.rule}: {shown}", err=True)
        reason = "the appraisal policy refuses this evidence" if result is None else result.decision.reason
        print(f"{'granted' if granted else 'refused'}: {reason}")
    if not granted:
        raise typer.Exit(1)


def _submodules(claims: Mapping[str, Any]) -> Iterator[str]:
    """What the token says about each device, in a line."""
    submodules = claims.get("submods")
    for name, each in submodules.items() if isinstance(submodules, dict) else ():
        if isinstance(each, dict):
            vector = each.get("ear.trustworthiness-vector")
            words = [f"{word} {value}" for word, value in vector.items()] if isinstance(vector, dict) else []
            revocation = each.get("strongroom.revocation")
            words += [f"revocation {revocation}"] if isinstance(revocation, str) else []
            yield f"token {name} is {each.get('ear.status')}: {', '.join(words) or 'no claims'}"


def templates(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print the text of this one")] = None,
    plugin: PluginNames = None,
    as_json: AsJson = False,
) -> None:
    """List the policies to start from: the release policies that come along, and what plugins offer.

    Examples: `strongroom policy templates` · `strongroom policy templates measured`
    """
    import json

    from strongroom.errors import ConfigurationInvalid
    from strongroom.plugins import Plugins

    offered = Plugins.load(plugin or ()).policies()
    if name is not None and name not in offered:
        raise ConfigurationInvalid(
            f"no policy template is called {name!r}",
            hint=f"there are {', '.join(offered)}; --plugin NAME brings those of a plugin",
        )
    if name is not None:
        text = offered[name].text
        print(json.dumps({"name": name, "kind": offered[name].kind, "text": text}) if as_json else text.rstrip("\n"))
        return
    said = {
        each.name: each.text.partition("\n")[0].removeprefix("# ").removeprefix(f"{each.name}: ")
        for each in offered.values()
    }
    if as_json:
        print(json.dumps([{"name": each, "kind": offered[each].kind, "grants": said[each]} for each in said]))
        return
    for each, grants in said.items():
        print(f"{each:<22}{'appraisal: ' if offered[each].kind == 'toml' else ''}{grants}")
    typer.echo(f"{len(said)} templates; `strongroom policy set NAME` puts one in force", err=True)


def release_policy(text: str, plugins: Sequence[str] | None = None) -> ReleasePolicy:
    """A release policy from a file, or by the name of a template: one that comes along, or one of these plugins'."""
    from strongroom.broker.rego import ReleasePolicy, policy_text
    from strongroom.plugins import Plugins

    path = Path(text)
    if path.is_file():
        return ReleasePolicy.parse(policy_text(path))
    return ReleasePolicy.template(text, Plugins.load(plugins or ()).policies())
