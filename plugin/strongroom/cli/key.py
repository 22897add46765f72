"""`strongroom key`: the model keys that a broker keeps, and those in a token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.connection import LEASE_LIMIT_S, AdminKeyFile, AsJson, Ca, Role, Url, connect, tell


def register(app: typer.Typer) -> None:
    """Attach the verb and what is under it."""
    verbs = typer.Typer(name="key", help="The model keys that a broker keeps, or a token.", no_args_is_help=True)
    verbs.command()(add)
    verbs.command(name="list")(list_keys)
    verbs.command()(revoke)
    verbs.command()(delete)
    verbs.command()(rotate)
    verbs.command()(wrap)
    app.add_typer(verbs)


def add(
    archive: Annotated[Path, typer.Argument(metavar="SEALED.mar", help="the sealed archive that the key opens")],
    key_file: Annotated[Path, typer.Option("--key", metavar="FILE", help="written by `strongroom seal --key-out`")],
    broker: Url,
    admin_key: AdminKeyFile,
    lease: Annotated[
        int | None,
        typer.Option(min=1, max=LEASE_LIMIT_S, metavar="SECONDS", help="how long a keeper may hold it at a time"),
    ] = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Store the key of an archive that was sealed elsewhere.

    Example: `strongroom key add digits.sealed.mar --key digits.key --broker https://keys.example --admin-key admin.key`
    """
    from strongroom.archive.modelkey import load_model_key
    from strongroom.archive.unseal import SealedArchive
    from strongroom.broker.client import register_model_key
    from strongroom.cli.sealing import check_version

    with SealedArchive.open(archive) as sealed:
        sealed.header.verify()
        core, author = sealed.core, sealed.header.author.id
    check_version(core.version)
    key = load_model_key(key_file, of=core.digest)
    register_model_key(
        broker,
        admin_key,
        core.resource,
        core.digest,
        key,
        version=core.version,
        author=author,
        owner=core.owner,
        lease_s=lease,
        ca=ca,
    )
    resource = "/".join(core.resource)
    fields = {"resource": resource, "digest": str(core.digest), "broker": broker, "lease_s": lease}
    tell(f"{resource}: its key is at {broker}", as_json=as_json, **fields)


def list_keys(
    broker: Url, admin_key: AdminKeyFile, role: Role = "admin", ca: Ca = None, as_json: AsJson = False
) -> None:
    """List names and facts of what the broker keeps, never a key.

    Example: `strongroom key list --broker https://keys.example --admin-key admin.key`
    """
    import json

    found = connect(broker, admin_key, role, ca).resources()
    if as_json:
        print(json.dumps(found))
        return
    for each in found:
        version = "-" if each["version"] is None else each["version"]
        owner = f"  owner {each['owner']}" if each.get("owner") else ""
        print(f"{each['resource']}  version {version}{owner}")
    print(f"{len(found)} keys")


def revoke(
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST", help="the archive digest, as `strongroom inspect` shows it")
    ],
    broker: Url,
    admin_key: AdminKeyFile,
    reason: Annotated[str, typer.Option(help="one sentence, for the audit log")] = "",
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Release the key of an archive no more; keepers drop it when their lease is renewed.

    Example: `strongroom key revoke 1c40… --reason "leaked" --broker https://keys.example --admin-key admin.key`
    """
    from strongroom.keys import ArchiveDigest

    archive = ArchiveDigest.parse(digest)
    connect(broker, admin_key, role, ca).revoke("archive", str(archive), reason=reason)
    line = f"archive {archive}: revoked; keepers that hold its key lose it at their next renewal"
    tell(line, as_json=as_json, kind="archive", value=str(archive), revoked=True)


def delete(
    resource: Annotated[str, typer.Argument(metavar="R/T/T", help="its name, as `strongroom key list` shows it")],
    broker: Url,
    admin_key: AdminKeyFile,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Forget a key for good; keepers drop it when their lease is renewed. Nobody can bring it back but its author.

    Example: `strongroom key delete acme/digits/3-1c40… --broker https://keys.example --admin-key acme.key --role owner`
    """
    from strongroom.broker.protocol import Resource

    name = Resource.parse(resource)
    connect(broker, admin_key, role, ca).delete_resource(name)
    line = f"{name}: its key is forgotten; keepers that hold it lose it at their next renewal"
    tell(line, as_json=as_json, resource=str(name), deleted=True)


def rotate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a broker that is not running")],
    passphrase_file: Annotated[Path | None, typer.Option(metavar="FILE", help="of the present root key")] = None,
    as_json: AsJson = False,
) -> None:
    """Seal everything that a broker keeps under a fresh root key, and sign tokens with a fresh key.

    Model keys stay: a model key is changed by sealing the model again. Example: `strongroom key rotate /srv/broker`
    """
    from strongroom.broker.rotation import rotate_root_key
    from strongroom.cli.broker import read_passphrase

    count = rotate_root_key(directory, passphrase=read_passphrase(passphrase_file))
    line = f"{directory}: {count} sealed values are under a fresh root key"
    tell(line, as_json=as_json, directory=str(directory), sealed_values=count)


def wrap(
    archive: Annotated[Path, typer.Argument(metavar="SEALED.mar", help="the sealed archive that the key opens")],
    key_file: Annotated[Path, typer.Option("--key", metavar="FILE", help="written by `strongroom seal --key-out`")],
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="`folder` of the keeper's [keys] table")],
    module: Annotated[str, typer.Option(metavar="PATH", help="the token maker's PKCS #11 library")],
    token: Annotated[str, typer.Option(metavar="LABEL", help="the token's label")],
    pin_file: Annotated[Path, typer.Option(metavar="FILE", help="the first line is the token's PIN")],
    as_json: AsJson = False,
) -> None:
    """Wrap a model key with a fresh key of a PKCS #11 token, for a keeper with `provider = "pkcs11"`.

    The key file itself stays: put it away or delete it. Example: `strongroom key wrap digits.sealed.mar --key
    digits.modelkey --into keys --module /usr/lib/softhsm/libsofthsm2.so --token strongroom --pin-file pin.txt`
    """
    from strongroom.archive.modelkey import load_model_key
    from strongroom.archive.unseal import SealedArchive
    from strongroom.keeper.keyfiles import Pkcs11Provider

    with SealedArchive.open(archive) as sealed:
        sealed.header.verify()
        digest = sealed.core.digest
    key = load_model_key(key_file, of=digest)
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {"folder": str(into), "module": module, "token": token, "pin_file": str(pin_file)}
    path = Pkcs11Provider.configured(settings, Path.cwd()).keep(digest, key)
    tell(f"{path}: wrapped by token {token}", as_json=as_json, path=str(path), archive=str(digest))
