"""A real TorchServe on free ports with its own folders, for journeys. Everything it starts, it stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from strongroom.adapters.torchserve.runtime import java_home
from strongroom.demo.stage import free_port


def free_ports(count: int) -> list[int]:
    """Different ports that were free a moment ago."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


@dataclass
class Ports:
    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int

    @classmethod
    def free(cls) -> Ports:
        return cls(*free_ports(5))

    def properties(self) -> str:
        return (
            f"inference_address=http://127.0.0.1:{self.inference}\n"
            f"management_address=http://127.0.0.1:{self.management}\n"
            f"metrics_address=http://127.0.0.1:{self.metrics}\n"
            f"grpc_inference_port={self.grpc_inference}\n"
            f"grpc_management_port={self.grpc_management}\n"
        )


class Serving:
    """A running server: `url` for predictions, `management` for the management API."""

    def __init__(self, process: subprocess.Popen, ports: Ports, log: Path, folder: Path) -> None:
        self.process, self.ports, self.log, self.folder = process, ports, log, folder
        self.url = f"http://127.0.0.1:{ports.inference}"
        self.management = f"http://127.0.0.1:{ports.management}"

    def tokens(self) -> dict[str, str]:
        """TorchServe's key file, by API name."""
        keys = json.loads((self.folder / "key_file.json").read_text())
        return {name: entry["key"] for name, entry in keys.items()}

    def wait_until_ready(self, model: str, *, workers: int, seconds: float = 120, token: str | None = None) -> None:
        deadline = time.monotonic() + seconds
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        state = "no answer"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"TorchServe left with {self.process.returncode}:\n{self.tail()}")
            try:
                answer = requests.get(f"{self.management}/models/{model}", headers=headers, timeout=5)
                state = answer.text
                if answer.ok:
                    ready = [each for each in answer.json()[0]["workers"] if each["status"] == "READY"]
                    if len(ready) >= workers:
                        return
            except (requests.ConnectionError, requests.Timeout) as error:
                state = type(error).__name__
            time.sleep(0.2)
        raise AssertionError(f"{model} is not ready after {seconds} s: {state}\n{self.tail()}")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_torchserve(folder: Path, store: Path, models: list[str], *, properties: str = "", flags=("--dt",)) -> Serving:
    """Stock TorchServe in the foreground of its own process group, everything it writes under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    temp = folder / "temp"
    temp.mkdir()
    ports = Ports.free()
    config = folder / "config.properties"
    config.write_text(ports.properties() + "default_workers_per_model=2\n" + properties)
    environment = os.environ | {"TEMP": str(temp), "TMPDIR": str(temp), "JAVA_HOME": str(java_home())}
    environment |= {"LOG_LOCATION": str(folder / "logs"), "METRICS_LOCATION": str(folder / "logs")}
    command = [
        sys.executable,
        "-P",
        "-m",
        "ts.model_server",
        "--start",
        "--foreground",
        "--ncs",
        "--model-store",
        str(store),
    ]
    command += ["--ts-config", str(config), *flags, "--models", *models]
    log = folder / "console.log"
    with log.open("wb") as console:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=console, stderr=console, start_new_session=True
        )
    return Serving(process, ports, log, folder)
