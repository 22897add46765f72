"""Imports point one way: the tree is the architecture (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "plugin" / "strongroom"

FLOORS = [
    {"errors", "keys", "encoding", "cbor"},
    {"archive", "channel", "evidence"},  # neighbours, never each other
    {"hookspecs", "plugins"},
    {"attest", "broker", "collateral", "keeper", "launch", "torch", "worker"},
    {"adapters", "client", "models"},
    {"demo", "cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FRAMEWORKS = {"ts", "torchserve", "model_archiver", "tritonclient", "kserve"}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module this file names in an import, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported(path)]
    return {each[1] for each in parts if each[0] == "strongroom" and len(each) > 1 and each[1] in FLOOR_OF}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_its_own_room_and_lower_floors(path):
    room = room_of(path)
    floor = FLOOR_OF[room]
    for other in rooms_imported(path) - {room}:
        same_floor_allowed = floor in (0, 2, 3, 5)  # words, the hook list, the parts that act, the top
        assert FLOOR_OF[other] < floor or (FLOOR_OF[other] == floor and same_floor_allowed), (
            f"{path.relative_to(PACKAGE)} (floor {floor}) imports {other} (floor {FLOOR_OF[other]})"
        )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_adapters_demo_and_cli_name_a_serving_framework(path):
    if room_of(path) not in {"adapters", "demo", "cli"}:
        assert not {name.split(".")[0] for name in imported(path)} & FRAMEWORKS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_torch_module_and_the_skins_import_torch(path):
    if room_of(path) not in {"torch", "adapters", "demo"}:
        assert "torch" not in {name.split(".")[0] for name in imported(path)}


def test_every_room_stands_on_a_floor():
    rooms = {room_of(path) for path in SOURCES}
    assert rooms <= set(FLOOR_OF)
