"""The list of what `launch` extended in this boot, beside the register that it was extended into.

A file under ``/run``, gone with the boot as the registers are. It is written as a whole, before the register is
extended: a line too many is seen by every verifier, an extension without its line would only look like tampering.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from strongroom.encoding import parse_json
from strongroom.errors import AttesterUnavailable, MalformedInput

FOLDER = Path("/run/strongroom")
"""For root and whoever may write there; the logs of others lie below /dev/shm, which goes with the boot as well."""


def place(name: str) -> Path:
    """Where the log of that name is kept for this user."""
    user = os.geteuid()
    ours = user == 0 or os.access(FOLDER, os.W_OK)
    return (FOLDER if ours else Path("/dev", "shm", f"strongroom-launch-{user}")) / name


class Entry(Protocol):
    """One event of a log."""

    @property
    def event(self) -> str: ...  # noqa: D102

    def serialise(self) -> dict[str, Any]: ...  # noqa: D102


E = TypeVar("E", bound=Entry)


class LaunchLog(Generic[E]):
    """A list of events in a file; `parse` makes one out of decoded JSON and raises `MalformedInput`."""

    def __init__(self, path: Path, parse: Callable[[object], E]) -> None:
        self._path, self._parse = path, parse

    def read(self) -> tuple[E, ...]:
        """The events since boot; empty where there is no file. Raises `AttesterUnavailable`."""
        try:
            octets = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise AttesterUnavailable(f"the launch log {self._path} cannot be read", hint=str(error)) from error
        try:
            events = parse_json(octets, where=str(self._path))
            if not isinstance(events, list):
                raise MalformedInput(f"{self._path}: not a list of events")
            return tuple(self._parse(each) for each in events)
        except MalformedInput as error:
            raise AttesterUnavailable(f"the launch log cannot be read: {error}", hint="reboot the guest") from error

    def write(self, events: Sequence[E]) -> None:
        """Replace the list; raises `AttesterUnavailable`."""
        try:
            folder = self._path.parent
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            if os.geteuid() and folder.stat().st_uid not in (0, os.geteuid()):
                raise AttesterUnavailable(f"{folder} is another user's", hint="remove it, as root")
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps([event.serialise() for event in events]))
            temporary.replace(self._path)
        except OSError as error:
            raise AttesterUnavailable(f"the launch log {self._path} cannot be written", hint=str(error)) from error

    def add(self, entry: E) -> tuple[E, ...]:
        """Append one event, which may not stand there already; raises `AttesterUnavailable`."""
        events = self.read()
        if any(each.event == entry.event for each in events):
            raise AttesterUnavailable(
                f"{entry.event!r} was extended already in this boot",
                hint="reboot the guest to launch another configuration",
            )
        self.write((*events, entry))
        return (*events, entry)
