"""Init-data: a text that a guest was started with, held by its digest in a field of the hardware's evidence.

docs/attestation/init-data.md. The hardware says which digest the host gave it beside the image; the text itself
comes from anywhere. Where a TEE has no such field (a TPM, and Azure's guests behind one) the guest extends PCR 8,
as the key broker protocol has it.

Pure functions of texts and claims: who reads devices is `launch.roots`, who takes the text from a keeper is `broker`.
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from strongroom.encoding import Fields, unhex
from strongroom.errors import MalformedInput
from strongroom.evidence.allowlist import HexSet
from strongroom.evidence.types import Checklist, Claim, Claims, Provenance, Word

FIELDS = {
    "snp": ("host_data", 32),
    "tdx": ("mr_config_id", 48),
    "sgx": ("config_id", 64),
    "cca": ("personalization", 64),
}
"""TEE → the claim that holds the digest, and its width in bytes."""
VIRTUAL_TPMS = frozenset({"tpm", "az-snp-vtpm", "az-tdx-vtpm"})
PCR = 8
ALGORITHMS = {"sha256": 32, "sha384": 48, "sha512": 64}
CLAIM = "init_data"
EVENT = "launch.init-data"
LARGEST = 4 << 20
"""Bytes of an init-data file."""
SOURCE = "docs/attestation/init-data.md"

C = TypeVar("C", bound=Claims)


@dataclass(frozen=True, slots=True)
class InitData:
    """A parsed file. `data` maps names to texts; everything that is hashed is `text`."""

    text: str
    algorithm: str
    data: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> InitData:
        """Raises `MalformedInput`."""
        if len(text) > LARGEST:
            raise MalformedInput(f"init-data: {len(text)} characters, the limit is {LARGEST}")
        try:
            read = Fields(tomllib.loads(text), where="init-data")
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise MalformedInput(f"init-data: not TOML: {error}") from error
        read.text("version", limit=16)
        algorithm = read.text("algorithm", limit=16)
        if algorithm not in ALGORITHMS:
            raise MalformedInput(f"init-data: algorithm {algorithm!r} is not {', '.join(ALGORITHMS)}")
        data = read.value("data")
        read.done()
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
            raise MalformedInput("init-data: [data] is not a table of texts")
        return cls(text, algorithm, data)

    @property
    def digest(self) -> bytes:
        """32, 48 or 64 bytes, over the exact text."""
        return hashlib.new(self.algorithm, self.text.encode("utf-8")).digest()

    def field(self, tee: str) -> bytes:
        """What the hardware's field has to hold; raises `MalformedInput` for a TEE that has none."""
        value = fitted(self.digest, tee)
        if value is None:
            why = "its algorithm has to be sha256" if tee in VIRTUAL_TPMS else "that evidence has no field for it"
            raise MalformedInput(f"init-data: nothing of {tee} can hold this digest: {why}")
        return value


def fitted(digest: bytes, tee: str) -> bytes | None:
    """A digest as `tee` carries it: padded with zeros or cut, or extended into PCR 8. None where it cannot be."""
    if tee in VIRTUAL_TPMS:
        return hashlib.sha256(bytes(32) + digest).digest() if len(digest) == 32 else None
    if tee not in FIELDS:
        return None
    width = FIELDS[tee][1]
    return digest[:width].ljust(width, b"\0")


def field_of(claims: Claims) -> Claim | None:
    """The field of verified evidence as hex, and who says so; None where there is none, or it was never set."""
    if claims.tee in VIRTUAL_TPMS:
        registers = claims.values.get("pcrs")
        if registers is None or claims.get("pcr_bank", "sha256") != "sha256":
            return None
        value, provenance = registers.value.get(str(PCR)), registers.provenance
    elif claims.tee in FIELDS:
        claim = claims.values.get(FIELDS[claims.tee][0])
        value, provenance = (None, Provenance.HARDWARE) if claim is None else (claim.value, claim.provenance)
    else:
        return None
    text = value.hex() if isinstance(value, bytes) else str(value or "")
    return Claim(text, provenance) if text.strip("0") else None


def with_init_data(claims: C) -> C:
    """The claims with ``init_data`` among them, where the evidence has such a field."""
    found = field_of(claims)
    return claims if found is None else replace(claims, values={**claims.values, CLAIM: found})


def check_field(init_data: InitData, claims: Claims) -> None:
    """Raise `MalformedInput` unless the hardware behind `claims` was started with this text."""
    expected, found = init_data.field(claims.tee), field_of(claims)
    octets = b"" if found is None else unhex(found.value, where=f"{claims.tee} init-data")
    if not hmac.compare_digest(octets, expected):
        raise MalformedInput(
            f"init-data: its digest {expected.hex()} is not what the {claims.tee} hardware holds: "
            f"{octets.hex() or 'nothing'}"
        )


def appraise(claims: Claims, allowed: HexSet | None, checks: Checklist) -> None:
    """Hold the evidence against a policy's ``init_data``: digests of files, in hex. None asks nothing.

    What software says about itself does not count, except where the whole TEE is such talk (``simulated``).
    """
    if allowed is None:
        return
    field, event = claims.values.get(CLAIM), claims.values.get(EVENT)
    believed = {Provenance.HARDWARE}
    fits = {value.hex() for each in allowed if (value := fitted(bytes.fromhex(each), claims.tee)) is not None}
    if claims.tee == "simulated":
        believed, fits = {Provenance.SELF_ASSERTED}, set(allowed)
    by_field = field is not None and field.provenance in believed and field.value in fits
    by_event = event is not None and event.provenance is Provenance.EVENT_LOG and event.value in allowed
    claims_found = [each for each in (field, event) if each is not None and isinstance(each.value, str)]
    said = [f"{each.value} ({each.provenance})" for each in claims_found]
    checks.that(
        by_field or by_event, f"{claims.tee}.init-data", Word.MEASUREMENT,
        expected="one of " + ", ".join(sorted(allowed)) if allowed else "nothing is allowed: the list is empty",
        found=" and ".join(said) or "none", source=SOURCE,
        hint="this guest was not started with an init-data file that you know: strongroom measure --init-data FILE",
    )  # fmt: skip
