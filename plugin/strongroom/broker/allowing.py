"""Add one value to a list of an appraisal policy's text, leaving everything else as its author wrote it."""

from __future__ import annotations

import re
import tomllib

from strongroom.errors import ConfigurationInvalid


def allow(text: str, tee: str, field: str, value: str) -> str:
    """The policy with `value` in the list ``[tee] field``. Raises `ConfigurationInvalid`.

    A TEE that the policy does not name is not added: naming one is a decision of its own.
    """
    before = _parsed(text)
    if tee not in before:
        raise ConfigurationInvalid(
            f"the policy does not accept {tee} at all", hint=f"add a table [{tee}] to it: strongroom policy set"
        )
    listed = before[tee].get(field, [])
    if not isinstance(listed, list):
        raise ConfigurationInvalid(f"[{tee}] {field} is not a list")
    if value in listed:
        return text
    changed = _inserted(text, tee, field, value)
    after = _parsed(changed)
    expected = {**before, tee: {**before[tee], field: [value, *listed]}}
    if after != expected:
        raise ConfigurationInvalid(
            f"the list [{tee}] {field} is written in a way that this command cannot extend",
            hint="edit the file and use strongroom policy set",
        )
    return changed


def _parsed(text: str) -> dict[str, dict[str, object]]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(f"the policy is not TOML: {error}") from error


def _inserted(text: str, tee: str, field: str, value: str) -> str:
    header = re.search(rf"^\[{re.escape(tee)}\][ \t]*(?:#[^\n]*)?$", text, re.MULTILINE)
    if header is None:
        raise ConfigurationInvalid(f"[{tee}] does not stand on a line of its own")
    rest = text[header.end() :]
    following = re.search(r"^\[", rest, re.MULTILINE)
    end = following.start() if following else len(rest)
    found = re.search(rf"^{re.escape(field)}[ \t]*=[ \t]*\[", rest[:end], re.MULTILINE)
    if found is None:
        at, inserted = header.end(), f'\n{field} = ["{value}"]'
    else:
        at = header.end() + found.end()
        inserted = f'"{value}"' if re.match(r"\s*\]", text[at:]) else f'"{value}", '
    return text[:at] + inserted + text[at:]
