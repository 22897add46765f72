"""The release policy: Rego, evaluated over attestation results, default deny (docs/release.md section 7).

Only a literal ``true`` of ``data.policy.allow``, from an evaluation that ended well, grants. The
interpreter (regopy) leaves some builtins undefined without saying so, and ``not f(x)`` of an undefined
``f`` is true; so a policy may call only builtins that tests/broker/test_rego_builtins.py has proved. It runs as
a process of its own (`engine`), which may die or hang without harm: then nothing is granted.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from strongroom.broker.engine import ENGINE, Unanswered, Uninstalled
from strongroom.broker.templates import TEMPLATES, template_text
from strongroom.errors import ConfigurationInvalid
from strongroom.hookspecs import PolicyTemplate

NOTHING_OFFERED: Mapping[str, PolicyTemplate] = MappingProxyType({})

POLICY_LIMIT = 1 << 18
"""Characters of one policy."""

PROVED_BUILTINS = frozenset(
    """
    abs array.concat array.reverse base64.decode base64url.decode ceil concat contains count
    endswith floor format_int indexof intersection is_array is_boolean is_null is_number is_object is_set is_string
    json.unmarshal lower max min numbers.range object.get object.keys regex.match replace round sort split
    startswith strings.any_prefix_match strings.any_suffix_match substring sum to_number trim trim_left trim_prefix
    trim_right trim_space trim_suffix type_name union upper
    """.split()  # noqa: SIM905 - a list of words reads better as words
)

OTHER_BUILTINS = frozenset(
    """
    all and any assign cast_array cast_boolean cast_null cast_object cast_set cast_string div eq equal gt gte
    indexof_n lt lte minus mul neq or plus print product re_match rem set_diff sprintf trace walk
    """.split()  # noqa: SIM905 - a list of words reads better as words
)
"""Names without a dot that Rego has or had for builtins and that are not proved: no function of a policy has one."""

_KEYWORDS = frozenset({"not", "in", "if", "some", "every", "else", "default", "with", "as", "package", "import"})
_NOT_CODE = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*')
_CALL = re.compile(r"([A-Za-z_]\w*(?:\s*\.\s*[A-Za-z_]\w*)*)\s*\(")
_RULE = re.compile(r"^(?:default[ \t]+)?([A-Za-z_]\w*)[ \t]*(?=:=|=[^=]|\{|if\b|contains\b|\[)", re.MULTILINE)
"""The head of a rule that takes no arguments."""
_FUNCTION = re.compile(r"^[ \t]*([A-Za-z_]\w*)[ \t]*\(", re.MULTILINE)
"""What may be the head of a function, if it stands outside all brackets; `_defined` looks closer."""
_HEAD_ENDS = re.compile(r"\s*(?::=|=(?!=)|if\b|\{)")
_UNFINISHED = re.compile(r"(?:[^\w\s)\]}\"`]|\b(?:if|else|not|in|default|some|every|contains|as|import|package))$")
"""The end of a text that goes on in the next line, which then begins no rule."""

_DATA = re.compile(r"\bdata\b(?!\s*\.\s*(?:plugin|policy)\b)")
_BARE_DATA = re.compile(r"(?<![.\w])data\b(?!\s*\.\s*[A-Za-z_]|\[\s*\"\")")


_DEVICE = {
    "ear.status": "affirming",
    "ear.trustworthiness-vector": {"hardware": 2, "executables": 3, "configuration": 3},
    "strongroom.revocation": "judged",
    "ear.veraison.annotated-evidence": {"snp": {"measurement": "00"}, "report_data": "00", "runtime_data_claims": {}},
}
_SAMPLES: tuple[Mapping[str, Any], ...] = (
    {"submods": {"cpu0": _DEVICE}, "iat": 1, "exp": 2},
    {"submods": {"cpu0": _DEVICE, "gpu0": _DEVICE}, "iat": 1, "exp": 2},
)
"""Tokens in the shape that policies are written for, on which a policy is tried when it is set."""


def policy_text(path: Path) -> str:
    """What a policy's file says, Rego or TOML; raises `ConfigurationInvalid`."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationInvalid(f"{path} is not a policy: it is not UTF-8", hint="save it as UTF-8 text") from error
    except OSError as error:
        raise ConfigurationInvalid(f"{path} cannot be read as a policy: {error.strerror}") from error


def _code(text: str) -> str:
    """A policy without its comments, and with every string empty."""
    return _NOT_CODE.sub(lambda found: "" if found.group().startswith("#") else '""', text)


def masked(text: str) -> str:
    """A policy of the same length whose comments are spaces, and whose strings hold nothing that could be code."""

    def mask(found: re.Match[str]) -> str:
        octets = found.group()
        if octets.startswith("#"):
            return " " * len(octets)
        return octets[0] + "_" * (len(octets) - 2) + octets[-1]

    return _NOT_CODE.sub(mask, text)


def _defined(code: str) -> frozenset[str]:
    """The functions that a policy defines: heads outside all brackets, where nothing before them is unfinished.

    A call in a rule's body that begins a line is none. What is not surely a head is left out, and so refused.
    """
    depth, depths = 0, []
    for each in code:
        depths.append(depth)
        depth += (each in "([{") - (each in ")]}")
    found = set()
    for head in _FUNCTION.finditer(code):
        opened = head.end() - 1
        if depths[opened] or _UNFINISHED.search(code[: head.start()].rstrip()[-20:]):
            continue
        closed = next((at for at in range(opened + 1, len(code)) if code[at] == ")" and depths[at] == 1), None)
        if closed is not None and _HEAD_ENDS.match(code, closed + 1):
            found.add(head.group(1))
    return frozenset(found)


def request_data(plugin: str, name: Sequence[str], query: Mapping[str, str], owner: str | None) -> dict[str, Any]:
    """What a policy sees as `data`: who is asked, for which name, and whose it is, where its signed header says so."""
    data: dict[str, Any] = {"plugin": plugin, "resource-path": list(name), "query": dict(query)}
    return data | ({} if owner is None else {"owner": owner})


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy said: `granted` only for a literal true; `reason` for our log, never for the peer.

    `made` is false where the interpreter died or was too slow: then nothing is granted, and nothing was refused.
    """

    granted: bool
    reason: str
    made: bool = True


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """A checked Rego text of the package ``policy`` with a rule ``allow``."""

    text: str

    @classmethod
    def parse(cls, text: str) -> ReleasePolicy:
        """Refuse, with `ConfigurationInvalid`, what does not compile or calls an unproved builtin."""
        if len(text) > POLICY_LIMIT:
            raise ConfigurationInvalid(f"the policy has {len(text)} characters, the limit is {POLICY_LIMIT}")
        code = _code(text)
        if not re.search(r"^\s*package\s+policy\s*$", code, re.MULTILINE):
            raise ConfigurationInvalid("a release policy is of `package policy`", hint="its rule is data.policy.allow")
        if re.search(r"\bwith\b", code):
            raise ConfigurationInvalid("the keyword `with` is not accepted", hint="it replaces what a rule looks at")
        if _BARE_DATA.search(code):
            raise ConfigurationInvalid(
                "`data` as a whole, or by a variable, cannot be evaluated here",
                hint='name what you read: data.plugin, data["resource-path"], data.owner, data.query, data.policy.x',
            )
        defined = _defined(code)
        if shadowed := defined & (PROVED_BUILTINS | OTHER_BUILTINS):
            raise ConfigurationInvalid(
                f"the policy defines {min(shadowed)}, which is the name of a builtin", hint="give it another name"
            )
        for name in (re.sub(r"\s", "", each) for each in _CALL.findall(code)):
            local = name in defined or name.startswith("data.policy.")
            if name not in _KEYWORDS and name not in PROVED_BUILTINS and not local:
                raise ConfigurationInvalid(
                    f"the policy calls {name}, which is not on the list of proved builtins",
                    hint="docs/release.md section 7 lists them; write the rule without it",
                )
        policy = cls(text)
        try:
            ok, said = policy._query("data.policy.allow", {}, {})
            for claims in _SAMPLES:
                policy._query("data.policy.allow", claims, {})  # for whether it ends at all
        except Uninstalled as error:
            raise ConfigurationInvalid(str(error), hint="pip install 'strongroom[broker]'") from error
        except Unanswered as error:
            raise ConfigurationInvalid(
                f"the policy cannot be used: {error}",
                hint="write it with plainer expressions: docs/release.md section 7",
            ) from error
        if not ok:
            raise ConfigurationInvalid(
                f"the interpreter cannot evaluate the policy: {said}",
                hint="give an iterated value a name before `in`: `m := input.x[_].y; m in {…}`",
            )
        return policy

    @classmethod
    def template(cls, name: str, offered: Mapping[str, PolicyTemplate] = NOTHING_OFFERED) -> ReleasePolicy:
        """One of `TEMPLATES`, shipped with the package, or a release policy among `offered` (`Plugins.policies`).

        Raises `ConfigurationInvalid`.
        """
        if name in TEMPLATES:  # no offer can have such a name: the shipped ones are offers too
            return cls.parse(template_text(name))
        release = [each for each, template in offered.items() if template.kind == "rego"]
        if name not in release:
            names = dict.fromkeys((*TEMPLATES, *sorted(release)))
            raise ConfigurationInvalid(
                f"no policy template is called {name!r}",
                hint=f"there are {', '.join(names)}; --plugin NAME brings those of a plugin",
            )
        return cls.parse(offered[name].text)

    def decide(self, claims: Mapping[str, Any], data: Mapping[str, Any]) -> Decision:
        """Evaluate over a token's claims (`input`) and the request (`data`). Never raises: what fails denies."""
        try:
            ok, value = self._query("data.policy.allow", claims, data)
        except Unanswered as error:
            return Decision(False, f"the policy was not evaluated: {error}", made=False)
        if not ok:
            return Decision(False, f"the policy could not be evaluated: {value}")
        if value is True:
            return Decision(True, "data.policy.allow is true")
        return Decision(False, f"data.policy.allow is {'false or undefined' if value is None else repr(value)[:100]}")

    def value_of(self, rule: str, claims: Mapping[str, Any], data: Mapping[str, Any]) -> object:
        """The value of one rule of the policy, for a trace; None where it is undefined or fails."""
        with contextlib.suppress(Unanswered):
            ok, value = self._query(f"value = data.policy.{rule}", claims, data, binding="value")
            return value if ok else None
        return None

    def rules(self) -> Sequence[str]:
        """The names of the rules in the text, in order and once each, functions left out."""
        return tuple(dict.fromkeys(name for name in _RULE.findall(_code(self.text)) if name not in _KEYWORDS))

    def _query(
        self, query: str, claims: Mapping[str, Any], data: Mapping[str, Any], *, binding: str = ""
    ) -> tuple[bool, object]:
        """(whether it was evaluated, the value or what went wrong). Raises `Unanswered`."""
        if "policy" in data:
            return False, "the request data would shadow the policy"
        if not _reads_more_than_the_plugin(self.text):
            data = {name: value for name, value in data.items() if name == "plugin"}
        try:
            _check_input(claims)
            ok, value = ENGINE.ask(
                self.text, query, claims, json.dumps(data, sort_keys=True, ensure_ascii=False), binding=binding
            )
        except RecursionError:
            return False, "the claims are nested too deeply"
        except ValueError as error:  # a lone surrogate among others
            return False, str(error)
        return (True, value) if ok else (False, _first_line(str(value)))


def _check_input(value: object) -> None:
    """Refuse claims that the interpreter would silently change; raises `ValueError`.

    It holds texts as C does, so what follows a NUL would be gone, and integers in 64 bits.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a claim holds a NUL character, behind which the interpreter reads nothing")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("a claim is an integer of more than 64 bits")
    elif isinstance(value, Mapping):
        for name, each in value.items():
            _check_input(name)
            _check_input(each)
    elif isinstance(value, Sequence):
        for each in value:
            _check_input(each)


@lru_cache(maxsize=16)
def _reads_more_than_the_plugin(text: str) -> bool:
    """Whether a policy might look at the name that is asked for, or at the query.

    Where every `data` of its code is `data.plugin` or `data.policy` it cannot, and one compilation serves all names.
    """
    return _DATA.search(_code(text)) is not None


def _first_line(said: str) -> str:
    """The interpreter's complaint without its tree, which quotes the policy at length."""
    found = re.search(r"errormsg \d+:([^)]*)\)", said)
    return found.group(1) if found else (said.strip().splitlines() or ["no reason given"])[0][:200]
