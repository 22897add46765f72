"""Endorsements on disk: one small JSON file each, written whole or not at all.

    {"name": "vcek/Milan/…", "fetched": "2026-06-01T00:00:00Z", "octets": base64, "context": [base64, …]}

The store believes nobody: `cache` judges what comes out of it. A file that cannot be read is as good as none.
A bundle, for hosts without a network, is a list of the same entries under one roof (``{"format": …, "entries": […]}``).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from strongroom.collateral.wanted import Wanted
from strongroom.encoding import Fields, b64, parse_json, unb64
from strongroom.errors import CollateralUnavailable, MalformedInput

FORMAT = "strongroom collateral 1"
LONGEST_ENTRY, LONGEST_BUNDLE, MOST_ENTRIES = 1 << 23, 1 << 28, 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One endorsement as it was fetched."""

    wanted: Wanted
    fetched: datetime
    octets: bytes = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> Entry:
        """From decoded JSON; raises `MalformedInput`."""
        read = Fields(value, where="collateral entry")
        context = tuple(unb64(each, where="context") for each in read.texts("context", default=(), limit=4))
        wanted = Wanted(read.text("name"), read.text("role", limit=256), context)
        try:
            fetched = datetime.strptime(read.text("fetched", limit=32), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise MalformedInput("collateral entry: fetched is not a time in UTC") from error
        octets = unb64(read.text("octets", limit=LONGEST_ENTRY), where="collateral entry")
        read.done()
        return cls(wanted, fetched, octets)

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`."""
        fields: dict[str, Any] = {
            "name": self.wanted.name,
            "role": self.wanted.role,
            "fetched": f"{self.fetched:%Y-%m-%dT%H:%M:%SZ}",
            "octets": b64(self.octets),
        }
        if self.wanted.context:
            fields["context"] = [b64(each) for each in self.wanted.context]
        return fields


class Store:
    """A folder of entries, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.split('/')[0]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def get(self, name: str) -> Entry | None:
        """The entry of that name, or None where there is none that can be read."""
        entry = _read(self._path(name))
        return entry if entry is not None and entry.wanted.name == name else None

    def put(self, entry: Entry) -> None:
        """Keep an entry in place of an earlier one; raises `CollateralUnavailable` where the disk refuses."""
        path = self._path(entry.wanted.name)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".part")
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(entry.serialise(), file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise CollateralUnavailable(
                f"{path}: cannot be written: {error.strerror}",
                hint="is the collateral folder yours, and is there room?",
            ) from error

    def __iter__(self) -> Iterator[Entry]:
        for path in sorted(self.folder.glob("*.json")):
            entry = _read(path)
            if entry is not None:
                yield entry


def _read(path: Path) -> Entry | None:
    try:
        return Entry.parse(parse_json(path.read_bytes(), where=str(path), limit=LONGEST_ENTRY))
    except (OSError, MalformedInput):
        return None


def write_bundle(entries: Iterable[Entry], path: Path) -> int:
    """Write entries as one file, over what stands there; how many. Raises `CollateralUnavailable`, also for none."""
    listed = [entry.serialise() for entry in entries]
    if not listed:
        raise CollateralUnavailable(
            "there is nothing to bundle",
            hint="`strongroom collateral fetch` gets endorsements; a bundle that came here is read with --import",
        )
    try:
        path.write_text(json.dumps({"format": FORMAT, "entries": listed}, indent=1) + "\n")
    except OSError as error:
        raise CollateralUnavailable(f"{path.parent}: no bundle can be written there: {error.strerror}") from error
    return len(listed)


def read_bundle(path: Path) -> tuple[Entry, ...]:
    """The entries of a bundle, not judged yet; raises `CollateralUnavailable` or `MalformedInput`."""
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise CollateralUnavailable(f"{path}: cannot be read: {error.strerror}") from error
    read = Fields(parse_json(octets, where=str(path), limit=LONGEST_BUNDLE), where=str(path))
    if read.text("format", limit=64) != FORMAT:
        raise MalformedInput(f"{path}: not a collateral bundle of this release")
    entries = read.value("entries")
    read.done()
    if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        raise MalformedInput(f"{path}: entries is not a list of at most {MOST_ENTRIES}")
    return tuple(Entry.parse(each) for each in entries)
