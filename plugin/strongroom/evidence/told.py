"""A verdict or refusal as a tool of ours wrote it down: for whoever is shown one later (`strongroom explain`).

Written by `Verdict.serialise`, by ``--json`` of the verbs that judge, and by the broker's audit log, which keeps the
failed checks only. Nothing is decided on what is read here: a file can say anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.encoding import parse_json
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.types import Check, Word

LARGEST = 1 << 24


@dataclass(frozen=True, slots=True)
class Part:
    """What was found about one device: its checks, and claims as ``{name: {"value", "provenance"}}``."""

    checks: tuple[Check, ...]
    claims: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Told:
    """A verdict that was written down. `bound` says whether report data was compared."""

    policy: str
    parts: Mapping[str, Part]
    accepted: bool
    bound: bool = True

    @property
    def checks(self) -> tuple[Check, ...]:
        """All of them, in order."""
        return tuple(check for part in self.parts.values() for check in part.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.checks if not check.ok)

    @classmethod
    def parse(cls, octets: bytes) -> Told | None:
        """From a JSON file; None where it holds no verdict. Raises `EvidenceMalformed` for a broken one."""
        try:
            value = parse_json(octets, where="file", limit=LARGEST)
        except MalformedInput:
            return None
        for each in (value, value.get("verdict"), value.get("refusal")) if isinstance(value, dict) else ():
            if isinstance(each, dict) and ("submodules" in each or "checks" in each):
                return cls.of(each)
        return None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Told:
        """From a decoded verdict or refusal; raises `EvidenceMalformed`."""
        submodules = value.get("submodules")
        if submodules is None:
            parts = {str(value.get("tee", "")): _part(value)}
        elif isinstance(submodules, Mapping):
            parts = {str(name): _part(each) for name, each in submodules.items()}
        else:
            raise _broken("submodules")
        checks = [check for part in parts.values() for check in part.checks]
        said = value.get("accepted", value.get("decision", "granted") == "granted")
        accepted = said is True and bool(checks) and all(check.ok for check in checks)
        return cls(str(value.get("policy", "?")), parts, accepted, value.get("bound", True) is True)


def _part(value: object) -> Part:
    if not isinstance(value, Mapping):
        raise _broken("submodules")
    checks, claims = value.get("checks", []), value.get("claims", {})
    if not isinstance(checks, list):
        raise _broken("checks")
    if not isinstance(claims, Mapping) or not all(isinstance(each, Mapping) for each in claims.values()):
        raise _broken("claims")
    return Part(tuple(map(_check, checks)), {str(name): each for name, each in claims.items()})


def _check(value: object) -> Check:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise _broken("checks")
    word = str(value.get("word", Word.FORMAT))
    if word not in set(map(str, Word)):
        raise _broken("checks")
    said = {name: str(value.get(name, "")) for name in ("expected", "found", "source", "hint")}
    return Check(value["name"], Word(word), value.get("ok") is True, **said)


def _broken(what: str) -> EvidenceMalformed:
    return EvidenceMalformed(
        f"this file looks like a verdict, but its {what} cannot be read",
        hint="give the file as the tool wrote it, whole",
    )
