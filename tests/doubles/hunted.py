"""A stage that is searched before it closes: what its journey sent, and what it was made of, lies nowhere outside.

Looked at are the places of this stage alone: the host's folder, folders in /dev/shm, the broker's log, environments,
command lines and unnamed files of its processes, what passed the relay, and what the server says to anybody who asks,
metrics among it. So two may run at once. The whole machine, its loopback device and the memory of processes are
looked at by `Ground` (doubles/ground.py).

Looked for are every `canary` that this process made, pieces of the sealed models, the keys of author, administrator
and models, and the secrets of one request to each model.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from leaks.hunt import Found, Hunt, canary
from leaks.needles import made
from strongroom.archive.modelkey import load_model_key
from strongroom.archive.signature import AuthorKey
from strongroom.broker.admin import AdminKey
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form
from strongroom.demo.stage import Stage, run
from strongroom.errors import StrongroomError

PIECE = 48
INSIDE = ("model_service_worker", "keeper --config")


@dataclass
class HuntedStage(Stage):
    """The stage of a journey. `close` raises `AssertionError` where anything secret was found."""

    hunt: Hunt = field(default_factory=lambda: Hunt({}))
    models: list[str] = field(default_factory=list)
    searched: bool = False

    def seal(self, plain: Path, *flags: str, output: Path | None = None) -> dict[str, Any]:
        """As a `Stage` does, with further flags, and keep in mind what was sealed and under which key."""
        (self.host / "model_store").mkdir(exist_ok=True)
        (self.owner / "keys").mkdir(mode=0o700, exist_ok=True)
        output = output or self.host / "model_store" / plain.name
        words = ["--author", "author.key", "--broker", self.broker_url, "--admin-key", "broker/admin.key", *flags]
        sealed = run("seal", str(plain), *words, "--key-out", "keys", "-o", str(output), folder=self.owner)
        self.remember(plain)
        return sealed

    def remember(self, plain: Path) -> None:
        """Look for pieces of a model from now on; for whoever seals it in another way."""
        self.hunt.look_for({f"a piece of {plain.name}: {name}": piece for name, piece in pieces(plain)})
        self.models.append(plain.name.partition(".")[0])

    def launch(self, models: tuple[str, ...], **server: Any) -> None:
        """As a `Stage` does, and learn the keys while their owner's folder is there."""
        super().launch(models, **server)
        keys: dict[str, str | bytes] = {"the author's key": AuthorKey.load(self.owner / "author.key")._seeds[:32]}
        for path in (self.owner / "keys").glob("*.key"):
            keys[f"the model key {path.stem[:8]}"] = load_model_key(path).reveal()
        if (self.owner / "broker" / "admin.key").exists():
            administrator: Ed25519PrivateKey = AdminKey.load(self.owner / "broker" / "admin.key").private
            keys["the administrator's key"] = administrator.private_bytes_raw()
        self.hunt.look_for(keys)

    # -- hunting ------------------------------------------------------------------------------

    def search(self, hunt: Hunt | None = None) -> list[Found]:
        """Everything found so far; `hunt` is another one where a test plants something."""
        hunt = hunt or self.hunt
        for name in self.models:
            hunt.look_for(known_secrets(self, name))
        hunt.look_for(made())
        hunt.files(each for each in self.host_places() if each.exists())
        for log in self.owner.glob("*.log"):
            hunt.octets(log.read_bytes(), str(log))
        hunt.processes(self.pids(), inside=is_inside)
        if self.relay is not None:
            hunt.octets(self.relay.seen, "the relay")
        for where, octets in said_in_the_clear(self, self.models):
            hunt.octets(octets, where)
        return [each for each in hunt.found if not handlers_own(each.where)]

    def pids(self) -> list[int]:
        """Everything that was started here and all that it started."""
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                found += [each.pid for each in psutil.Process(process.pid).children(recursive=True)]
                found.append(process.pid)
        return found

    def close(self) -> None:
        """Search once where a server was launched, stop everything, and say what was found."""
        found = []
        try:
            if hasattr(self, "launcher") and not self.searched:
                self.searched = True
                found = self.search()
        finally:
            super().close()
        assert found == [], found


def pieces(plain: Path) -> Iterator[tuple[str, bytes]]:
    """(member, piece) of what sealing hides of a .mar: the beginning, middle and end of each member, unless dull."""
    with zipfile.ZipFile(plain) as mar:
        manifest = json.loads(mar.read("MAR-INF/MANIFEST.json"))
        readable = {"MAR-INF/MANIFEST.json", manifest["model"].get("configFile")}
        for name in set(mar.namelist()) - readable:
            octets = mar.read(name)
            for start in sorted({0, len(octets) // 2, len(octets) - PIECE}):
                piece = octets[max(0, start) :][:PIECE]
                if len(piece) == PIECE and len(set(piece)) >= 16:
                    yield f"{name} at {start}", piece


def known_secrets(stage: Stage, name: str) -> dict[str, str | bytes]:
    """One request whose own keys are canaries, which only this client and one worker may ever know.

    What the model makes of it is no matter. Empty where it gives no keys at the moment.
    """
    url, told = f"{stage.url}/predictions/{name}", canary("told")
    secrets: dict[str, str | bytes] = {}
    with contextlib.suppress(requests.RequestException, StrongroomError, OSError):
        outer = {"Authorization": f"Bearer {stage.token()}"} if stage.token_auth else {}
        bundle = requests.post(url, data=b"{}", headers=outer | {"Content-Type": KEYS_REQUEST_TYPE}, timeout=30)
        config, pair = KeyList.parse(KeyBundle.parse(bundle.content).parts.ohttp_keys).choose()
        headers = (("content-type", "application/json"), ("x-canary", told))
        inner = Request("POST", "http", "h", f"/predictions/{name}", headers, json.dumps({"answer": told}).encode())
        message, opener = ohttp.encapsulate(config, pair, inner.serialise())
        context = opener._context
        secrets = {
            f"the key of a request to {name}": context._secrets.key,
            f"the exporter secret of a request to {name}": context._secrets.exporter_secret,
            f"the secret of a response by {name}": context.export(Form.SINGLE.response_label, 32),
        }
        sealed = outer | {"Content-Type": Form.SINGLE.request_type}
        answer = requests.post(url, data=bytes(message), headers=sealed, timeout=30)
        if answer.ok:
            opener.open(answer.content)
    return secrets


def said_in_the_clear(stage: Stage, models: list[str]) -> Iterator[tuple[str, bytes]]:
    """(address, answer) of what anybody can ask the server for."""
    properties = (stage.host / "config.properties").read_text()
    metrics = re.search(r"^metrics_address=(.+)$", properties, re.MULTILINE)[1]
    inference, management = (f"http://127.0.0.1:{port}" for port in (stage.inference, stage.management))
    places = [f"{inference}{path}" for path in ("/ping", "/api-description", "/models")]
    places += [f"{metrics}/metrics", f"{management}/models", f"{management}/metrics", f"{management}/api-description"]
    for name in models:
        places += [f"{inference}/predictions/{name}", f"{management}/models/{name}?customized=true"]
    for each in places:
        api = "management" if each.startswith(management) else "inference"
        with contextlib.suppress(requests.RequestException, OSError, KeyError):
            headers = {"Authorization": f"Bearer {stage.token(api)}"} if stage.token_auth else {}
            # TorchServe never answers for a model with sequences when it is to describe itself.
            answer = requests.get(each, headers=headers, timeout=3 if "customized" in each else 10)
            yield each, answer.content + repr(answer.headers).encode()


def is_inside(pid: int) -> bool:
    """Keepers and workers: they rightly hold opened models in memory files."""
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return any(words in line for words in INSIDE)
    return False


def handlers_own(where: str) -> bool:
    """What the handler itself wrote into the temporary folder that it was given: in memory, and swept at the end."""
    return re.match(r"(?:/proc/\d+/root)?/dev/shm/strongroom-\w+/temp/left-behind", where) is not None
