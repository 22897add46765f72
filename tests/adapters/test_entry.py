"""How a worker's Python starts: nothing that lies where Java starts it is looked at."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from strongroom.adapters.torchserve import entry
from strongroom.adapters.torchserve.entry import NETWORK_VARIABLE, PYTHON_VARIABLE, isolated_python
from strongroom.adapters.torchserve.runtime import frontend_command
from strongroom.errors import LaunchRefused

TS = Path(str(importlib.util.find_spec("ts").origin)).parent
WORKER = TS / "model_service_worker.py"
PLANTED = ("sitecustomize", "usercustomize", "ts", "strongroom", "json", "argparse")


@pytest.fixture
def planted(tmp_path):
    """A model's folder as Java makes it, in which a handler left modules that say so when they are imported."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    return tmp_path


def run(folder: Path, *command: str, network: str = "deny") -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "PYTHONSTARTUP": str(folder / "json.py")}
    environment |= {PYTHON_VARIABLE: sys.executable, NETWORK_VARIABLE: network}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_what_lies_in_the_model_folder_is_not_imported_by_a_worker(planted):
    done = run(planted, str(isolated_python()), str(WORKER), "--sock-type", "unix")
    assert "No socket name given" in done.stdout, done.stderr  # TorchServe's own script ran
    assert not (planted / "ran").exists()
    run(planted, sys.executable, str(WORKER), "--sock-type", "unix")  # the control: so Java would have started it
    assert (planted / "ran").read_text().startswith("sitecustomize")


def test_what_a_worker_starts_does_not_look_in_the_model_folder_either(planted):
    code = "import os, sys; from strongroom.adapters.torchserve import entry; import runpy\n"
    code += "runpy.run_path = lambda *_, **__: print('PYTHONPATH' in os.environ)\n"
    code += f"sys.argv = ['x', {str(WORKER)!r}]; entry.main()\n"
    assert run(planted, sys.executable, "-I", "-c", code).stdout == "False\n"


def test_a_worker_is_confined_before_torchserves_script_is_read(tmp_path):
    done = run(tmp_path, str(isolated_python()), str(WORKER), "--sock-type", "tcp", "--port", "0")
    assert "PermissionError" in done.stdout


def test_the_collector_of_metrics_runs_as_java_names_it(planted):
    environment = {"PATH": os.environ["PATH"], PYTHON_VARIABLE: sys.executable, NETWORK_VARIABLE: "deny"}
    done = subprocess.run(
        [str(isolated_python()), "ts/metrics/metric_collector.py", "--gpu", "0"],
        cwd=TS.parent, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "CPUUtilization" in done.stdout, done.stderr


def test_no_other_script_is_run(planted):
    other = planted / "other.py"
    other.write_text("print('ran')\n")
    (planted / "ts").symlink_to(TS)
    for script in (str(other), "", "-c", str(planted / "ts" / ".." / "other.py")):
        done = run(planted, str(isolated_python()), script)
        assert done.returncode != 0 and "ran" not in done.stdout
        assert "no script of the installed TorchServe" in done.stderr


def test_an_interpreter_that_is_not_isolated_starts_no_worker(tmp_path):
    done = run(tmp_path, sys.executable, "-m", "strongroom.adapters.torchserve.entry", str(WORKER))
    assert "has to be isolated" in done.stderr


def test_java_looks_for_classes_in_the_installed_package_alone():
    command = frontend_command(Path("/java"), Path("/tmp/x"), Path("/c"), Path("/store"), jvm="-Xmx1g -Xss1m")
    assert command[command.index("-cp") + 1] == f"{TS.resolve() / 'frontend'}/*"
    assert command[:1] == ["/java/bin/java"] and "-Xmx1g" in command[: command.index("-cp")]
    assert command[command.index("--python") + 1] == str(isolated_python())


def test_both_programs_are_executable_and_start_an_isolated_interpreter():
    shell, system = (Path(entry.__file__).parent / name for name in ("isolated-python", "isolated-system-python"))
    assert os.access(shell, os.X_OK) and os.access(system, os.X_OK)
    assert system.read_text().startswith("#!/usr/bin/python3 -IB\n")
    assert 'exec "${STRONGROOM_PYTHON' in shell.read_text() and " -I -B -m " in shell.read_text()


def test_beside_the_systems_python_no_shell_is_needed(monkeypatch):
    monkeypatch.setattr(entry, "SYSTEM_PYTHON", Path(sys.executable))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert isolated_python().name == "isolated-system-python"


def test_a_program_that_cannot_be_run_is_said_with_the_next_step(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(LaunchRefused, match="cannot be run") as refused:
        isolated_python()
    assert "chmod 755" in refused.value.hint
