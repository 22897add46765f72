"""A configuration and the files that it names, packed into an init-data file and taken out of one again.

docs/attestation/init-data.md. What comes out is written into a private folder in memory, so that what reads
configurations and keys need not know where they came from.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from strongroom.errors import ConfigurationInvalid, LaunchRefused, MalformedInput
from strongroom.evidence.init_data import LARGEST, InitData
from strongroom.launch.config import Configuration, home

CONFIGURATION = "strongroom.toml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def read(path: Path) -> InitData:
    """Raises `LaunchRefused`."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8")
        return InitData.parse(text)
    except (OSError, UnicodeDecodeError, MalformedInput) as error:
        raise LaunchRefused(
            f"{path} is no init-data: {error}", hint="strongroom admit --config FILE --write-init-data FILE makes one"
        ) from error


def unpack(init_data: InitData, folder: Path) -> Path:
    """Write every text into `folder` (made 0700); gives the configuration's path. Raises `LaunchRefused`."""
    if CONFIGURATION not in init_data.data:
        raise LaunchRefused(f"the init-data has no {CONFIGURATION!r} in [data]", hint="docs/attestation/init-data.md")
    folder.mkdir(mode=0o700)
    for name, text in init_data.data.items():
        if not NAME.fullmatch(name):
            raise LaunchRefused(
                f"init-data: {name[:80]!r} is no name of a file", hint="letters, digits, '.', '_' and '-', no folder"
            )
        with (folder / name).open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    return folder / CONFIGURATION


def pack(config: Path, *, algorithm: str) -> str:
    """The text of an init-data file for a configuration; raises `ConfigurationInvalid`.

    Every file that it names has to lie beside it, and be text.
    """
    configuration = Configuration.load(config)
    named = {CONFIGURATION: config}
    for path in configuration.files:
        if path.parent.resolve() != home(config) or not NAME.fullmatch(path.name):
            raise ConfigurationInvalid(
                f"{config} names {path}, which does not lie beside it",
                hint="in an init-data file there are no folders: put the file beside the configuration",
            )
        if path.name == CONFIGURATION:
            raise ConfigurationInvalid(f"{config} names a file of its own name", hint=f"rename it: {path}")
        named[path.name] = path
    lines = ['version = "0.1.0"', f'algorithm = "{algorithm}"', "", "[data]"]
    for name, path in named.items():
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationInvalid(f"{path} cannot be packed: {error}", hint="it has to be a text") from error
        lines.append(f'"{name}" = {_written(text)}')
    packed = "\n".join(lines) + "\n"
    if any(InitData.parse(packed).data[name] != path.read_bytes().decode("utf-8") for name, path in named.items()):
        raise ConfigurationInvalid("the texts do not survive packing", hint="please report this as a bug")
    return packed


def _written(text: str) -> str:
    """A TOML string: literal where people can read it so, else basic."""
    plain = "'''" not in text and not text.endswith("'") and all(each.isprintable() or each in "\n\t" for each in text)
    return f"'''\n{text}'''" if plain else json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
