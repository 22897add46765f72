"""What `strongroom launch` does before it starts anything: every check, and everything that the server will read.

Order matters: what is admitted and how TorchServe is configured is fixed before any code that is not ours
runs, and where the hardware can say what this guest was started with, it is asked first. Everything is written into
one private folder in memory, which goes when the launcher does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom.adapters.torchserve.entry import isolated_python
from strongroom.adapters.torchserve.environment import java_for, keeper_environment, server_environment
from strongroom.adapters.torchserve.flags import (
    FILE_PROPERTIES,
    Wanted,
    jvm_arguments,
    read_command,
    size_limits,
    write_properties,
)
from strongroom.adapters.torchserve.runtime import frontend_command
from strongroom.errors import LaunchRefused
from strongroom.evidence.init_data import InitData
from strongroom.evidence.types import Attester
from strongroom.keeper.peers import Lineage
from strongroom.keeper.process import Charge
from strongroom.keeper.sources import check_source, origin
from strongroom.launch import init_files
from strongroom.launch.admission import Admitted, Gate
from strongroom.launch.config import Configuration
from strongroom.launch.hardening import confine_server
from strongroom.launch.landlock import version as landlock_version
from strongroom.launch.measured import Measurement, measurements, trust_roots
from strongroom.launch.mounts import PASSABLE, read_only
from strongroom.launch.roots import BY_EVENT, SIMULATED, check_init_data, opened
from strongroom.launch.supervisor import Child
from strongroom.launch.surroundings import Installed, check_surroundings
from strongroom.launch.sweep import Written, empty, remove
from strongroom.launch.user import User
from strongroom.plugins import Plugins

MEMORY = Path("/dev", "shm")
LEAST_ROOM = 1 << 20
"""Bytes for fronts, settings, sockets and caches of a server; models are in no file there by default."""

WORKER_DEPTH = 2
"""Launcher → Java → worker."""

LOCK = "lock"
"""Held by the launcher as long as it lives; a folder whose lock nobody holds was left by one that was killed."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What is about to run: the folder in memory and the descriptor of its lock, the admitted archives, both children.

    `measured` are the events that are extended where `attester` has a register; `init_data` is what the guest was
    started with, and `held` says what holds its digest. `rooms` is the folder for rooms that are not memory files, and
    `mounted` whether a file system of its own belongs there. `keys` says in words where model keys come from.
    """

    folder: Path
    lock: int
    admitted: tuple[Admitted, ...]
    keeper: Child
    server: Child
    attester: Callable[[], Attester]
    measured: tuple[Measurement, ...]
    warnings: tuple[str, ...] = ()
    logs: tuple[Path, ...] = ()
    user: User | None = None
    init_data: InitData | None = None
    held: str = ""
    rooms: Path | None = None
    mounted: bool = False
    keys: str = ""

    @property
    def socket(self) -> Path:
        """The keeper's socket."""
        return self.folder / "keeper.sock"


def prepare(
    config: Path | None,
    command: Sequence[str],
    *,
    init_data: Path | None = None,
    attester: Callable[[], Attester] | None = None,
    keeper_flags: Sequence[str] = (),
) -> Launch:
    """Check everything and write the private store; starts nothing. Raises `LaunchRefused` and its kin.

    The configuration is a file or is in an init-data file. `attester` opens another attester than the configured one.
    """
    if (config is None) == (init_data is None):
        raise LaunchRefused(
            "the configuration comes from one place: a file, or an init-data file",
            hint="give --config FILE, or --init-data FILE",
        )
    if not MEMORY.is_dir():
        raise LaunchRefused(f"{MEMORY} is not there, and nothing may be written to a disk", hint="mount a tmpfs on it")
    _check_room()
    sweep_abandoned()
    folder = Path(tempfile.mkdtemp(prefix="strongroom-", dir=MEMORY))
    try:
        lock = _locked(folder)
        started = None if init_data is None else init_files.read(init_data)
        if started is not None:
            config = init_files.unpack(started, folder / "init-data")
        assert config is not None
        return _prepared(folder, lock, config, command, started, attester, keeper_flags)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _locked(folder: Path) -> int:
    """The descriptor of the folder's lock, held; the file gets its name when it is."""
    path = folder / f".{LOCK}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.rename(folder / LOCK)
    return descriptor


def sweep_abandoned() -> None:
    """Remove what launchers of this user left in memory when they, and their guardians, were killed."""
    for folder in MEMORY.glob("strongroom-*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.geteuid():
                continue
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder)
            finally:
                os.close(descriptor)


def _check_room() -> None:
    """Short of this the launcher would get by, and the server fail later with an error of Java's."""
    status = os.statvfs(MEMORY)
    if status.f_bavail * status.f_frsize < LEAST_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(MEMORY))


def _prepared(
    folder: Path,
    lock: int,
    config: Path,
    command: Sequence[str],
    started: InitData | None,
    attester: Callable[[], Attester] | None,
    keeper_flags: Sequence[str],
) -> Launch:
    configuration = Configuration.load(config)
    plugins = Plugins.load(configuration.plugins)
    attest = attester or (lambda: plugins.attester(configuration.tee))
    warnings = check_surroundings(configuration.surroundings, tee=configuration.tee)
    held = ""
    if started is not None:
        with opened(attest()) as device:
            held = check_init_data(started, device, plugins.verifiers())
        warnings += [f"init-data is held by {held}"] if configuration.tee == SIMULATED else []
    if configuration.worker.output == "pass":
        warnings.append("worker output is passed on: requests, answers and weights may end up in logs")
    warnings += check_source(configuration)
    wanted = read_command(list(command))
    if wanted.unnamed:
        warnings.append("config.properties of the present folder is read, as TorchServe does without --ts-config")
    if not wanted.models:
        raise LaunchRefused("no model is named", hint="torchserve --models digits=digits.mar, or ALL")
    user = User.named(configuration.worker.user) if configuration.worker.user else None
    if configuration.worker.disk == "deny" and not landlock_version():
        warnings.append("this kernel has no Landlock: a handler that writes to a disk is not stopped")
    if user is None and os.geteuid() == 0:
        warnings.append("server and workers run as root, as the keeper does: name another user in worker.user")
    gate = Gate.of(configuration)
    for name in ("store", "temp", "unpacked", "config", "home"):
        (folder / name).mkdir(mode=0o700)
    admitted = tuple(gate.admit(wanted.models, folder / "store"))
    write_properties(wanted, folder / "config" / "config.properties")
    ca = configuration.broker.ca if configuration.broker is not None else None
    roots = trust_roots((each.id for each in gate.authors), b"" if ca is None else _read(ca))
    logs = _logs()
    java = java_for(configuration)
    _give(folder, user, wanted, logs, java)
    kind = configuration.worker.room
    rooms, mounted = None if kind == "memory-files" else folder / "rooms", kind == "mount"
    if rooms is not None:
        rooms.mkdir(mode=0o700)
        rooms.chmod(PASSABLE)
    if kind == "folder":
        warnings.append("opened models are files in shared memory, for processes of the same user to read and change")

    def charge() -> bytes:  # in the process that starts the server
        lineage = Lineage(os.getpid(), WORKER_DEPTH, *((user.uid, user.gid) if user else ()))
        return Charge(admitted, lineage, configuration.digest, roots, _sent(started, held), rooms).serialise()

    keeper = [sys.executable, "-P", "-m", "strongroom.cli", "keeper", "--config", str(config.resolve())]
    keeper += ["--socket", str(folder / "keeper.sock"), "--charged", *keeper_flags]
    temp = folder / "temp"
    named = os.environ.get("JAVA_HOME")
    if named and Path(named) != java:
        warnings.append(f"JAVA_HOME of the environment is not used, but {java}: see [surroundings] java_home")
    own = (temp, folder / "unpacked", folder / "home")
    writable = (*own, *logs, MEMORY) if configuration.worker.disk == "deny" else ()
    sizes, network = size_limits(wanted), configuration.worker.network
    written = Written.of(folder / "store", folder / "config")
    server = Child(
        "torchserve",
        _server_command(folder, java, wanted, admitted),
        server_environment(temp, folder / "keeper.sock", logs, java, sizes, network),
        folder / "home",
        before=lambda: _renew(own, temp / "home", written, user),
        confine=lambda: _confine(user, writable, rooms if mounted else None),
        orphaned=signal.SIGKILL,
    )
    events: tuple[Measurement, ...] = ()
    if configuration.tee != SIMULATED:  # which has no register, and would only wait for the digests
        text = started.text.encode() if started is not None else None
        events = measurements(configuration.digest, admitted, Installed.all(), roots=roots, init_data=text)
    keeper_child = Child(
        "the keeper",
        keeper,
        keeper_environment(folder),
        Path.cwd(),
        before=lambda: _empty(rooms),
        takes=() if rooms is None else (server,),
        stdin=charge,
    )
    return Launch(
        folder,
        lock,
        admitted,
        keeper_child,
        server,
        attest,
        events,
        tuple(warnings),
        logs,
        user,
        started,
        held,
        rooms,
        mounted,
        keys=origin(configuration),
    )


def _confine(user: User | None, writable: Sequence[Path], mount: Path | None) -> None:
    if mount is not None:
        read_only(mount)
    confine_server(user, writable)


def _empty(rooms: Path | None) -> None:
    """What a keeper that was killed left; the server, which read it, has ended with that keeper."""
    if rooms is not None:
        empty(rooms)


def _sent(started: InitData | None, held: str) -> str | None:
    """The text for the broker: it looks into the hardware's field, so it gets none that only an event vouches for."""
    return None if started is None or held == BY_EVENT else started.text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LaunchRefused(f"{path} cannot be read: {error.strerror}", hint="see [broker] ca") from error


def _logs() -> tuple[Path, Path]:
    """Where the server writes its logs and its metrics: beside the operator unless they say otherwise."""
    logs, metrics = (Path(os.environ.get(name) or "logs").absolute() for name in ("LOG_LOCATION", "METRICS_LOCATION"))
    for each in (logs, metrics):
        if "${" in str(each):  # the server's logging would look it up
            raise LaunchRefused(f"the log folder {each} is named with ${{", hint="choose a folder without it")
    return logs, metrics


def _give(folder: Path, user: User | None, wanted: Wanted, logs: Sequence[Path], java: Path) -> None:
    """What the server's user needs of ours, and no more, whatever the launcher's umask says.

    Raises `LaunchRefused` where that user cannot reach something.
    """
    if user is None:
        return
    folder.chmod(0o711)  # to be passed through, not listed
    written = []
    for name in ("store", "config"):
        user.lend(folder / name, 0o750)
        files = sorted((folder / name).iterdir())
        for path in files:
            user.lend(path, 0o640)
        written += files[:1]
    for name in ("temp", "unpacked", "home"):
        user.own(folder / name)
    certificates = (
        Path(wanted.properties[each]).absolute() for each in sorted(FILE_PROPERTIES & wanted.properties.keys())
    )
    own = (folder / each for each in ("temp", "unpacked", "home"))
    writable = [*own, *filter(Path.is_dir, logs)]  # a log folder that is not there is made
    user.check(
        [Path(__file__), *written, *certificates],
        writable,
        [Path(sys.executable), isolated_python(), java / "bin" / "java"],
    )


def _server_command(folder: Path, java: Path, wanted: Wanted, admitted: Sequence[Admitted]) -> list[str]:
    settings, jvm = folder / "config" / "config.properties", jvm_arguments(wanted)
    command = frontend_command(java, folder / "unpacked", settings, folder / "store", jvm=jvm)
    command += ["--disable-token-auth"] if wanted.disable_token_auth else []
    return [*command, "-m", *(f"{each.name}={each.name}.mar" for each in admitted)]


def _renew(own: Sequence[Path], home: Path, written: Written, user: User | None) -> None:
    """Before each start of the server: what the last run left goes (unpacked fronts, sockets, caches), since Java and
    Python would look there, and what the server reads is as it was written. Raises `OSError` where it cannot be."""
    for folder in own:
        empty(folder)
    home.mkdir(mode=0o700)
    if user is not None:
        user.own(home)
    written.restore()
