"""The channel room has no socket and no clock of its own: bytes and the present moment are arguments."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import strongroom.channel

ROOM = Path(strongroom.channel.__file__).parent
FORBIDDEN = {"socket", "select", "selectors", "asyncio", "ssl", "http", "urllib", "requests", "httpx", "subprocess"}
FORBIDDEN |= {"time", "datetime", "os", "pathlib", "io", "logging"}


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_of_the_channel_reaches_nothing_outside_itself(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input", "eval", "exec"}
    assert not imported & FORBIDDEN


def test_the_room_was_found():
    assert len(list(ROOM.glob("*.py"))) > 10
