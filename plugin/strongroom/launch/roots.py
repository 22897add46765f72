"""Trust roots come from hardware: what this guest was started with is compared before anything is believed of it.

docs/attestation/init-data.md has the table of fields. The hardware of this very machine is asked, by its attester;
what it says is not verified up to a vendor's root here, since whoever will rely on it does that with the evidence.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from strongroom.errors import EvidenceMalformed, LaunchRefused, MalformedInput
from strongroom.evidence.init_data import FIELDS, InitData, field_of
from strongroom.evidence.reference import claims_of
from strongroom.evidence.types import Attester, Verifier
from strongroom.launch.measured import Register

SIMULATED = "simulated"
BY_EVENT = "the launch event init-data"


@runtime_checkable
class HoldsInitData(Protocol):
    """An attester that can read the hardware's field without asking for a whole piece of evidence."""

    def init_data_field(self) -> bytes:
        """Its bytes; raises `AttesterUnavailable`."""


@runtime_checkable
class ExtendsInitData(Protocol):
    """An attester whose TEE has no field, and a register in its place."""

    def init_data_state(self) -> bytes:
        """The register; zeros where nothing extended it. Raises `AttesterUnavailable`."""

    def bind_init_data(self, digest: bytes) -> None:
        """Extend it, once a boot; raises `AttesterUnavailable`."""


@contextlib.contextmanager
def opened(attester: Attester) -> Iterator[Attester]:
    """Closed at the end, where it can be: another process is about to use the same device."""
    try:
        yield attester
    finally:
        close = getattr(attester, "close", None)
        if close is not None:
            close()


def check_init_data(init_data: InitData, attester: Attester, verifiers: Mapping[str, Verifier]) -> str:
    """What holds the digest, in one sentence; raises `LaunchRefused` unless something does or can.

    Changes nothing. `AttesterUnavailable` comes through.
    """
    tee = attester.tee
    if tee == SIMULATED:
        return "nothing: the simulated TEE only repeats it"
    try:
        expected = init_data.field(tee)
    except MalformedInput as error:
        raise LaunchRefused(str(error), hint="docs/attestation/init-data.md lists the fields") from error
    if isinstance(attester, ExtendsInitData):
        state = attester.init_data_state()
        if any(state) and not hmac.compare_digest(state, expected):
            raise _refused(tee, "PCR 8", state, expected)
        return "PCR 8"
    found = _field(attester, verifiers)
    name = FIELDS[tee][0]
    if hmac.compare_digest(found, expected):
        return name
    if any(found) or tee != "tdx":
        raise _refused(tee, name, found, expected)
    trouble = attester.launch_trouble() if isinstance(attester, Register) else "there is no register"
    if trouble:
        raise LaunchRefused(
            f"{name} is all zeros, so nothing was fixed at launch, and {trouble}",
            hint="start the guest with the digest (strongroom measure --init-data FILE), or use a newer kernel",
        )
    return BY_EVENT


def bind_init_data(init_data: InitData, attester: Attester) -> None:
    """Extend PCR 8 where that is the field; raises `AttesterUnavailable`."""
    if isinstance(attester, ExtendsInitData):
        attester.bind_init_data(init_data.digest)


def _field(attester: Attester, verifiers: Mapping[str, Verifier]) -> bytes:
    if isinstance(attester, HoldsInitData):
        return attester.init_data_field()
    try:
        claims = claims_of(attester.evidence(secrets.token_bytes(64)), verifiers[attester.tee])
    except (EvidenceMalformed, KeyError) as error:
        raise LaunchRefused(f"the evidence of this {attester.tee} guest cannot be read: {error}") from error
    found: Any = field_of(claims)
    return b"" if found is None else bytes.fromhex(found.value)


def _refused(tee: str, name: str, found: bytes, expected: bytes) -> LaunchRefused:
    return LaunchRefused(
        f"this {tee} guest was started with another init-data: {name} holds {found.hex() or 'nothing'}, "
        f"the file's digest is {expected.hex()}",
        hint="start the guest with this file's digest (strongroom measure --init-data FILE), or use the file it had",
    )
