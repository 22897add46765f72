"""What may stand around a launcher, and what may not."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from strongroom.errors import LaunchRefused
from strongroom.launch import surroundings
from strongroom.launch.surroundings import (
    Expected,
    Installed,
    check_distributions,
    check_records,
    check_startup_files,
    check_surroundings,
)
from strongroom.launch.variables import REFUSED_VARIABLES, check_environment

NOTHING = Expected({}, None)


@pytest.mark.parametrize("name", sorted(REFUSED_VARIABLES))
def test_a_variable_that_lets_code_in_is_refused_by_name(name):
    with pytest.raises(LaunchRefused, match=name) as refusal:
        check_environment({"PATH": "/bin", name: "/tmp/evil"})
    assert "unset" in refusal.value.hint


def test_an_ordinary_environment_passes():
    check_environment({"PATH": "/bin", "HOME": "/root", "LANG": "C", "PYTHONPATH": ""})


@pytest.mark.parametrize(
    "name", ["PYTHONWARNINGS", "BROWSER", "LOCPATH", "GLIBC_TUNABLES", "SSLKEYLOGFILE", "LD_PROFILE"]
)
def test_the_launcher_itself_looks_before_it_reads_any_file(tmp_path, name):
    """What such a variable does while Python starts is done by then; the launch goes no further."""
    value = "ignore" if name == "PYTHONWARNINGS" else ""
    environment = {"PATH": os.environ["PATH"], name: value or str(tmp_path)}
    words = [sys.executable, "-P", "-m", "strongroom.cli", "launch", "--config", "absent.toml", "--", "torchserve"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"the environment sets {name}" in done.stderr and f"unset {name}" in done.stderr


def test_a_variable_of_the_kind_that_ran_a_command_in_the_launcher_starts_no_server(tmp_path):
    """antigravity is a module of Python's own that opens a browser; the warning filters import what they name."""
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "all:0:antigravity.x:0:0"}
    environment["BROWSER"] = f"/usr/bin/touch {tmp_path}/ran #%s"
    words = [sys.executable, "-P", "-m", "strongroom.cli", "launch", "--config", "absent.toml", "--", "torchserve"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "the environment sets PYTHONWARNINGS" in done.stderr


@pytest.mark.parametrize("name", ["evil.pth", "sitecustomize.py", "usercustomize.py"])
def test_a_startup_file_that_nobody_recorded_is_refused(tmp_path, name):
    (tmp_path / name).write_text("import os\n")
    with pytest.raises(LaunchRefused, match=name) as refusal:
        check_startup_files({}, [tmp_path])
    assert hashlib.sha256(b"import os\n").hexdigest() in refusal.value.hint


def test_a_customizer_in_the_form_of_a_package_is_found_too(tmp_path):
    (tmp_path / "sitecustomize").mkdir()
    (tmp_path / "sitecustomize" / "__init__.py").write_text("import os\n")
    with pytest.raises(LaunchRefused, match="sitecustomize"):
        check_startup_files({}, [tmp_path])


def test_an_expected_startup_file_passes_with_its_very_digest(tmp_path):
    (tmp_path / "known.pth").write_text("import os\n")
    digest = hashlib.sha256(b"import os\n").hexdigest()
    check_startup_files({"known.pth": digest}, [tmp_path])
    (tmp_path / "known.pth").write_text("import os, sys\n")
    with pytest.raises(LaunchRefused):
        check_startup_files({"known.pth": digest}, [tmp_path])


def distribution(folder: Path, *, version: str = "1.0") -> Path:
    """An installed distribution with a module and a .pth file, as an installer leaves it."""
    files = {"thing.py": b"x = 1\n", "thing.pth": b"import thing\n"}
    info = folder / f"thing-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
    lines = []
    for name, octets in files.items():
        (folder / name).write_bytes(octets)
        import base64

        digest = base64.urlsafe_b64encode(hashlib.sha256(octets).digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={digest},{len(octets)}")
    (info / "RECORD").write_text("\n".join(lines) + "\n")
    return info


@pytest.fixture
def thing(tmp_path, monkeypatch):
    distribution(tmp_path)
    found = lambda: metadata.distributions(path=[str(tmp_path)])  # noqa: E731
    monkeypatch.setattr(surroundings, "metadata", type("M", (), {"distributions": staticmethod(found)}))
    return tmp_path


def test_a_startup_file_that_a_distribution_recorded_passes_until_it_is_changed(thing):
    check_startup_files({}, [thing])
    (thing / "thing.pth").write_text("import evil\n")
    with pytest.raises(LaunchRefused, match=r"thing\.pth"):
        check_startup_files({}, [thing])


def test_a_file_that_is_not_what_was_installed_is_refused(thing):
    check_records(metadata.distributions(path=[str(thing)]))
    (thing / "thing.py").write_text("x = 2\n")
    with pytest.raises(LaunchRefused, match=r"thing\.py"):
        check_records(metadata.distributions(path=[str(thing)]))


def test_a_file_that_went_missing_is_refused(thing):
    (thing / "thing.py").unlink()
    with pytest.raises(LaunchRefused, match=r"thing\.py"):
        check_records(metadata.distributions(path=[str(thing)]))


@pytest.mark.parametrize("change", ["added", "removed", "another version", "another digest"])
def test_distributions_other_than_the_expected_ones_are_refused_by_name(thing, change):
    expected = set(Installed.all())
    check_distributions(expected, Installed.all())
    if change == "added":
        expected.clear()
    elif change == "removed":
        expected.add(Installed("gone", "3", "00" * 32))
    elif change == "another version":
        shutil.rmtree(thing / "thing-1.0.dist-info")
        distribution(thing, version="1.1")
    else:
        record = thing / "thing-1.0.dist-info" / "RECORD"
        record.write_text(record.read_text() + "more.py,,\n")
    with pytest.raises(LaunchRefused, match=r"thing|gone"):
        check_distributions(expected, Installed.all())


def test_a_list_of_distributions_is_read_as_it_was_written(tmp_path):
    installed = Installed.all()
    Installed.write(tmp_path / "installed.json", installed)
    assert Installed.read(tmp_path / "installed.json") == installed
    assert "strongroom" in {each.name for each in installed}


def test_swap_is_refused_where_something_is_protected_and_said_where_nothing_is(monkeypatch):
    monkeypatch.setattr(surroundings, "swaps", lambda: ["/dev/vdb"])
    monkeypatch.setattr(surroundings, "check_startup_files", lambda allowed: None)
    with pytest.raises(LaunchRefused, match="swap"):
        check_surroundings(NOTHING, tee="snp", environment={})
    assert "swap" in check_surroundings(NOTHING, tee="simulated", environment={})[0]


def test_pythons_own_library_is_left_to_the_measured_image(tmp_path, monkeypatch):
    """Debian's Python comes with a sitecustomize of its own."""
    (tmp_path / "sitecustomize.py").write_text("# the distributor's\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LaunchRefused):
        check_startup_files({})
    found = sysconfig.get_path
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path) if name == "platstdlib" else found(name))
    check_startup_files({})


def test_this_installation_itself_passes():
    check_startup_files({})
