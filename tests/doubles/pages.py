"""What a reader of our pages would type, and what they would see."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page, and the output that the page shows below it; none where it shows none."""

    command: str
    shown: tuple[str, ...] = ()

    def agrees(self, output: str) -> bool:
        """Whether a reader who types it sees what is shown: ``…`` is any text, or any lines where it stands alone."""
        patterns = [
            r"(?:.*\n)*" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + r" *\n"
            for line in self.shown
        ]
        return not self.shown or re.fullmatch("".join(patterns), output.rstrip("\n") + "\n") is not None


def console_steps(text: str) -> list[Step]:
    """The lines behind `$ ` of console blocks, each with what follows it; a line that ends in a backslash goes on."""
    steps: list[Step] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            steps.append(Step(command, tuple(shown)))
    return steps


def console_commands(text: str) -> list[str]:
    """The commands alone."""
    return [step.command for step in console_steps(text)]


def named_files(text: str) -> dict[str, str]:
    """The TOML blocks whose first line is a comment with the name of the file that they are."""
    return {
        name: f"# {name}\n{rest}" for name, rest in re.findall(r"```toml\n# (\S+\.toml)\n(.*?)```", text, re.DOTALL)
    }


def python_of(text: str) -> str:
    """All the Python of a page, in its order, as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
