"""`strongroom request`: one sealed request, like curl."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.trust import STORE, CaFile, Collateral, Kems, Offline, PluginNames, PolicyFile, Timeout, Token

_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f\u0100-\U0010ffff]*")
"""A field as a request can carry it (RFC 9110 section 5.5)."""

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(request)


def request(
    url: Annotated[str, typer.Argument(metavar="URL", help="a model's endpoint")],
    policy: PolicyFile,
    data: Annotated[
        str | None, typer.Option("-d", "--data", metavar="DATA|@FILE|@-", help="the body, a file's bytes, or stdin's")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", metavar="'NAME: VALUE'", help="a header field (repeatable)")
    ] = None,
    method: Annotated[str, typer.Option("-X", "--method", metavar="METHOD", help="POST with a body, else GET")] = "",
    stream: Annotated[bool, typer.Option("--stream", help="print pieces as they arrive")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="write the body there, once it is whole")
    ] = None,
    padding: Annotated[
        str, typer.Option("--padding", metavar="POLICY", help="none, power-of-two or bucket:BYTES")
    ] = "none",
    token: Token = None,
    kem: Kems = None,
    plugin: PluginNames = None,
    collateral: Collateral = STORE,
    offline: Offline = False,
    timeout: Timeout = 120.0,
    cacert: CaFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="print status, headers and body (base64) as JSON")] = False,
) -> None:
    """Verify a server, then ask it in secret. A server that fails the policy is sent nothing.

    Example: `strongroom request http://host:8080/predictions/digits -d @scan.png --policy policy.toml`
    """
    import json
    import sys
    from contextlib import nullcontext

    import requests

    from strongroom.cli.drafts import private
    from strongroom.cli.trust import make_adapter, outer_arguments, reached, read_token
    from strongroom.encoding import b64
    from strongroom.errors import ClientError, WrongUse

    if as_json and output is not None:
        raise WrongUse("--json prints the body inside, so -o has nothing to write", hint="give one of the two")
    if not _METHOD.fullmatch(method):
        raise WrongUse(f"-X {method!r} is no method", hint="a word, as GET or POST")
    adapter = make_adapter(policy, kems=kem, plugins=plugin, collateral=collateral, offline=offline, padding=padding)
    headers = _headers(header or [])
    if bearer := read_token(token):
        headers["Authorization"] = f"Bearer {bearer}"
    body = _body(data)
    session = requests.Session()
    session.trust_env = False  # a .netrc must not put a password into somebody's request
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    arguments = outer_arguments(timeout, cacert)
    with reached(url):
        answer = session.request(
            method or ("GET" if body is None else "POST"), url, data=body, headers=headers, stream=stream, **arguments
        )
        size = 0
        if as_json:
            fields = {"status": answer.status_code, "headers": dict(answer.headers), "body": b64(answer.content)}
            print(json.dumps(fields))
        else:
            with nullcontext(sys.stdout.buffer) if output is None else private(output) as sink:
                for piece in answer.iter_content(None if stream else 65536):
                    sink.write(piece)
                    sink.flush()
                    size += len(piece)
    if answer.status_code >= 400:
        raise ClientError(
            f"the model answered {answer.status_code} {answer.reason}", hint="its body says why, if it does"
        )
    if not as_json:
        print(f"strongroom: {answer.status_code} {answer.reason}, {size} bytes, sealed both ways", file=sys.stderr)


def _headers(lines: list[str]) -> dict[str, str]:
    from strongroom.errors import WrongUse

    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise WrongUse(f"{line!r} is not a header field", hint="write -H 'Name: value'")
        headers[name.strip()] = value.strip()
        if not _FIELD.fullmatch(f"{name.strip()}:{value.strip()}"):
            raise WrongUse(
                f"{line!r} is not a header field", hint="a name in ASCII, and a value in Latin-1 on one line"
            )
    return headers


def _body(data: str | None) -> bytes | None:
    import sys

    from strongroom.errors import ConfigurationInvalid, WrongUse

    if data is None:
        return None
    if data == "@-":
        if sys.stdin is None:
            raise WrongUse("-d @-: standard input is closed", hint="give the body by a pipe, or -d @FILE")
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return os.fsencode(data)  # the bytes that were typed, in whatever encoding
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise ConfigurationInvalid(f"{data[1:]} cannot be read", hint=str(error.strerror)) from error
