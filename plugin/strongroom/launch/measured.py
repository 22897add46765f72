"""What a launch is about to start, extended into a register before it starts anything.

The hardware's measurement says which image booted. Which configuration that image was then given, whose
archives it admits and what is installed is said by digests that a register of the TPM takes on and nobody
can take back before a reboot. A verifier replays the launch log against the quoted register, and a policy may
demand each digest: ``launch = { configuration = ["…"] }`` (docs/attestation/tpm.md). The claims have the
provenance ``event-log``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from strongroom.encoding import labelled
from strongroom.errors import LaunchRefused
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


class Register(Protocol):
    """Something that takes measurements on: `attest.tpm.TpmAttester`."""

    def extend(self, digest: bytes, event: str) -> object:
        """Add one; raises `AttesterUnavailable`."""


def measurements(
    configuration: bytes, admitted: Iterable[Admitted], installed: Iterable[Installed]
) -> tuple[Measurement, ...]:
    """The events of one launch, in the order in which they are extended.

    `configuration` is the digest of the file's bytes, as `strongroom` clients see it in the evidence; `admitted`
    covers archives, authors, names and versions; `installed` the distributions as they were recorded.
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
    return (
        Measurement("configuration", configuration),
        Measurement("admitted", hashlib.sha256(labelled(LABEL, b"admitted", *archives)).digest()),
        Measurement("distributions", hashlib.sha256(labelled(LABEL, b"distributions", *packages)).digest()),
    )


def extend(register: Register, already: Sequence[Extended], wanted: Iterable[Measurement]) -> list[Measurement]:
    """Extend what does not stand there yet; gives what was extended.

    A launcher that is started again in the same boot finds its own events, and they must be the same:
    raises `LaunchRefused` for another configuration, since the register cannot forget the first.
    """
    known = {each.event: each.digest for each in already}
    wanted = list(wanted)
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
