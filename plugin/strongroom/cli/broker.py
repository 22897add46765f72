"""`strongroom broker`: make a key broker and run it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from strongroom.cli.connection import AdminKeyFile, AsJson, Ca, Role, Url, connect, tell
from strongroom.cli.trust import Offline, PluginNames

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the broker's folder")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="the first line protects the root key (Argon2id)"),
]


def register(app: typer.Typer) -> None:
    """Attach the verb and what is under it."""
    verbs = typer.Typer(name="broker", help="Make a key broker and run it.", no_args_is_help=True)
    verbs.command()(init)
    verbs.command()(serve)
    verbs.command()(status)
    verbs.command()(administrator)
    verbs.command()(backup)
    verbs.command()(restore)
    app.add_typer(verbs)


def init(
    directory: Folder,
    name: Annotated[str, typer.Option(metavar="NAME", help="how its audit checkpoints are signed")] = "",
    host: Annotated[
        list[str] | None, typer.Option("--host", metavar="HOST", help="make a TLS certificate for this name or address")
    ] = None,
    root_key: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="who keeps the root key: file, passphrase, tpm, pkcs11, or a plugin's"),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="tpm: tcti, pcrs=0,7; pkcs11: module, token, key; may be repeated"),
    ] = None,
    plugin: Annotated[
        list[str] | None, typer.Option("--plugin", metavar="NAME", help="the plugin that keeps the root key")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a broker: its store, its keys, the first administrator's key. It releases nothing until a policy is set.

    Example: `strongroom broker init /srv/broker --host keys.example --passphrase-file pass.txt`
    """
    import json

    from strongroom.broker.directory import init as make

    passphrase = read_passphrase(passphrase_file)
    made = make(
        directory,
        name=name,
        root_key=root_key or ("file" if passphrase is None else "passphrase"),
        settings=_settings(setting or ()),
        passphrase=passphrase,
        hosts=tuple(host or ()),
        plugins=tuple(plugin or ()),
    )
    if as_json:
        fields = {
            "directory": str(made.directory),
            "broker": made.broker_id,
            "audit_key": made.audit_key,
            "admin_key": str(made.admin_key),
            "certificate": None if made.certificate is None else str(made.certificate),
        }
        print(json.dumps(fields))
        return
    if (root_key or "file") == "file" and passphrase is None:
        typer.echo(
            "strongroom: warning: the root key lies in the clear; whoever copies the disk has every key", err=True
        )
    typer.echo(f"audit log key, for whoever verifies it: {made.audit_key}", err=True)
    print(f"{made.directory}: broker {made.broker_id} made; its administrator's key is {made.admin_key}")


def _settings(given: Iterable[str]) -> dict[str, Any]:
    from strongroom.errors import WrongUse

    settings: dict[str, Any] = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator:
            raise WrongUse(f"--setting {each} is not NAME=VALUE", hint="for instance --setting pcrs=0,7")
        settings[name] = value.split(",") if name == "pcrs" else value
    return settings


def serve(
    directory: Folder,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="port 0 takes any free one")] = "127.0.0.1:8080",
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="put this appraisal policy (TOML) in force")
    ] = None,
    rego: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help="put this release policy (Rego), or a template, in force")
    ] = None,
    passphrase_file: PassphraseFile = None,
    plugin: PluginNames = None,
    collateral: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="where endorsements are kept [default: DIR/collateral]")
    ] = None,
    offline: Offline = False,
    pace: Annotated[
        int, typer.Option(min=0, metavar="N", help="requests a second that one address may make; 0: any number")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Serve keys until interrupted. Policies that were set before stay in force.

    Example: `strongroom broker serve /srv/broker --listen 0.0.0.0:8080 --policy appraisal.toml --rego measured`
    """
    import json
    import logging

    from strongroom.broker.pace import Pace
    from strongroom.broker.serve import serve as run
    from strongroom.cli.trust import endorsements
    from strongroom.plugins import Plugins

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")

    def ready(url: str) -> None:
        print(json.dumps({"url": url}) if as_json else f"broker ready at {url}", flush=True)

    passphrase = read_passphrase(passphrase_file)
    run(
        directory,
        listen=listen,
        policy=policy,
        rego=rego,
        passphrase=passphrase,
        ready=ready,
        pace=Pace(pace, 12 * pace),
        plugins=Plugins.load(plugin or ()),
        endorsements=endorsements(collateral or directory / "collateral", offline=offline),
    )


def status(broker: Url, admin_key: AdminKeyFile, role: Role = "admin", ca: Ca = None, as_json: AsJson = False) -> None:
    """Show what a running broker says of itself.

    Example: `strongroom broker status --broker https://keys.example --admin-key admin.key`
    """
    import json

    found = connect(broker, admin_key, role, ca).status()
    if as_json:
        print(json.dumps(found))
        return
    for field, value in found.items():
        print(f"{field.replace('_', ' '):<18}  {', '.join(value) if isinstance(value, list) else value}")
    typer.echo(f"{broker}: the broker answers", err=True)


def administrator(
    directory: Folder,
    key: Annotated[Path | None, typer.Argument(metavar="NEW.key", help="where its private key is written")] = None,
    role: Annotated[str, typer.Option(help="admin, owner of one repository, or auditor")] = "auditor",
    repository: Annotated[str, typer.Option(metavar="NAME", help="the owner's repository (tenant)")] = "",
    remove: Annotated[str | None, typer.Option(metavar="ID", help="forget this administrator instead")] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make another administrator, or forget one. The broker may be running.

    Example: `strongroom broker administrator /srv/broker acme.key --role owner --repository acme`
    """
    from strongroom.broker.directory import make_administrator, remove_administrator
    from strongroom.errors import WrongUse

    passphrase = read_passphrase(passphrase_file)
    if (key is None) == (remove is None):
        raise WrongUse("one thing at a time", hint="name a new key file, or --remove ID")
    if remove is not None:
        remove_administrator(directory, remove, passphrase=passphrase)
        tell(f"{remove}: no longer an administrator", as_json=as_json, id=remove, removed=True)
    elif key is not None:
        key_id = make_administrator(directory, key, role=role, repository=repository, passphrase=passphrase)
        line = f"{key}: {role} {key_id}{' of ' + repository if repository else ''}"
        tell(line, as_json=as_json, id=key_id, role=role, repository=repository, key=str(key))


def backup(
    directory: Folder,
    into: Annotated[Path, typer.Argument(metavar="BACKUP", help="a new folder")],
    as_json: AsJson = False,
) -> None:
    """Copy a broker, running or not. The copy is as secret as the root key's provider makes it.

    Example: `strongroom broker backup /srv/broker /backups/2026-11-22`
    """
    from strongroom.broker.backup import backup as copy

    size = copy(directory, into)
    line = f"{into}: {size} bytes of store, the root key as its provider keeps it, and the settings"
    tell(line, as_json=as_json, backup=str(into), size=size)


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="made by `strongroom broker backup`")],
    directory: Folder,
    log: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the newest `strongroom audit export`, where the store is lost")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back. Revocations, minimum versions and deletions that came after it are done again.

    Example: `strongroom broker restore /backups/2026-11-22 /srv/broker --log /witness/log`
    """
    from dataclasses import asdict

    from strongroom.broker.backup import restore as bring_back

    restored = bring_back(source, directory, passphrase=read_passphrase(passphrase_file), log=log)
    for name in restored.lost:
        typer.echo(f"strongroom: warning: the key of {name} came after the backup and is not in it", err=True)
    for key_id in restored.administrators:
        typer.echo(f"strongroom: warning: administrator {key_id} came after the backup: make another key", err=True)
    for name in restored.policies:
        typer.echo(
            f"strongroom: warning: the {name} policy was replaced after the backup, so none is in force: "
            "strongroom policy set",
            err=True,
        )
    newer = f"{restored.replayed} of them newer than the backup"
    line = f"{directory}: restored with {restored.entries} audit entries, {newer}"
    tell(line, as_json=as_json, directory=str(directory), **asdict(restored))


def read_passphrase(path: Path | None) -> str | None:
    """The first line of a passphrase file that only its owner reads; None for no file."""
    if path is None:
        return None
    from strongroom.broker.rootkey import read_private
    from strongroom.errors import KeyFileInvalid

    try:
        lines = read_private(path, limit=4096).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise KeyFileInvalid(f"{path} is not UTF-8", hint="the passphrase is its first line, as text") from error
    return lines[0] if lines else ""
