"""What a wheel holds is what the tree holds, and the client needs neither torch nor Java."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory):
    """A wheel built from a copy of the sources, without the network."""
    import shutil

    copy = tmp_path_factory.mktemp("sources")
    for name in ("plugin", "handlers"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    build = "from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[2]))"
    program = f"import os, sys; os.chdir(sys.argv[1]); {build}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(copy), str(out)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [path] = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file):
    """The names in it."""
    return zipfile.ZipFile(wheel_file).namelist()


def tree(folder: Path, package: str, suffixes: tuple[str, ...]) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{package}/{path.relative_to(folder)}" for path in files if path.name.endswith(suffixes)}


def test_the_wheel_holds_every_module_of_the_tree(wheel):
    expected = tree(ROOT / "plugin" / "strongroom", "strongroom", (".py",))
    expected |= tree(ROOT / "handlers", "strongroom_handlers", (".py",))
    assert {name for name in wheel if name.endswith(".py")} == expected


def test_the_wheel_holds_every_data_file_of_the_package(wheel):
    data = tree(ROOT / "plugin" / "strongroom", "strongroom", (".rego", ".pem", ".der", "py.typed"))
    assert data <= set(wheel)
    assert "strongroom_handlers/py.typed" in wheel


def test_what_starts_workers_is_installed_executable(wheel_file):
    with zipfile.ZipFile(wheel_file) as archive:
        modes = {
            info.filename.rpartition("/")[2]: info.external_attr >> 16 & 0o777
            for info in archive.infolist()
            if "/isolated-" in info.filename
        }
    assert modes == {"isolated-python": 0o755, "isolated-system-python": 0o755}


def test_the_folders_that_are_packaged_are_all_that_exist():
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    root = ROOT / "plugin"
    found = {".".join(path.parent.relative_to(root).parts) for path in root.rglob("__init__.py")}
    assert found | {"strongroom_handlers"} == declared


@pytest.mark.parametrize(
    "module",
    [
        "strongroom.client.adapter",
        "strongroom.cli.main",
        "strongroom.keeper.process",
        "strongroom.archive.seal",
        "strongroom.adapters.torchserve.launcher",
    ],
)
def test_what_a_client_an_author_a_keeper_or_a_launcher_imports_brings_no_torch(module):
    program = f"import sys, {module}; print('torch' in sys.modules, 'ts' in sys.modules, 'starlette' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
