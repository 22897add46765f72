"""A keeper as a process of its own, with a real broker, and workers that come to it as workers do."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from strongroom.adapters.torchserve.launcher import keeper_status
from strongroom.archive.unseal import SealedArchive
from strongroom.demo.stage import COMMAND, Stage
from strongroom.errors import KeeperUnavailable, StrongroomError
from strongroom.keys import ArchiveDigest

WORKER = """
import hashlib, json, os, sys, time
from pathlib import Path
from strongroom.errors import ModelUnavailable, StrongroomError
from strongroom.keys import ArchiveDigest
from strongroom.launch.hardening import harden_worker
from strongroom.worker.link import Link
link = Link(ArchiveDigest(bytes.fromhex(sys.argv[1])), Path(sys.argv[2]), seconds=10)
link.settings()
harden_worker(network=False, disk=False)
deadline = time.monotonic() + float(sys.argv[3])
while True:
    try:
        files = link.model()
        break
    except ModelUnavailable as error:
        refusal = error
    except StrongroomError as error:
        refusal, deadline = error, 0
    if time.monotonic() >= deadline:
        files = None
        break
    time.sleep(0.1)
if files is None:
    print(json.dumps({"error": type(refusal).__name__, "message": str(refusal)}), flush=True)
else:
    digests = {}
    for each in files:
        with open(f"/proc/self/fd/{each.descriptor}", "rb") as file:  # an offset of its own, as in a room
            digests[each.name] = hashlib.file_digest(file, "sha256").hexdigest()
    print(json.dumps(digests), flush=True)
sys.stdin.read()  # lives on as a worker until its input ends
"""


def until(condition, seconds: float = 60.0, *, every: float = 0.02):
    """What `condition` gives once it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError(f"it did not happen in {seconds} s")


def flip_every_block(path: Path, *, keep_front: bool = False) -> None:
    """A bit in every region of an archive, in place; what stands before the payload is kept if it shall be."""
    start = 0
    if keep_front:
        with SealedArchive.open(path) as archive:
            start = archive._storage.payload_at
    with path.open("r+b") as file:
        for at in range(start, path.stat().st_size, max(64, path.stat().st_size // 4096)):
            file.seek(at)
            octet = file.read(1)
            file.seek(at)
            file.write(bytes([octet[0] ^ 1]))


class Worker:
    """A hardened process that claims a model and asks for its files; `told` is their digests, or the refusal.

    It asks again for `patience` seconds.
    """

    def __init__(self, socket: Path, archive: ArchiveDigest, *, patience: float = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(archive), str(socket), str(patience)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        line = self.process.stdout.readline()
        self.told: dict[str, str] = json.loads(line) if line else {"error": self.process.stderr.read().decode()[-500:]}

    def close(self) -> None:
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


class KeeperProcess:
    """``strongroom keeper`` over archives in the stage's model store."""

    def __init__(self, stage: Stage, models: Mapping[str, str], *, settings: str = "", grace_s: int = 300) -> None:
        self.stage, self.models = stage, models
        stage.host.joinpath("author.pub").write_bytes(stage.owner.joinpath("author.pub").read_bytes())
        self.config = stage.host / "keeper.toml"
        self.config.write_text(
            '[admission]\nauthors = ["author.pub"]\n'
            f'[broker]\nurl = "{stage.broker_url}"\ngrace_s = {grace_s}\n'
            f'[attestation]\ntee = "simulated"\n{settings}'
        )
        self.socket = stage.host / "keeper.sock"
        self.log = stage.host / "keeper.log"
        self.process: subprocess.Popen | None = None

    def start(self, *, environment: Mapping[str, str] | None = None, log: Path | None = None) -> None:
        """Start it, and wait until it answers on its socket."""
        pairs = [f"{name}={self.stage.host / 'model_store' / file}" for name, file in self.models.items()]
        command = [*COMMAND, "keeper", "--config", str(self.config), "--socket", str(self.socket), *pairs]
        with (log or self.log).open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
            )
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()[-2000:]
        with contextlib.suppress(KeeperUnavailable):
            return bool(keeper_status(self.socket))
        return False

    def stop(self) -> None:
        """SIGKILL: nothing may depend on a clean end."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    # -- looking at it ----------------------------------------------------------------

    def status(self, name: str) -> dict[str, object]:
        return next(dict(each) for each in keeper_status(self.socket) if each["name"] == name)

    def state(self, name: str) -> str:
        """The state of one model; empty where the keeper does not answer."""
        with contextlib.suppress(KeeperUnavailable, StopIteration):
            return str(self.status(name)["state"])
        return ""

    def until_open(self, name: str, seconds: float = 60.0) -> None:
        until(lambda: self.state(name) == "open", seconds)

    def until_said(self, name: str, word: str, seconds: float = 60.0) -> dict[str, object]:
        """The model's status once its reason names `word`."""
        deadline = time.monotonic() + seconds
        while word not in str((found := self.status(name))["reason"]):
            assert time.monotonic() < deadline, f"{word} was not said in {seconds} s: {found}"
            time.sleep(0.02)
        return found

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def descriptors(self) -> dict[int, str]:
        """Number → target of every open descriptor."""
        found = {}
        for each in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                found[int(each)] = os.readlink(f"/proc/{self.pid}/fd/{each}")
        return found

    def memory_files(self) -> list[int]:
        return [number for number, target in self.descriptors().items() if "memfd:strongroom" in target]

    def limit(self, kind: int, most: int) -> None:
        """A limit of the running process, as an operator or a container would set it."""
        resource.prlimit(self.pid, kind, (most, resource.prlimit(self.pid, kind)[1]))

    def unlimit(self, kind: int) -> None:
        hard = resource.prlimit(self.pid, kind)[1]
        resource.prlimit(self.pid, kind, (hard, hard))

    def address_space(self) -> int:
        """Bytes, as RLIMIT_AS counts them."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[0]) * resource.getpagesize()

    def pause_while_opening(self, bytes_in: int) -> bool:
        """Stop the process once `bytes_in` of a model were written into memory; False if it was too quick."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for number in self.memory_files():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{self.pid}/fd/{number}").st_blocks * 512 >= bytes_in:
                        os.kill(self.pid, signal.SIGSTOP)
                        until(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
                        return True
        return False

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def administer(stage: Stage, verb: str, lineage: str) -> None:
    """`strongroom release revoke` or `restore` of a lineage, as its owner would."""
    command = [*COMMAND, "release", verb, "lineage", f"default/{lineage}"]
    command += ["--broker", stage.broker_url, "--admin-key", "broker/admin.key"]
    done = subprocess.run(command, cwd=stage.owner, capture_output=True, text=True)
    if done.returncode != 0:
        raise StrongroomError(done.stderr[-500:])
