"""The kernel's one interface for TEE evidence: reports under configfs (Linux 6.7 and later).

A report is a directory: write ``inblob`` (the report data), read ``outblob`` (the evidence) and
``auxblob`` (certificates). Three habits of the interface decide how it is used here
(Documentation/ABI/testing/configfs-tsm-report):

* configfs commits a binary attribute when its file is closed, so an error may come from `close`;
* ``generation`` counts every change, so that a reader can see that somebody else wrote in between;
* reading ``outblob`` asks the firmware and may end in EBUSY, EINTR or EWOULDBLOCK, and is then repeated.

Which TEE answered stands in ``provider``. What is in the blob is the business of `guest`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from strongroom.errors import AttesterUnavailable

REPORTS = Path("/sys/kernel/config/tsm/report")
ATTEMPTS = 5
PAUSE = 0.1
"""Seconds before the first repetition; doubled each time."""
LARGEST_BLOB = 1 << 20
_AGAIN = frozenset({errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT})


class Reports(Protocol):
    """The report directory as operations: configfs itself, or a double of it in tests. Raise `OSError`."""

    def there(self) -> bool:
        """Whether this kernel offers reports at all."""

    def make(self, name: str) -> None:
        """Make a report; the kernel fills it with attributes."""

    def remove(self, name: str) -> None:
        """Remove a report."""

    def has(self, name: str, attribute: str) -> bool:
        """Whether the report has this attribute."""

    def read(self, name: str, attribute: str) -> bytes:
        """The whole attribute."""

    def write(self, name: str, attribute: str, octets: bytes) -> None:
        """The whole attribute, in one piece, committed at `close`."""


class Configfs:
    """`Reports` of the running kernel."""

    def __init__(self, directory: Path = REPORTS) -> None:
        self._directory = directory

    def there(self) -> bool:
        """Whether the directory exists: the tsm module is loaded by a TEE's guest driver."""
        return self._directory.is_dir()

    def make(self, name: str) -> None:
        """mkdir."""
        (self._directory / name).mkdir()

    def remove(self, name: str) -> None:
        """rmdir; configfs removes the attributes with it."""
        (self._directory / name).rmdir()

    def has(self, name: str, attribute: str) -> bool:
        """Whether the file is there."""
        return (self._directory / name / attribute).exists()

    def read(self, name: str, attribute: str) -> bytes:
        """The file's bytes, at most 1 MiB."""
        octets = bytearray()
        with (self._directory / name / attribute).open("rb", buffering=0) as stream:
            while piece := stream.read(LARGEST_BLOB):
                octets += piece
                if len(octets) > LARGEST_BLOB:
                    raise OSError(errno.EFBIG, f"{attribute} is longer than {LARGEST_BLOB} bytes")
        return bytes(octets)

    def write(self, name: str, attribute: str, octets: bytes) -> None:
        """One write and one close, whose error is not lost: that is where configfs commits."""
        descriptor = os.open(self._directory / name / attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            done = os.write(descriptor, octets)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if done != len(octets):
            raise OSError(errno.EIO, f"{done} of {len(octets)} bytes were taken")


@dataclass(frozen=True, slots=True)
class TsmReport:
    """What one report gave: `outblob` is the evidence, `auxblob` may be empty."""

    outblob: bytes
    auxblob: bytes


def missing(provider: str, reports: Reports) -> str:
    """What this machine lacks for a report by `provider`, in one sentence; empty when nothing.

    Makes an empty report and removes it: only that shows the provider.
    """
    if not reports.there():
        return f"there is no {REPORTS}: the kernel is older than 6.7, or no guest driver for a TEE is loaded"
    try:
        with _report(reports) as name:
            found = _text(reports, name, "provider")
    except OSError as error:
        return f"{REPORTS} may not be used by this user: {error.strerror}"
    return "" if found == provider else f"the TEE here is {found!r}, not {provider!r}"


def report(inblob: bytes, *, provider: str, reports: Reports, sleep: Callable[[float], None] = time.sleep) -> TsmReport:
    """Evidence over `inblob` (64 bytes) by `provider`; raises `AttesterUnavailable`.

    Repeats where the firmware is busy or another writer came between; gives up after 5 attempts.
    """
    trouble = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(PAUSE * 2 ** (attempt - 1))
        try:
            with _report(reports) as name:
                return _once(reports, name, inblob, provider)
        except _Disturbed as error:
            trouble = str(error)
        except OSError as error:
            if error.errno not in _AGAIN:
                raise AttesterUnavailable(
                    f"{REPORTS}: {error.strerror or error}", hint="`strongroom doctor` says what is missing"
                ) from error
            trouble = error.strerror or str(error)
    raise AttesterUnavailable(
        f"the firmware gave no report in {ATTEMPTS} attempts: {trouble}", hint="try again in a minute"
    )


class _Disturbed(Exception):
    """Somebody else changed our report."""


@contextlib.contextmanager
def _report(reports: Reports) -> Iterator[str]:
    """The name of a report of our own, removed afterwards."""
    name = f"strongroom-{os.getpid()}-{secrets.token_hex(8)}"
    reports.make(name)
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            reports.remove(name)


def _once(reports: Reports, name: str, inblob: bytes, provider: str) -> TsmReport:
    found = _text(reports, name, "provider")
    if found != provider:
        raise AttesterUnavailable(f"the TEE here is {found!r}, not {provider!r}")
    before = _generation(reports, name)
    reports.write(name, "inblob", inblob)
    written = _generation(reports, name)
    if written != before + 1:
        raise _Disturbed(f"generation went from {before} to {written} after one write")
    outblob = reports.read(name, "outblob")
    auxblob = reports.read(name, "auxblob") if reports.has(name, "auxblob") else b""
    after = _generation(reports, name)
    if after != written:
        raise _Disturbed(f"generation went from {written} to {after} while the report was read")
    if not outblob:
        raise _Disturbed("an empty report")
    return TsmReport(outblob, auxblob)


def _generation(reports: Reports, name: str) -> int:
    text = _text(reports, name, "generation")
    if not text.isdecimal():
        raise AttesterUnavailable(f"{REPORTS}: generation is {text!r}")
    return int(text)


def _text(reports: Reports, name: str, attribute: str) -> str:
    return reports.read(name, attribute).decode("ascii", "replace").strip()
