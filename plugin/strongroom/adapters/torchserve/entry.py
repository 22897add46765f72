"""The first of our code in a worker, before anything is imported that is not installed.

A worker's handler may write where the next worker's Python would look first (`isolated-python` says why), and what ran
there would run before any confinement. So this interpreter is isolated, and the system call filter stands before
TorchServe's own script is read; the handler's adapter adds the rest when the keeper has said what is allowed.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path

from strongroom.errors import LaunchRefused
from strongroom.launch.seccomp import confine

NETWORK_VARIABLE = "STRONGROOM_NETWORK"
"""``allow`` or ``deny``, set by the launcher. Anything else denies."""

PYTHON_VARIABLE = "STRONGROOM_PYTHON"
"""The interpreter that `isolated-python` runs, set by the launcher."""

SYSTEM_PYTHON = Path("/usr/bin/python3")


def isolated_python() -> Path:
    """The program that starts workers in this very interpreter, isolated; raises `LaunchRefused` if it cannot be run.

    It is a file of the package, since one in memory could be written to, and since pip makes no script with `-I`.
    """
    ours = Path(sys.executable)
    system = sys.prefix == sys.base_prefix and ours.exists() and SYSTEM_PYTHON.exists() and ours.samefile(SYSTEM_PYTHON)
    path = Path(__file__).parent / ("isolated-system-python" if system else "isolated-python")
    if not os.access(path, os.X_OK) or not (system or os.access("/bin/sh", os.X_OK)):
        raise LaunchRefused(
            f"{path} cannot be run",
            hint="it is executable as the wheel installs it (chmod 755); outside of /usr/bin/python3 it needs /bin/sh",
        )
    return path


def main() -> None:
    """Run a script of the installed TorchServe, as Java named it; raises `LaunchRefused` for any other file."""
    if not sys.flags.isolated:
        raise LaunchRefused("a worker's Python has to be isolated", hint="only `strongroom launch` starts workers")
    confine(network=os.environ.get(NETWORK_VARIABLE) == "allow")
    os.environ.pop("PYTHONPATH", None)  # what the worker starts does not look there either
    del sys.argv[0]
    runpy.run_path(str(installed(sys.argv[0] if sys.argv else "")), run_name="__main__")


def installed(script: str) -> Path:
    """The script's real path, inside the installed package; raises `LaunchRefused`."""
    found = importlib.util.find_spec("ts")
    path = Path(script).resolve()
    if found is None or found.origin is None or not path.is_relative_to(Path(found.origin).resolve().parent):
        raise LaunchRefused(f"{script!r} is no script of the installed TorchServe")
    return path


if __name__ == "__main__":
    main()
