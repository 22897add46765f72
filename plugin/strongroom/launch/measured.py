"""What a launch is about to start, extended into a register before it starts anything.

The hardware's measurement says which image booted. Which configuration that image was then given, whose
archives it admits and what is installed is said by digests that a register (a TPM's PCR, TDX's RTMR) takes on
and nobody can take back before a reboot. A verifier replays the launch log against the quoted register, and a
policy may demand each digest: ``launch = { configuration = ["…"] }`` (docs/attestation/init-data.md). The claims
have the provenance ``event-log``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from strongroom.encoding import labelled
from strongroom.errors import LaunchRefused
from strongroom.keys import AuthorId
from strongroom.launch.admission import Admitted
from strongroom.launch.surroundings import Installed

LABEL = "strongroom launch measurement 1"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One event: its name and its 32-byte digest."""

    event: str
    digest: bytes


class Extended(Protocol):
    """An event that stands in a register already."""

    @property
    def event(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> bytes: ...  # noqa: D102


@runtime_checkable
class Register(Protocol):
    """Something that takes measurements on: the attester of a TPM or of TDX."""

    def launched(self) -> Sequence[Extended]:
        """What stands in it already; raises `AttesterUnavailable`."""

    def launch_trouble(self) -> str:
        """Why nothing can be extended or shown, in one sentence; empty where it can."""

    def extend(self, digest: bytes, event: str) -> object:
        """Add one; raises `AttesterUnavailable`."""


def trust_roots(authors: Iterable[AuthorId], ca: bytes) -> bytes:
    """SHA-256 over the ids of the trusted authors and the broker's CA file (no bytes where there is none)."""
    ids = sorted(bytes(each) for each in authors)
    return hashlib.sha256(labelled(LABEL, b"trust-roots", hashlib.sha256(ca).digest() if ca else b"", *ids)).digest()


def measurements(
    configuration: bytes,
    admitted: Iterable[Admitted],
    installed: Iterable[Installed],
    *,
    roots: bytes,
    init_data: bytes | None = None,
) -> tuple[Measurement, ...]:
    """The events of one launch, in the order in which they are extended.

    `configuration` is the digest of the file's bytes, as `strongroom` clients see it in the evidence; `admitted`
    covers archives, authors, names and versions; `installed` the distributions as they were recorded; `roots` is
    `trust_roots`; `init_data` the exact bytes of that file.
    """
    archives = sorted(
        labelled(
            "archive", bytes(each.archive), bytes(each.author), each.name.encode(), each.version.to_bytes(8, "big")
        )
        for each in admitted
    )
    packages = sorted(
        labelled("distribution", each.name.encode(), each.version.encode(), each.digest.encode()) for each in installed
    )
    started = () if init_data is None else (Measurement("init-data", hashlib.sha256(init_data).digest()),)
    return (
        *started,
        Measurement("configuration", configuration),
        Measurement("trust-roots", roots),
        Measurement("admitted", hashlib.sha256(labelled(LABEL, b"admitted", *archives)).digest()),
        Measurement("distributions", hashlib.sha256(labelled(LABEL, b"distributions", *packages)).digest()),
    )


def extend(register: Register, wanted: Iterable[Measurement]) -> list[Measurement]:
    """Extend what does not stand there yet; gives what was extended.

    A launcher that is started again in the same boot finds its own events, and they must be the same:
    raises `LaunchRefused` for another configuration, since the register cannot forget the first.
    """
    known = {each.event: each.digest for each in register.launched()}
    wanted = list(wanted)
    gone = known.keys() - {each.event for each in wanted}
    if gone:
        raise LaunchRefused(
            f"in this boot something was launched that also had {', '.join(sorted(gone))}",
            hint="reboot the guest to launch another one; a register cannot forget",
        )
    for each in wanted:
        if known.get(each.event, each.digest) != each.digest:
            raise LaunchRefused(
                f"in this boot another {each.event} was launched and measured already: {known[each.event].hex()[:16]}…",
                hint="reboot the guest to launch another one; a register cannot forget",
            )
    fresh = [each for each in wanted if each.event not in known]
    for each in fresh:
        register.extend(each.digest, each.event)
    return fresh
