"""What a reader of our pages would type."""

from __future__ import annotations

import re


def console_commands(text: str) -> list[str]:
    """The lines behind `$ ` of console blocks; a line that ends in a backslash goes on."""
    commands = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        joined = block.replace("\\\n", " ")
        commands += [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return commands
