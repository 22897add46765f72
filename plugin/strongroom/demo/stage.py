"""Everything that runs in the demo, started the way a user would start it: by the command line.

One folder for the author and the key owner, one for the host; a broker, a launcher and a nosy relay in
between. `close` stops whatever was started and removes both folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from strongroom.demo.relay import Relay
from strongroom.errors import StrongroomError
from strongroom.launch.variables import REFUSED_VARIABLES

COMMAND = (sys.executable, "-P", "-m", "strongroom.cli")
READY_SECONDS = 180


def run(*arguments: str, folder: Path) -> dict[str, Any]:
    """One strongroom command with ``--json``; raises `StrongroomError` with what it said."""
    done = subprocess.run([*COMMAND, *arguments, "--json"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise StrongroomError(f"strongroom {' '.join(arguments[:2])} failed: {done.stderr.strip()[-600:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    return answer


def free_port() -> int:
    """A port that was free a moment ago, below those that the kernel gives to outgoing connections.

    A server that is still starting would otherwise lose its port to some client's connection.
    """
    for _ in range(100):
        port = 15_000 + secrets.randbelow(15_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise StrongroomError("no free port was found between 15000 and 30000")


@dataclass(slots=True)
class Stage:
    """The parties of the demo and their processes."""

    owner: Path
    host: Path
    broker_url: str = ""
    author_id: str = ""
    measurement: str = ""
    inference: int = 0
    management: int = 0
    grpc: int = 0
    relay: Relay | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    token_auth: bool = False
    launcher: subprocess.Popen[bytes] = field(init=False)

    @classmethod
    def make(cls) -> Stage:
        """Two empty folders."""
        owner, host = (Path(tempfile.mkdtemp(prefix=f"strongroom-{name}-")) for name in ("owner", "host"))
        return cls(owner, host)

    def close(self) -> None:
        """Stop everything, newest first, and remove both folders."""
        for process in reversed(self.processes):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if self.relay is not None:
            self.relay.close()
        for folder in (self.owner, self.host):
            shutil.rmtree(folder, ignore_errors=True)

    # -- the key owner ------------------------------------------------------------

    def make_author(self) -> None:
        """An author key pair."""
        self.author_id = run("keygen", "author", "author", folder=self.owner)["id"]

    def measure(self) -> None:
        """What this installation measures as, for policies."""
        self.measurement = run("measure", "--tee", "simulated", folder=self.owner)["values"]["measurements"][0]

    def start_broker(self) -> None:
        """A broker whose policy names the simulated TEE and this installation's measurement.

        Called again after its process died, it opens the same folder on the same port.
        """
        self.measure()
        policy = "\n".join(
            [
                'name = "demo"',
                'description = "For one evening on one machine: the simulated TEE protects nothing."',
                "[simulated]",
                "protects_nothing = true",
                f'measurements = ["{self.measurement}"]',
            ]
        )
        (self.owner / "appraisal.toml").write_text(policy + "\n")
        self.serve_broker("--policy", "appraisal.toml", "--rego", "development")

    def serve_broker(self, *options: str) -> None:
        """Make the broker's folder, if it is not there, and serve it."""
        if not self.broker_url:
            run("broker", "init", "broker", folder=self.owner)
        listen = self.broker_url.rpartition("/")[2] or "127.0.0.1:0"
        serve = ["broker", "serve", "broker", "--listen", listen, "--json", *options]
        with (self.owner / "broker.log").open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, *serve], cwd=self.owner, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise StrongroomError(f"the broker did not start: {(self.owner / 'broker.log').read_text()[-600:]}")
        self.broker_url = json.loads(line)["url"]

    def seal(self, plain: Path) -> dict[str, Any]:
        """Seal into the host's model store and register the key at the broker."""
        (self.host / "model_store").mkdir(exist_ok=True)
        output = self.host / "model_store" / plain.name
        flags = ["--author", "author.key", "--broker", self.broker_url, "--admin-key", "broker/admin.key"]
        return run("seal", str(plain), *flags, "-o", str(output), folder=self.owner)

    # -- the host -----------------------------------------------------------------

    def start_server(
        self,
        *,
        token_auth: bool = False,
        properties: str = "",
        models: tuple[str, ...] = ("digits=digits.mar",),
        settings: str = "",
        grace_s: int = 300,
        keys: str = "",
    ) -> None:
        """`strongroom launch -- torchserve …` with two workers, and the relay in front of it.

        `properties` are further lines of config.properties, `settings` of strongroom.toml; `keys` is a ``[keys]``
        table in place of the broker.
        """
        self.configure(settings, grace_s=grace_s, keys=keys)
        self.launch(models, token_auth=token_auth, properties=properties)

    def configure(self, settings: str = "", *, tee: str = "simulated", grace_s: int = 300, keys: str = "") -> None:
        """The host's strongroom.toml, and the author's public key beside it."""
        shutil.copy(self.owner / "author.pub", self.host / "author.pub")
        source = keys or f'[broker]\nurl = "{self.broker_url}"\ngrace_s = {grace_s}\n'
        (self.host / "strongroom.toml").write_text(
            f'[admission]\nauthors = ["author.pub"]\n\n{source}\n[attestation]\ntee = "{tee}"\n{settings}'
        )

    def launch(self, models: tuple[str, ...], *, token_auth: bool = False, properties: str = "") -> None:
        """Start the launcher over the configuration that is there, and the relay."""
        self.inference, self.management, self.grpc = free_port(), free_port(), free_port()
        (self.host / "config.properties").write_text(
            f"inference_address=http://127.0.0.1:{self.inference}\n"
            f"management_address=http://127.0.0.1:{self.management}\n"
            f"metrics_address=http://127.0.0.1:{free_port()}\n"
            f"grpc_inference_port={self.grpc}\ngrpc_management_port={free_port()}\n"
            f"default_workers_per_model=2\n{properties}"
        )
        command = [*COMMAND, "launch", "--config", "strongroom.toml", "--", "torchserve", "--start", "--ncs"]
        command += ["--model-store", "model_store", "--models", *models]
        command += ["--ts-config", "config.properties", *([] if token_auth else ["--disable-token-auth"])]
        environment = {name: value for name, value in os.environ.items() if name not in REFUSED_VARIABLES}
        with (self.host / "launch.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.host, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        self.launcher, self.token_auth = process, token_auth
        self.relay = Relay(self.inference)

    def wait_until_ready(self, workers: int = 2, *, model: str = "digits") -> None:
        """Until `workers` of `model` say READY; raises `StrongroomError` with the end of the log."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.launcher.poll() is None:
            with contextlib.suppress(requests.RequestException, ValueError, KeyError, IndexError, OSError):
                if sum(worker["status"] == "READY" for worker in self.workers(model)) >= workers:
                    return
            time.sleep(0.1)
        raise StrongroomError(f"the server did not get ready: {self.log_tail()}", hint=f"see {self.host}/launch.log")

    def workers(self, model: str = "digits") -> list[dict[str, Any]]:
        """What the management API says of a model's workers."""
        headers = {"Authorization": f"Bearer {self.token('management')}"} if self.token_auth else {}
        url = f"http://127.0.0.1:{self.management}/models/{model}"
        described = requests.get(url, headers=headers, timeout=2).json()
        workers: list[dict[str, Any]] = described[0]["workers"]
        return workers

    def token(self, api: str = "inference") -> str:
        """TorchServe's own token for one of its APIs, from the key file it writes."""
        token: str = json.loads((self.host / "key_file.json").read_text())[api]["key"]
        return token

    def log(self) -> str:
        """The host's log: what the launcher, the keeper and TorchServe said."""
        return (self.host / "launch.log").read_text(errors="replace")

    def log_tail(self) -> str:
        """The end of the host's log."""
        return self.log()[-1500:]

    @property
    def url(self) -> str:
        """The endpoint as clients reach it, through the relay."""
        assert self.relay is not None
        return f"http://127.0.0.1:{self.relay.port}"

    def client_policy(self) -> Path:
        """What the client believes: this measurement, this author."""
        path = self.owner / "client.toml"
        if path.exists():
            return path
        path.write_text(
            'name = "demo client"\n\n[simulated]\nprotects_nothing = true\n'
            f'measurements = ["{self.measurement}"]\n\n[admitted]\nauthors = ["{self.author_id}"]\n'
        )
        return path

    def host_places(self) -> list[Path]:
        """Every folder in which the host's software may have written something."""
        memory = Path("/dev", "shm")
        return [self.host, *memory.glob("strongroom-*"), *memory.glob("torch_*"), *memory.glob("__KMP*")]
