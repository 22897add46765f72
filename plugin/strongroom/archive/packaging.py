"""From a model's own manifest and configuration to the readable members of its sealed archive.

Only what the server's frontend itself needs becomes readable (docs/format.md section 8); everything else
stays in the sealed originals. What would change its meaning by that is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.archive.manifest import CONFIG, MANIFEST, NUMBERS, TRUTHS, ClearMembers, Setting, check_setting
from strongroom.archive.source import Source, normal
from strongroom.encoding import parse_json
from strongroom.errors import ArchiveMalformed, MalformedInput, SealRefused

READABLE = TRUTHS | NUMBERS | {"deviceType", "deviceIds"}
REFUSED = {
    "parallelType": "the server would start the workers by torchrun, outside of ours",
    "torchrun": "the server would start the workers by torchrun, outside of ours",
    "continuousBatching": "between its steps the server looks at the handler's answers, and they are encrypted",
    "asyncCommunication": "the server would await the handler, and copy its context for each request",
    "useVenv": "the server would build and run code from the archive before ours",
}
REQUIREMENTS = "requirements.txt"
PACKAGE_AGAIN = "package the model again with torch-model-archiver"
ODD_VALUES = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""What PyYAML lets through where a date, a number or a key is none."""


def clear_members(source: Source, *, allow_requirements: bool = False) -> ClearMembers:
    """The readable members for an ordinary model; raises `SealRefused`."""
    try:
        manifest = parse_json(source.small(MANIFEST), where=MANIFEST)
        model = manifest["model"]
        name, version = _text(model, "modelName"), _version(model)
        handler, requirements, config = (_text(model, key) for key in ("handler", "requirementsFile", "configFile"))
        runtime = "python" if "runtime" not in manifest else _text(manifest, "runtime")
    except (MalformedInput, KeyError, TypeError, AttributeError) as error:
        raise SealRefused(f"{MANIFEST} is not a model's manifest", hint=PACKAGE_AGAIN) from error
    if runtime not in {"python", "python3"}:
        raise SealRefused(f"its runtime is {runtime[:40]!r}; only Python handlers can be served sealed")
    if not handler:
        raise SealRefused(f"{MANIFEST} names no handler", hint=PACKAGE_AGAIN)
    if (requirements or REQUIREMENTS in source.sizes) and not allow_requirements:
        raise SealRefused(
            f"it brings {(requirements or REQUIREMENTS)[:200]}, and the server would install that from the network"
            " before the archive is checked",
            hint="install the packages on the server and seal with --allow-requirements:"
            " the file is then sealed along and nobody installs it",
        )
    settings: dict[str, Setting] = {}
    if config:
        settings = frontend_settings(_yaml(source, normal(config)))
    try:
        return ClearMembers(name, version, settings)
    except ArchiveMalformed as error:
        raise SealRefused(f"cannot be sealed as it is: {error}", hint="package it under another name") from error


def _text(fields: Mapping[str, Any], key: str) -> str:
    """A text of the manifest, empty where there is none; raises `SealRefused` for what is no text."""
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise SealRefused(f"{MANIFEST}: {key} is {str(value)[:40]}, and no text", hint=f'write "{key}": "…" in quotes')
    return value or ""


def _version(model: Mapping[str, Any]) -> str:
    """The model's version, which the server reads from a whole number too; a fraction could lose its zeros."""
    value = model.get("modelVersion")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(model, "modelVersion") or "1.0"


def _yaml(source: Source, name: str) -> Any:
    if name not in source.sizes:
        raise SealRefused(f"{MANIFEST} names the configuration {name!r}, which is not there")
    try:
        import yaml
    except ImportError as error:
        raise SealRefused(
            f"reading {name} needs the pyyaml package, which is not installed", hint="pip install pyyaml"
        ) from error
    try:
        return yaml.safe_load(source.small(name)) or {}
    except (yaml.YAMLError, *ODD_VALUES) as error:
        raise SealRefused(f"{name} is not YAML, or has a value that YAML does not know", hint="correct it") from error


def frontend_settings(config: Any) -> dict[str, Setting]:
    """The settings that the server's frontend reads; handler settings are left out, they stay sealed.

    Raises `SealRefused` for a setting that a sealed archive cannot honour.
    """
    if not isinstance(config, dict):
        raise SealRefused(f"{CONFIG} is not a mapping")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise SealRefused(f"{CONFIG}: {key} cannot be honoured: {reason}", hint=f"remove {key}")
    try:
        return {key: check_setting(key, value) for key, value in config.items() if key in READABLE}
    except ArchiveMalformed as error:
        raise SealRefused(str(error), hint="correct that setting and package again") from error
