"""`strongroom launch -- torchserve …`: admission, the keeper, then stock TorchServe, watched together.

Order matters: what is admitted and how TorchServe is configured is fixed before any code that is not ours
runs. Everything is written into one private folder in memory, which goes when the launcher does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.adapters.torchserve.flags import Wanted, read_command, size_limits, write_properties
from strongroom.adapters.torchserve.handler import SIZES_VARIABLE
from strongroom.adapters.torchserve.runtime import java_home, torchserve_command
from strongroom.errors import KeeperUnavailable, LaunchRefused
from strongroom.keeper import wire
from strongroom.keeper.peers import Lineage
from strongroom.keeper.process import Charge
from strongroom.keeper.sources import check_source, origin
from strongroom.launch.admission import Admitted, Gate
from strongroom.launch.config import Configuration
from strongroom.launch.hardening import confine_server
from strongroom.launch.measured import Measurement, extend, measurements
from strongroom.launch.supervisor import Child, Supervisor
from strongroom.launch.surroundings import Installed, check_surroundings
from strongroom.worker.link import SOCKET_VARIABLE

MEMORY = Path("/dev", "shm")
KEY_FILE = "key_file.json"
WORKER_DEPTH = 3
"""Launcher → TorchServe's Python wrapper → Java → worker."""

KEPT_VARIABLES = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LANGUAGE",
        "TZ",
        "JAVA_HOME",
        "LOG_LOCATION",
        "METRICS_LOCATION",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "VIRTUAL_ENV",
    ]
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Launch:
    """What is about to run: the folder in memory, the admitted archives, both children."""

    folder: Path
    admitted: tuple[Admitted, ...]
    keeper: Child
    server: Child
    warnings: tuple[str, ...] = ()
    measured: tuple[Measurement, ...] = ()
    keys: str = ""
    """Where model keys come from, in words."""

    @property
    def socket(self) -> Path:
        """The keeper's socket."""
        return self.folder / "keeper.sock"


def prepare(config: Path, command: Sequence[str], *, keeper_flags: Sequence[str] = ()) -> Launch:
    """Check everything and write the private store; starts nothing. Raises `LaunchRefused` and its kin."""
    configuration = Configuration.load(config)
    warnings = check_surroundings(configuration.surroundings, tee=configuration.tee)
    if configuration.worker.output == "pass":
        warnings.append("worker output is passed on: requests, answers and weights may end up in logs")
    warnings += check_source(configuration)
    wanted = read_command(list(command))
    if not wanted.models:
        raise LaunchRefused("no model is named", hint="torchserve --models digits=digits.mar, or ALL")
    if not MEMORY.is_dir():
        raise LaunchRefused(f"{MEMORY} is not there, and nothing may be written to a disk", hint="mount a tmpfs on it")
    folder = Path(tempfile.mkdtemp(prefix="strongroom-", dir=MEMORY))
    try:
        for name in ("store", "temp", "config", "home"):
            (folder / name).mkdir(mode=0o700)
        gate = Gate(configuration.admission, leased=configuration.keys.leased)
        admitted = tuple(gate.admit(wanted.models, folder / "store"))
        write_properties(wanted, folder / "config" / "config.properties")
        environment = _environment(folder, wanted)
        charge = Charge(admitted, Lineage(os.getpid(), WORKER_DEPTH), configuration.digest)
        keeper = [sys.executable, "-P", "-m", "strongroom.cli", "keeper", "--config", str(config.resolve())]
        keeper += ["--socket", str(folder / "keeper.sock"), "--charged", *keeper_flags]
        return Launch(
            folder,
            admitted,
            Child("the keeper", keeper, environment, Path.cwd(), stdin=charge.serialise()),
            Child(
                "torchserve",
                _server_command(folder, wanted, admitted),
                environment,
                folder / "home",
                before=lambda: _sweep(folder / "temp"),
                confine=confine_server,
            ),
            tuple(warnings),
            measurements(configuration.digest, admitted, Installed.all()) if configuration.tee == "tpm" else (),
            origin(configuration),
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _environment(folder: Path, wanted: Wanted) -> dict[str, str]:
    """An allow-list: a variable can name a library, a plugin or a setting, and nobody measured it."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith("LC_")}
    temp = str(folder / "temp")
    logs = str(Path.cwd() / "logs")
    return (
        {"LOG_LOCATION": logs, "METRICS_LOCATION": logs}
        | kept
        | {
            "JAVA_HOME": str(java_home()),
            "TEMP": temp,
            "TMPDIR": temp,
            "TORCHINDUCTOR_CACHE_DIR": f"{temp}/inductor",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            SOCKET_VARIABLE: str(folder / "keeper.sock"),
            SIZES_VARIABLE: ",".join(map(str, size_limits(wanted))),
        }
    )


def _server_command(folder: Path, wanted: Wanted, admitted: Sequence[Admitted]) -> list[str]:
    command = [*torchserve_command(), "--start", "--foreground", "--ncs", "--model-store", str(folder / "store")]
    command += ["--ts-config", str(folder / "config" / "config.properties")]
    command += ["--disable-token-auth"] if wanted.disable_token_auth else []
    return [*command, "--models", *(f"{each.name}={each.name}.mar" for each in admitted)]


def _sweep(temp: Path) -> None:
    """What the last run left: unpacked fronts, sockets, rooms. Nothing of it is readable or needed."""
    for path in temp.iterdir():
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def run(launch: Launch, *, patience: float, say: Say) -> None:
    """Start the keeper, wait up to `patience` seconds for the models, start TorchServe, watch until a signal."""
    supervisor = Supervisor(say)
    supervisor.stop_on_signals()
    if launch.measured:
        _extend(launch.measured, say)
    supervisor.also(KeyFile(launch.folder / "home" / KEY_FILE, Path.cwd() / KEY_FILE))
    for warning in launch.warnings:
        say(f"strongroom: warning: {warning}")
    say(f"strongroom: model keys come from {launch.keys}")
    try:
        supervisor.start(launch.keeper)
        for model in _wait_for_models(launch.socket, supervisor, patience):
            said = f"{model['reason']}; it will be tried again" if model["reason"] else "in memory"
            say(f"strongroom: model {model['name']} is {model['state']}: {said}")
        if not supervisor.stopping:
            supervisor.start(launch.server)
        supervisor.run()
    finally:
        supervisor.stop()
        shutil.rmtree(launch.folder, ignore_errors=True)


def _extend(measured: Sequence[Measurement], say: Say) -> None:
    """Before anything that is not ours runs: into the TPM's register."""
    from strongroom.attest.tpm import TpmAttester, launch_log_of, read_launch_log
    from strongroom.attest.tpm_connection import default_tcti

    tcti = default_tcti()
    with TpmAttester(tcti) as register:
        fresh = extend(register, read_launch_log(launch_log_of(tcti)), measured)
    for each in measured:
        said = "extended" if each in fresh else "measured already in this boot"
        say(f"strongroom: launch.{each.event} {each.digest.hex()}: {said}")


class KeyFile:
    """TorchServe's token file, brought to where an operator looks for it.

    TorchServe writes it into its working folder, and searches that folder first for Java classes and log
    settings. So the working folder is ours, and the file is copied out whenever it changes.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target
        self._seen = 0

    def __call__(self) -> None:
        """Copy it if it is new."""
        try:
            changed = self._source.stat().st_mtime_ns
            octets = self._source.read_bytes()
        except OSError:
            return
        if changed == self._seen or not octets:
            return
        fresh = self._target.with_name(f".{self._target.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(octets)
            fresh.replace(self._target)
            self._seen = changed


def _wait_for_models(path: Path, supervisor: Supervisor, patience: float) -> list[Mapping[str, Any]]:
    deadline = time.monotonic() + patience
    models: list[Mapping[str, Any]] = []
    while time.monotonic() < deadline and not supervisor.stopping:
        supervisor.tend()
        with contextlib.suppress(KeeperUnavailable):
            models = keeper_status(path)
            if models and not any("not been asked" in model["reason"] for model in models):
                break
        time.sleep(0.05)
    return models


def keeper_status(path: Path) -> list[Mapping[str, Any]]:
    """What a keeper says of its models; raises `KeeperUnavailable`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise KeeperUnavailable(f"no keeper answers at {path}") from error
        wire.send(connection, {"op": "status"})
        answer = wire.receive(connection)
    models: list[Mapping[str, Any]] = answer.get("models", [])
    return models


def describe(admitted: Sequence[Admitted]) -> str:
    """The admitted set as JSON, for ``--json``."""
    return json.dumps(
        [
            {
                "model": each.name,
                "archive": str(each.archive),
                "author": str(each.author),
                "lineage": each.lineage,
                "version": each.version,
            }
            for each in admitted
        ]
    )
