"""Init-data: a TOML text that a host gives its guest at launch, held by its digest in the hardware's field.

docs/release.md section 4. The hardware says which text it was started with; the guest sends the text. A TEE
whose field we do not know is refused, rather than taking the text on trust.
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from typing import Any

from strongroom.encoding import Fields, unhex
from strongroom.errors import MalformedInput
from strongroom.evidence.types import Claims

FIELDS = {
    "snp": ("host_data", 32),
    "tdx": ("mr_config_id", 48),
    "sgx": ("config_id", 64),
    "cca": ("personalization", 64),
}
"""TEE → the claim that holds the digest, and its width in bytes."""


def check_init_data(text: str, claims: Claims) -> dict[str, Any]:
    """The ``[data]`` table of an init-data text that the hardware vouches for; raises `MalformedInput`."""
    try:
        read = Fields(tomllib.loads(text), where="init-data")
    except tomllib.TOMLDecodeError as error:
        raise MalformedInput(f"init-data: not TOML: {error}") from error
    read.text("version", limit=16)
    algorithm = read.text("algorithm", limit=16)
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise MalformedInput(f"init-data: algorithm {algorithm!r} is not sha256, sha384 or sha512")
    data = read.value("data")
    read.done()
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise MalformedInput("init-data: [data] is not a table of texts")
    if claims.tee not in FIELDS:
        raise MalformedInput(f"init-data: {claims.tee} evidence has no field that would bind it")
    claim, width = FIELDS[claims.tee]
    value = claims.get(claim)
    found = value if isinstance(value, bytes) else unhex(str(value), where=f"{claims.tee} {claim}")
    # As for report data: a digest is padded with zeros, or cut, to the width of the hardware's field.
    expected = hashlib.new(algorithm, text.encode("utf-8")).digest()[:width].ljust(width, b"\0")
    if not hmac.compare_digest(found, expected):
        raise MalformedInput(f"init-data: its digest {expected.hex()} is not the {claim} {found.hex()} of the hardware")
    return data
