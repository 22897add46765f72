"""Where a release policy stops: each statement of each rule's body, and the first one that does not hold.

The interpreter says only what a rule's value is. So for a rule without arguments the policy is evaluated again with
helper rules whose bodies are the first statement, the first two, and so on; the first helper that is undefined names
the statement. This is for `strongroom policy test`: a broker's decision never takes this path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.broker.rego import ReleasePolicy, masked

HOLDS, STOPS, NOT_REACHED = "holds", "stops here", "not reached"

_HEAD = re.compile(
    r"^(?P<name>[A-Za-z_]\w*)(?P<rest>[^\n{(]*?)(?:(?P<if>\bif\b)[ \t]*(?P<body>\{|(?=\S))|(?P<old>\{))", re.MULTILINE
)
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a rule's body: its line in the policy, its text, and `HOLDS`, `STOPS` or `NOT_REACHED`."""

    rule: str
    line: int
    text: str
    state: str


@dataclass(frozen=True, slots=True)
class _Body:
    rule: str
    word: str  # "if " in the newer syntax
    statements: tuple[tuple[int, str], ...]  # (offset, text)


def trace(policy: ReleasePolicy, claims: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Statement, ...]:
    """The statements of every rule that takes no argument, in the order of the text."""
    found: list[Statement] = []
    for body in _bodies(policy.text):
        reached = True
        for number, (offset, text) in enumerate(body.statements):
            holds = reached and _holds(policy, body, number + 1, claims, data)
            state = HOLDS if holds else STOPS if reached else NOT_REACHED
            found.append(Statement(body.rule, policy.text.count("\n", 0, offset) + 1, text, state))
            reached = holds
    return tuple(found)


def _holds(policy: ReleasePolicy, body: _Body, count: int, claims: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether the first `count` statements of a body hold together."""
    helper = "strongroom_trace"
    inside = "\n\t".join(text for _, text in body.statements[:count])
    longer = ReleasePolicy(f"{policy.text}\n\n{helper} {body.word}{{\n\t{inside}\n}}\n")
    return longer.value_of(helper, claims, data) is True


def _bodies(text: str) -> Iterator[_Body]:
    code = masked(text)
    for head in _HEAD.finditer(code):
        if head["name"] in ("default", "import", "package", "else"):
            continue
        if head["old"] and (":=" in head["rest"] or "=" in head["rest"]):
            continue  # `name := {…` is a value and no body
        word = "if " if head["if"] else ""
        if head["old"] or head["body"] == "{":
            inside = (head.end(), _closing(code, head.end()))
        else:
            inside = (head.end(), _end_of_line(code, head.end()))
        statements = tuple(_statements(text, code, *inside))
        if statements:
            yield _Body(head["name"], word, statements)


def _closing(code: str, begin: int) -> int:
    """The offset of the brace that closes the one before `begin`."""
    depth = 1
    for offset in range(begin, len(code)):
        depth += (code[offset] == "{") - (code[offset] == "}")
        if depth == 0:
            return offset
    return len(code)


def _end_of_line(code: str, begin: int) -> int:
    """The end of a body without braces: of the line, or of the line where its last bracket closes."""
    depth = 0
    for offset in range(begin, len(code)):
        depth += (code[offset] in _OPENING) - (code[offset] in _CLOSING)
        if code[offset] == "\n" and depth == 0:
            return offset
    return len(code)


def _statements(text: str, code: str, begin: int, end: int) -> Iterator[tuple[int, str]]:
    """(offset, text) of what stands between line ends and semicolons, outside of brackets."""
    depth, first = 0, begin
    for offset in range(begin, end + 1):
        at_end = offset == end
        if at_end or (depth == 0 and code[offset] in "\n;"):
            stripped = code[first:offset].strip()
            if stripped:
                lead = len(code[first:offset]) - len(code[first:offset].lstrip())
                yield first + lead, text[first + lead : first + lead + len(stripped)]
            first = offset + 1
        if not at_end:
            depth += (code[offset] in _OPENING) - (code[offset] in _CLOSING)
