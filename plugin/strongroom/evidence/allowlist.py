"""Allow-lists of a policy: read once, compared in one way, with one rule for the empty one.

A list that is absent is None and asks for nothing; a list that is present and empty allows
nothing, so nobody opens a policy by deleting its last entry.
"""

from __future__ import annotations

from collections.abc import Collection

from strongroom.encoding import Fields, unhex
from strongroom.errors import MalformedInput
from strongroom.evidence.types import Checklist, Word

HexSet = frozenset[str]


def hex_set(table: Fields, name: str, *, sizes: Collection[int]) -> HexSet | None:
    """A list of values in lower-case hex, each of one of `sizes` bytes; None where it is absent.

    Raises `MalformedInput`.
    """
    if not table.has(name):
        return None
    values = table.texts(name)
    for value in values:
        octets = unhex(value, where=f"{table.where}: {name}")
        if len(octets) not in sizes:
            allowed = " or ".join(map(str, sorted(sizes)))
            raise MalformedInput(f"{table.where}: {name} holds {len(octets)} bytes, allowed is {allowed}")
    return frozenset(values)


def text_set(table: Fields, name: str) -> frozenset[str] | None:
    """A list of strings; None where it is absent."""
    return frozenset(table.texts(name)) if table.has(name) else None


def check_allowed(
    allowed: frozenset[str] | None, found: str, checks: Checklist, *, name: str, word: Word, key: str, source: str
) -> None:
    """Record that `found` is on the list; nothing where there is no list. `key` is its name in the policy."""
    if allowed is None:
        return
    listed = sorted(allowed)
    expected = "nothing is allowed: the list is empty"
    if listed:
        expected = "one of " + ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
    checks.that(
        found in allowed, name, word, expected=expected, found=found or "(none)", source=source,
        hint=f"if you trust this value, add it to {key} in the policy; if not, it is not what you meant to run",
    )  # fmt: skip
