"""`strongroom audit`: read, export and verify a broker's audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.connection import AdminKeyFile, AsJson, Ca, Role, Url, connect, tell

AuditKey = Annotated[str, typer.Option("--key", metavar="NAME+HASH+KEY", help="the verifier key `broker init` printed")]
Since = Annotated[Path | None, typer.Option(metavar="FILE", help="a checkpoint that was kept earlier")]


def register(app: typer.Typer) -> None:
    """Attach the verb and what is under it."""
    verbs = typer.Typer(name="audit", help="Read, export and verify a broker's audit log.", no_args_is_help=True)
    verbs.command()(show)
    verbs.command()(export)
    verbs.command()(verify)
    verbs.command()(prove)
    app.add_typer(verbs)


def show(
    broker: Url,
    admin_key: AdminKeyFile,
    last: Annotated[int, typer.Option(min=1, help="how many entries")] = 20,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Show the last entries.

    Example: `strongroom audit show --broker https://keys.example --admin-key auditor.key --role auditor`
    """
    import json
    from datetime import UTC, datetime

    link = connect(broker, admin_key, role, ca)
    size = int(link.status()["audit_entries"])
    first = max(0, size - last)
    for number, entry in enumerate(link.audit_entries(first, size), first):
        if as_json:
            print(entry.decode())
            continue
        fields = json.loads(entry)
        when = datetime.fromtimestamp(fields.pop("at"), UTC)
        said = "  ".join(f"{name}={value}" for name, value in fields.items() if isinstance(value, str | int))
        print(f"{number}  {when:%Y-%m-%d %H:%M:%S}Z  {said}")
    if not as_json:
        typer.echo(f"{broker}: the last {size - first} of {size} entries", err=True)


def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="a new folder, or an earlier export to bring up to date")
    ],
    broker: Url,
    admin_key: AdminKeyFile,
    role: Role = "admin",
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Write the whole log as files that anybody can verify (C2SP tiles).

    Example: `strongroom audit export log --broker https://keys.example --admin-key auditor.key --role auditor`
    """
    from strongroom.broker import tiles

    link = connect(broker, admin_key, role, ca)
    note = link.checkpoint()
    size = int(note.split("\n")[1])
    entries = link.audit_entries(0, size)
    new = tiles.write(directory, entries, note)
    line = f"{directory}: {len(entries)} entries, {new} new files"
    tell(line, as_json=as_json, directory=str(directory), entries=len(entries), new_files=new)


def verify(
    source: Annotated[Path, typer.Argument(metavar="DIR|PROOF", help="an exported log, or a proof")],
    key: AuditKey,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Verify an exported log, or a proof, without the broker.

    Example: `strongroom audit verify log --key keys.example+c74f20a3+… --since checkpoint-of-may`
    """
    import json

    from strongroom.broker import tiles
    from strongroom.broker.audit import Checkpoint, NoteKey
    from strongroom.broker.proofs import check_proof
    from strongroom.errors import WrongUse

    verifier = NoteKey.parse(key)
    if source.is_file():
        if since is not None:
            raise WrongUse("a proof says itself what it extends", hint="--since goes with an exported folder")
        said = check_proof(source.read_bytes(), verifier)
        print(json.dumps({"shows": said}) if as_json else said)
        return
    exported = tiles.read(source, verifier)
    said = "every entry stands where the checkpoint says"
    if since is not None:
        older = Checkpoint.verify(_note(since), verifier)
        tiles.extends(exported, older)
        said += f", and the log of {older.size} entries is its beginning"
    if as_json:
        print(json.dumps({"entries": len(exported.entries), "root": exported.checkpoint.root.hex()}))
    else:
        print(f"{source}: {len(exported.entries)} entries verified; {said}")


def prove(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="an exported log")],
    key: AuditKey,
    entry: Annotated[int | None, typer.Option(min=0, metavar="N", help="prove that this entry is in the log")] = None,
    since: Since = None,
    until: Annotated[
        Path | None, typer.Option(metavar="FILE", help="with --since: a newer checkpoint than it [default: the log's]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="the proof, which is JSON anyway, and no closing line")
    ] = False,
) -> None:
    """Print a proof that a third party checks with `strongroom audit verify`.

    Examples: `strongroom audit prove log --key keys.example+c74f20a3+… --entry 17 > proof.json` ·
    `strongroom audit prove log --key … --since checkpoint-of-may --until checkpoint-of-june > proof.json`
    """
    import json

    from strongroom.broker import tiles
    from strongroom.broker.audit import NoteKey
    from strongroom.broker.proofs import prove_consistency, prove_inclusion
    from strongroom.errors import WrongUse

    if (entry is None) == (since is None) or (until is not None and since is None):
        raise WrongUse("one thing is proved at a time", hint="give --entry N, or --since FILE [--until FILE]")
    verifier = NoteKey.parse(key)
    exported = tiles.read(directory, verifier)
    note = _note(directory / "checkpoint")
    if entry is not None:
        print(json.dumps(prove_inclusion(exported, note, entry)))
    elif since is not None:
        newer = note if until is None else _note(until)
        print(json.dumps(prove_consistency(exported, newer, _note(since), verifier)))
    if not as_json:
        typer.echo(f"{directory}: proved; `strongroom audit verify` checks it without the log", err=True)


def _note(path: Path) -> str:
    """The text of a checkpoint, not verified yet; raises `AuditError`."""
    from strongroom.errors import AuditError

    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise AuditError(
            f"{path} is no checkpoint: it is no text in UTF-8", hint="`audit export` writes one"
        ) from error
