"""Evidence as files: what people keep, mail and ask about.

A file is either the JSON document ``{"tee": "…", "evidence": {…}}`` that our own tools write, or the raw
bytes of one TEE's evidence, recognised by their form. This is for `strongroom explain` and `measure`;
protocols carry evidence in their own messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from strongroom.encoding import Fields, b64, parse_json
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.door import at_the_door
from strongroom.evidence.types import Evidence

LARGEST_FILE = 1 << 22
SNP_REPORT_SIZE = 1184


def _single(name: str) -> Callable[[bytes], Mapping[str, Any]]:
    return lambda octets: {name: b64(octets)}


_RAW: dict[str, Callable[[bytes], Mapping[str, Any]]] = {
    "snp": _single("report"),
    "tdx": lambda octets: {"quote": b64(octets), "cc_eventlog": None},
    "sgx": _single("quote"),
    "cca": lambda octets: {"token": list(octets)},
    "aws-nitro": _single("document"),
    "ear": lambda octets: {"token": octets.decode("ascii", "replace").strip()},
}
"""TEE → its body from raw bytes, for those whose evidence is one byte string."""


def read_evidence(octets: bytes, *, tee: str | None = None) -> Evidence:
    """The evidence in a file; `tee` says what raw bytes are where their form does not.

    Raises `EvidenceMalformed`.
    """
    if len(octets) > LARGEST_FILE:
        raise EvidenceMalformed(f"{len(octets)} bytes are no evidence, the limit is {LARGEST_FILE}")
    if octets.lstrip()[:1] == b"{":
        return _document(octets, tee)
    tee = tee or recognise(octets)
    if tee is None or tee not in _RAW:
        raise EvidenceMalformed(
            "these bytes do not say what they are",
            hint="--tee with one of " + ", ".join(sorted(_RAW)) + ', or a JSON file {"tee": …, "evidence": …}',
        )
    return Evidence(tee, _RAW[tee](octets))


def _document(octets: bytes, tee: str | None) -> Evidence:
    with at_the_door("evidence file"):
        value = parse_json(octets, where="evidence file", limit=LARGEST_FILE)
        if tee is not None and isinstance(value, Mapping) and "evidence" not in value:
            return Evidence(tee, value)
        read = Fields(value, where="evidence file")
        evidence = Evidence(read.text("tee", limit=64), read.value("evidence"))
        read.done()
    return evidence


def write_evidence(evidence: Evidence) -> dict[str, Any]:
    """The JSON document that `read_evidence` reads back."""
    return {"tee": evidence.tee, "evidence": dict(evidence.body)}


def recognise(octets: bytes) -> str | None:
    """Which TEE's raw evidence this looks like, or None. Nothing is verified."""
    if len(octets) == SNP_REPORT_SIZE and int.from_bytes(octets[:4], "little") in range(2, 6):
        return "snp"
    version, kind = int.from_bytes(octets[:2], "little"), int.from_bytes(octets[4:8], "little")
    if len(octets) > 1000 and version in (3, 4, 5) and kind in (0, 0x81):
        return "tdx" if kind == 0x81 else "sgx"
    if octets[:3] == b"\xd9\x01\x8f":
        return "cca"
    if octets[:1] in (b"\x84", b"\xd2") and b"module_id" in octets[:64]:
        return "aws-nitro"
    if octets[:3] == b"eyJ" and octets.count(b".") == 2:
        return "ear"
    return None
