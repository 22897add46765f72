"""`strongroom launch -- torchserve …`: the keeper, then stock TorchServe, watched together.

What comes before, admission above all, is `preparation`'s.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from strongroom.adapters.torchserve.key_file import KeyFile
from strongroom.adapters.torchserve.preparation import MEMORY, Launch, prepare
from strongroom.errors import KeeperUnavailable, LaunchRefused
from strongroom.keeper import wire
from strongroom.keeper.pulse import Pulse
from strongroom.launch.admission import Admitted
from strongroom.launch.guardian import guarded
from strongroom.launch.hardening import harden
from strongroom.launch.measured import Register, extend
from strongroom.launch.mounts import own_mount, unmount
from strongroom.launch.roots import bind_init_data, opened
from strongroom.launch.supervisor import Supervisor
from strongroom.launch.sweep import remove
from strongroom.launch.user import User

__all__ = ["Launch", "describe", "fix", "keeper_status", "prepare", "run"]

KEY_FILE = "key_file.json"
STOPPED = "strongroom: stopped; nothing was left behind"

Say = Callable[[str], None]


def _make_logs(logs: Sequence[Path], user: User | None) -> None:
    """Folders that are not there, with the rights that the umask leaves their owner, who is the server's user.

    That user can also pass through what had to be made above them.
    """
    for path in logs:
        if path.is_dir():
            continue
        above = [each for each in path.parents if not each.exists()]
        try:
            path.mkdir(parents=True)
            if user is not None:
                for each in above:
                    each.chmod(each.stat().st_mode | 0o011)
                user.own(path)
        except OSError as error:
            raise LaunchRefused(f"the log folder {path} cannot be made: {error.strerror}", hint="make it") from error


def _sweep(launch: Launch, since: float) -> list[Path]:
    """Remove all of it from memory; what stays comes back.

    Beside our folder that is shared memory which workers made by name and did not live to remove: of a user of their
    own it can be told.
    """
    mine = [launch.folder]
    for path in MEMORY.iterdir() if launch.user is not None else ():
        with contextlib.suppress(OSError):
            status = path.lstat()
            if launch.user is not None and status.st_uid == launch.user.uid and status.st_ctime >= since:
                mine.append(path)
    for path in mine:
        with contextlib.suppress(OSError):
            remove(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return [path for path in mine if os.path.lexists(path)]


def run(launch: Launch, *, say: Say) -> None:
    """Start the keeper and TorchServe, which start up beside each other, and watch them until a signal.

    It returns in a child of the process that called it, which stays behind as its guardian and exits as this one does.
    """
    harden()  # or a handler of the same user could write into this process
    since = time.time()
    guarded(lambda: _sweep(launch, since))
    supervisor = Supervisor(say)
    supervisor.stop_on_signals()
    try:
        if launch.rooms is not None and launch.mounted:
            own_mount(launch.rooms)
        for warning in launch.warnings:
            say(f"strongroom: warning: {warning}")
        say(f"strongroom: model keys come from {launch.keys}")
        fix(launch, say)
        _make_logs(launch.logs, launch.user)
        owner = launch.user.uid if launch.user is not None else None
        supervisor.also(KeyFile(launch.folder / "home" / KEY_FILE, Path.cwd() / KEY_FILE, owner=owner))
        supervisor.also(Pulse(launch.socket, lambda: launch.keeper.process, say))
        supervisor.start(launch.keeper)
        supervisor.start(launch.server)
        supervisor.also(Outcomes(launch.socket, {each.name for each in launch.admitted}, say))
        supervisor.run()
    finally:
        supervisor.stop()
        if launch.rooms is not None and launch.mounted:
            unmount(launch.rooms)
        left = _sweep(launch, since)
        say(f"strongroom: stopped; left in memory: {', '.join(map(str, left))}" if left else STOPPED)


def fix(launch: Launch, say: Say) -> None:
    """Before anything that is not ours runs: into the registers of this machine, where it has some."""
    with opened(launch.attester()) as device:
        if launch.init_data is not None:
            bind_init_data(launch.init_data, device)
            say(f"strongroom: init-data {launch.init_data.digest.hex()}: held by {launch.held}")
        if not isinstance(device, Register):
            return
        trouble = device.launch_trouble()
        if trouble:
            say(f"strongroom: warning: launch events are not extended: {trouble}")
            return
        fresh = extend(device, launch.measured)
    for each in launch.measured:
        said = "extended" if each in fresh else "measured already in this boot"
        say(f"strongroom: launch.{each.event} {each.digest.hex()}: {said}")


class Outcomes:
    """Tells the operator once, for each model, how its first opening ended."""

    def __init__(self, path: Path, names: set[str], say: Say) -> None:
        self._path, self._left, self._say = path, names, say

    def __call__(self) -> None:
        """Ask the keeper, as long as there is something to tell."""
        if not self._left:
            return
        with contextlib.suppress(KeeperUnavailable):
            for model in keeper_status(self._path):
                if model["name"] in self._left and not model["trying"]:
                    self._left.remove(model["name"])
                    said = f"{model['reason']}; it will be tried again" if model["reason"] else "in memory"
                    self._say(f"strongroom: model {model['name']} is {model['state']}: {said}")


def keeper_status(path: Path) -> list[Mapping[str, Any]]:
    """What a keeper says of its models; raises `KeeperUnavailable`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
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
