"""What the client's verbs share: the options that say whom to believe, and the adapter made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from strongroom.client.adapter import SealedAdapter
    from strongroom.evidence.judge import Endorse

PolicyFile = Annotated[Path, typer.Option("--policy", metavar="FILE", help="the appraisal policy (TOML)")]
Kems = Annotated[
    list[str] | None,
    typer.Option("--kem", metavar="NAME", help="accept x-wing, x25519 or p-256, in this order [default: x-wing]"),
]
PluginNames = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="NAME", help="load this plugin (repeatable)")
]
Token = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN|@FILE", help="sent as Authorization: Bearer …, which the frontend sees"),
]
LONGEST_TIMEOUT_S = 10**7
"""A socket knows no end of time; some months are long enough."""


def _seconds(value: float) -> float:
    if not 0 < value <= LONGEST_TIMEOUT_S:  # which NaN is not either
        raise typer.BadParameter(f"{value} is no number of seconds above 0, up to {LONGEST_TIMEOUT_S}")
    return value


Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", help="for connecting, and between two reads", callback=_seconds),
]
CaFile = Annotated[Path | None, typer.Option("--cacert", metavar="FILE", help="CA certificates for an https server")]


Collateral = Annotated[
    Path,
    typer.Option("--collateral", metavar="DIR", help="where endorsements are kept", envvar="STRONGROOM_COLLATERAL"),
]
Offline = Annotated[bool, typer.Option("--offline", help="ask no vendor's service for endorsements, use what is kept")]
STORE = Path("~/.cache/strongroom/collateral")


def make_adapter(
    policy: Path,
    *,
    kems: Sequence[str] | None,
    plugins: Sequence[str] | None,
    collateral: Path,
    offline: bool,
    **more: Any,
) -> SealedAdapter:
    """The adapter that these options describe; raises `WrongUse`, and `ConfigurationInvalid` for the policy."""
    from strongroom.channel.kem import XWING, kem_named
    from strongroom.channel.padding import Padding
    from strongroom.client.adapter import SealedAdapter
    from strongroom.errors import ConfigurationInvalid, WrongUse

    try:
        ids = [kem_named(name).id for name in kems] if kems else [XWING]
        Padding(more.get("padding", "none"))
    except ConfigurationInvalid as error:
        raise WrongUse(str(error), hint=error.hint) from error
    endorse = endorsements(collateral, offline=offline)
    return SealedAdapter(policy, kems=ids, plugins=tuple(plugins or ()), endorse=endorse, **more)


def endorsements(store: Path, *, offline: bool) -> Endorse:
    """What obtains endorsements; simulated evidence, which needs none, does not even make the folder."""
    from functools import cache

    from strongroom.evidence.types import Endorsements

    @cache
    def made() -> Endorse:
        from strongroom.collateral.cache import EndorsementCache
        from strongroom.collateral.sources import vendors
        from strongroom.collateral.store import Store

        return EndorsementCache(Store(store.expanduser()), () if offline else vendors())

    return lambda evidence, policy: Endorsements() if evidence.tee == "simulated" else made()(evidence, policy)


def read_token(token: str | None) -> str | None:
    """The token, or the first line of the file behind an @; raises `WrongUse`, and `ConfigurationInvalid` for a file.

    No error repeats the token.
    """
    from strongroom.errors import ConfigurationInvalid, WrongUse

    said = "a token is a word of printable ASCII characters"
    if token is None:
        return None
    if not token.startswith("@"):
        if not _is_token(token):
            raise WrongUse("--token: this is no token", hint=said)
        return token
    try:
        found = Path(token[1:]).read_bytes().decode("ascii", "replace").splitlines()[0].strip()
    except (OSError, IndexError, ValueError) as error:  # the last for a name that no file can have
        hint = error.strerror if isinstance(error, OSError) else "its first line has to be the token"
        raise ConfigurationInvalid(f"{token[1:]}: no token can be read from it", hint=hint or "") from error
    if not _is_token(found):
        raise ConfigurationInvalid(f"{token[1:]}: its first line is no token", hint=said)
    return found


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def outer_arguments(timeout: float, cacert: Path | None) -> dict[str, Any]:
    """How the outer connections are made."""
    return {"timeout": timeout, "verify": True if cacert is None else str(cacert)}


def reached(url: str) -> Any:
    """A context in which errors of the connection become ours, without bodies in their text.

    Raises `WrongUse` at once where no request can go to this URL.
    """
    import contextlib

    check_address(url)

    @contextlib.contextmanager
    def context() -> Any:
        import requests

        from strongroom.errors import ServerUnavailable

        try:
            yield
        except requests.RequestException as error:
            raise ServerUnavailable(
                f"{url} cannot be reached: {type(error).__name__}", hint="is the server running there?"
            ) from error

    return context()


def check_address(url: str) -> None:
    """Raise `WrongUse` for what is no http or https URL."""
    from urllib.parse import urlsplit

    from strongroom.errors import WrongUse

    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        known = parts.scheme in ("http", "https") and host and parts.port != 0 and url.isprintable()
    except ValueError:  # brackets, a port or a label of another form
        known = False
    if not known:
        raise WrongUse(f"{url!r} is no http or https URL", hint="write http://HOST:PORT/… or https://HOST:PORT/…")
