"""The release policy: Rego, evaluated over attestation results, default deny (docs/release.md section 7).

Only a literal ``true`` of ``data.policy.allow``, from an evaluation that ended well, grants. The
interpreter (regopy) leaves some builtins undefined without saying so, and ``not f(x)`` of an undefined
``f`` is true; so a policy may call only builtins that tests/broker/test_rego_builtins.py has proved.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from strongroom.errors import ConfigurationInvalid

POLICY_LIMIT = 1 << 18
"""Characters of one policy."""

TEMPLATES = ("hardware-only", "measured", "measured-cpu-and-gpu", "development")

PROVED_BUILTINS = frozenset(
    """
    abs array.concat array.reverse base64.decode base64url.decode ceil concat contains count
    endswith floor format_int indexof intersection is_array is_boolean is_null is_number is_object is_set is_string
    json.unmarshal lower max min numbers.range object.get object.keys regex.match replace round sort split
    startswith strings.any_prefix_match strings.any_suffix_match substring sum to_number trim trim_left trim_prefix
    trim_right trim_space trim_suffix type_name union upper
    """.split()  # noqa: SIM905 - a list of words reads better as words
)

_KEYWORDS = frozenset({"not", "in", "if", "some", "every", "else", "default", "with", "as", "package", "import"})
_NOT_CODE = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*')
_CALL = re.compile(r"([A-Za-z_]\w*(?:\s*\.\s*[A-Za-z_]\w*)*)\s*\(")
_RULE = re.compile(r"^(?:default[ \t]+)?([A-Za-z_]\w*)[ \t]*(?=:=|=[^=]|\{|if\b|contains\b|\[)", re.MULTILINE)
_DEFINED = re.compile(r"^[ \t]*([A-Za-z_]\w*)\s*\(", re.MULTILINE)

# The interpreter is C++ behind a foreign function interface; one evaluation at a time is fast enough.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy said: `granted` only for a literal true; `reason` for our log, never for the peer."""

    granted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """A checked Rego text of the package ``policy`` with a rule ``allow``."""

    text: str

    @classmethod
    def parse(cls, text: str) -> ReleasePolicy:
        """Refuse, with `ConfigurationInvalid`, what does not compile or calls an unproved builtin."""
        if len(text) > POLICY_LIMIT:
            raise ConfigurationInvalid(f"the policy has {len(text)} characters, the limit is {POLICY_LIMIT}")
        code = _NOT_CODE.sub(lambda found: "" if found.group().startswith("#") else '""', text)
        if not re.search(r"^\s*package\s+policy\s*$", code, re.MULTILINE):
            raise ConfigurationInvalid("a release policy is of `package policy`", hint="its rule is data.policy.allow")
        if re.search(r"\bwith\b", code):
            raise ConfigurationInvalid("the keyword `with` is not accepted", hint="it replaces what a rule looks at")
        defined = set(_DEFINED.findall(code))
        for name in (re.sub(r"\s", "", each) for each in _CALL.findall(code)):
            local = name in defined or name.startswith("data.policy.")
            if name not in _KEYWORDS and name not in PROVED_BUILTINS and not local:
                raise ConfigurationInvalid(
                    f"the policy calls {name}, which is not on the list of proved builtins",
                    hint="docs/release.md section 7 lists them; write the rule without it",
                )
        policy = cls(text)
        ok, said = policy._query("data.policy.allow", {}, {})
        if not ok:
            raise ConfigurationInvalid(
                f"the interpreter cannot evaluate the policy: {said}",
                hint="give an iterated value a name before `in`: `m := input.x[_].y; m in {…}`",
            )
        return policy

    @classmethod
    def template(cls, name: str) -> ReleasePolicy:
        """One of `TEMPLATES`, shipped with the package."""
        if name not in TEMPLATES:
            raise ConfigurationInvalid(
                f"no policy template is called {name!r}", hint=f"there are {', '.join(TEMPLATES)}"
            )
        return cls.parse((resources.files("strongroom.broker") / "policies" / f"{name}.rego").read_text("utf-8"))

    def decide(self, claims: Mapping[str, Any], data: Mapping[str, Any]) -> Decision:
        """Evaluate over a token's claims (`input`) and the request (`data`). Never raises: what fails denies."""
        ok, value = self._query("data.policy.allow", claims, data)
        if not ok:
            return Decision(False, f"the policy could not be evaluated: {value}")
        if value is True:
            return Decision(True, "data.policy.allow is true")
        return Decision(False, f"data.policy.allow is {'false or undefined' if value is None else repr(value)[:100]}")

    def value_of(self, rule: str, claims: Mapping[str, Any], data: Mapping[str, Any]) -> object:
        """The value of one rule of the policy, for a trace; None where it is undefined or fails."""
        ok, value = self._query(f"value = data.policy.{rule}", claims, data, binding="value")
        return value if ok else None

    def rules(self) -> Sequence[str]:
        """The names of the rules in the text, in order and once each, functions left out."""
        code = _NOT_CODE.sub('""', self.text)
        names = re.findall(
            r"^(?:default[ \t]+)?([A-Za-z_]\w*)[ \t]*(?=:=|=[^=]|\{|if\b|contains\b|\[)", code, re.MULTILINE
        )
        return tuple(dict.fromkeys(name for name in names if name not in _KEYWORDS))

    def _query(
        self, query: str, claims: Mapping[str, Any], data: Mapping[str, Any], *, binding: str = ""
    ) -> tuple[bool, object]:
        # Deferred: the interpreter is an extra of whoever runs a broker.
        from regopy.rego_shared import RegoError

        if "policy" in data:
            return False, "the request data would shadow the policy"
        with _ONE_AT_A_TIME:
            try:
                compiled = _compiled(self.text, query, json.dumps(data, sort_keys=True))
                interpreter = _interpreter()
                interpreter.set_input(dict(claims))
                output = interpreter.query_bundle(compiled)
                if not output.ok():
                    return False, "an error that the interpreter does not name"
                if len(output) != 1:
                    return True, None
                if binding:
                    return True, output.results[0].bindings.get(binding)
                expressions = output.results[0].expressions
                return True, expressions[0] if len(expressions) == 1 else None
            except (RegoError, ValueError, TypeError, KeyError, IndexError) as error:
                return False, _first_line(str(error))


def _interpreter() -> Any:
    from regopy import Interpreter
    from regopy.rego_shared import LogLevel

    interpreter = Interpreter()
    interpreter.log_level = LogLevel.NONE
    # Without this a builtin that fails is merely undefined, and `not` turns that into true.
    interpreter.strict_built_in_errors = True
    return interpreter


@lru_cache(maxsize=64)
def _compiled(text: str, query: str, data: str) -> Any:
    """A policy compiled together with a request's data: keepers of one archive ask the same again and again."""
    interpreter = _interpreter()
    interpreter.add_module("policy", text)
    interpreter.add_data_json(data)
    bundle = interpreter.build(query)
    if not bundle.ok():
        raise ValueError("an error that the interpreter does not name")
    return bundle


def _first_line(said: str) -> str:
    """The interpreter's complaint without its tree, which quotes the policy at length."""
    found = re.search(r"errormsg \d+:([^)]*)\)", said)
    return found.group(1) if found else (said.strip().splitlines() or ["no reason given"])[0][:200]
