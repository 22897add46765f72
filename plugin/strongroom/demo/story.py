"""The story that `strongroom demo` tells: seal a model, serve it, ask it in secret, and be refused.

Every line on the screen reports something that happened just now; what is claimed is measured. `Story.facts`
collects the same for ``--json``.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from strongroom.client.adapter import SealedAdapter
from strongroom.demo.digits import Scan, Trained, train
from strongroom.demo.refusals import REFUSALS, Refusal
from strongroom.demo.relay import http_body
from strongroom.demo.search import found_in, hits, needles
from strongroom.demo.stage import Stage
from strongroom.errors import StrongroomError

SCANS = 10
COLUMNS = 4
_LONG = re.compile(r"([0-9a-f]{16})[0-9a-f]{48}")


class Story:
    """One run of the demo. `console` speaks to people; nothing is printed where it is quiet."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.facts: dict[str, Any] = {}
        self.stage = Stage.make()
        self._began = time.monotonic()

    def tell(self, *, keep: bool) -> None:
        """All of it; raises `StrongroomError` if anything is not as promised."""
        trained = self.train()
        self.prepare_owner()
        self.seal(trained)
        self.launch()
        adapter = self.verify()
        self.ask(adapter, trained)
        self.show_the_wire(trained)
        self.be_refused(trained)
        self.facts["seconds"] = round(time.monotonic() - self._began, 1)
        if keep:
            self.invite()

    def close(self) -> None:
        """Stop what was started and remove what was written."""
        self.stage.close()

    def _step(self, title: str) -> None:
        self.console.print(f"\n[bold cyan]{len(self.facts) + 1}.[/] [bold]{title}[/]")

    def _say(self, text: str, indent: int = 3) -> None:
        """A line, or several with a hanging indent; digests are cut to 16 digits."""
        self.console.print(Padding(_LONG.sub(r"\1…", text), (0, 0, 0, indent)), highlight=False)

    @contextlib.contextmanager
    def _progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        columns = (TextColumn("   {task.description}"), BarColumn(30), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    # -- the acts -------------------------------------------------------------------

    def train(self) -> Trained:
        """A small network on real scans, packaged as anybody would."""
        self._step("A model worth stealing: a small CNN on scikit-learn's 1,797 handwritten digits")
        with self._progress("training") as progress:
            trained = train(self.stage.owner, progress=progress)
        self._say(
            f"digits.mar made by torch-model-archiver: {trained.archive.stat().st_size:,} bytes, "
            f"{trained.accuracy:.1%} right on {len(trained.held_back)} scans held back"
        )
        self.facts["model"] = {"bytes": trained.archive.stat().st_size, "accuracy": round(trained.accuracy, 4)}
        return trained

    def prepare_owner(self) -> None:
        """An author key and a broker under a policy."""
        self._step("The owner: an author key, and a key broker with a policy")
        self.stage.make_author()
        with self._progress("starting the broker"):
            self.stage.start_broker()
        self._say(f"author {self.stage.author_id[:16]}…, broker at {self.stage.broker_url} (KBS 0.4.0)")
        self._say(
            f"its policy releases keys to the [yellow]simulated[/] TEE with measurement "
            f"{self.stage.measurement[:16]}… and to nothing else"
        )
        self.console.print(
            "   [yellow]SIMULATED TEE: this shows the machinery; without real hardware nothing is protected[/]"
        )
        self.facts["owner"] = {"author": self.stage.author_id, "measurement": self.stage.measurement}

    def seal(self, trained: Trained) -> None:
        """Encrypt, sign, register the key."""
        self._step("strongroom seal: digits.mar becomes a sealed digits.mar, its key goes to the broker")
        with self._progress("sealing"):
            sealed = self.stage.seal(trained.archive)
        self.console.print(
            f"   {sealed['sealed']} files sealed, {sealed['clear']} readable; archive {sealed['digest'][:16]}…"
        )
        self._say(f"its key is at the broker as {sealed['resource']}")
        self.facts["sealed"] = sealed

    def launch(self) -> None:
        """Admission, keeper, stock TorchServe."""
        self._step("strongroom launch -- torchserve …: stock TorchServe 0.12.0, two workers, its usual flags")
        with self._progress("admission, attestation, opening in memory, starting TorchServe"):
            self.stage.start_server()
            self.stage.wait_until_ready()
        said = [line for line in self.stage.log().splitlines() if line.startswith("strongroom")]
        for line in dict.fromkeys(said):
            self._say(f"[dim]{line}[/]")
        self.facts["server"] = {"url": f"{self.stage.url}/predictions/digits", "workers": 2}

    def verify(self) -> SealedAdapter:
        """The client looks before it speaks."""
        self._step("The client verifies the server before it sends anything")
        adapter = SealedAdapter(policy=self.stage.client_policy())
        server = adapter.verify_server(f"{self.stage.url}/predictions/digits")
        table = Table(box=None, padding=(0, 2), show_edge=False)
        for heading, width in (("   check", 26), ("expected", 20), ("found", 20), ("", 3)):
            table.add_column(heading, overflow="ellipsis", no_wrap=True, width=width)
        for check in server.checks:
            table.add_row(f"   {check.name}", check.expected, check.found, "[green]ok[/]" if check.ok else "[red]no[/]")
        self.console.print(table)
        self.facts["checks"] = [check.serialise() for check in server.checks]
        return adapter

    def ask(self, adapter: SealedAdapter, trained: Trained) -> None:
        """Ten scans, encrypted, with plain `requests`."""
        self._step(f"{SCANS} scans that the model never saw, encrypted, by requests, to /predictions/digits")
        session = requests.Session()
        session.mount(self.stage.url, adapter)
        scans, said = trained.held_back[:SCANS], []
        for scan in scans:
            answer = session.post(f"{self.stage.url}/predictions/digits", data=scan.pixels, timeout=60)
            answer.raise_for_status()
            said.append(answer.json())
        self._pictures(scans, [each["digit"] for each in said])
        right = sum(each["digit"] == scan.label for each, scan in zip(said, scans, strict=True))
        self._say(f"{right} of {SCANS} read as the person meant them")
        self.facts["answers"] = {"sent": SCANS, "right": right, "said": said}

    def _pictures(self, scans: tuple[Scan, ...], said: list[int]) -> None:
        for start in range(0, len(scans), COLUMNS):
            pictures = [scan.picture() for scan in scans[start : start + COLUMNS]]
            for lines in zip(*pictures, strict=True):
                self.console.print("   " + "   ".join(lines), highlight=False, markup=False)
            labels = (f"→ {digit}".ljust(16) for digit in said[start : start + COLUMNS])
            self.console.print("   " + "   ".join(labels), style="bold green", highlight=False)

    def show_the_wire(self, trained: Trained) -> None:
        """What the host saw, and what it could find."""
        self._step("What the host saw")
        relay = self.stage.relay
        assert relay is not None
        for name, octets in (("request", relay.requests), ("response", relay.responses)):
            head = http_body(bytes(octets))[:32]
            self._say(f"last {name} on the wire: {head[:16].hex(' ')} …")
        secrets = self._secrets(trained)
        found, files, octets_searched = hits(self.stage.host_places(), secrets)
        found += found_in(relay.seen, secrets, "the wire")
        planted = self._plant(secrets)
        self._say(
            f"searched {files} files ({octets_searched:,} bytes: model store, TorchServe's folders, logs, temp, shared "
            f"memory) and {len(relay.seen):,} bytes of traffic for {sum(map(len, secrets.values()))} pieces of the "
            "model and the scans:"
        )
        self._say(f"[bold]{len(found)} hits[/]   (a piece that was planted to test the search: {planted} hit)")
        self.facts["leaks"] = {"hits": len(found), "files": files, "bytes": octets_searched, "planted": planted}
        if found or planted != 1:
            raise StrongroomError(f"plaintext was found, or the search is blind: {found[:3]}")

    @staticmethod
    def _secrets(trained: Trained) -> dict[str, list[bytes]]:
        import zipfile

        with zipfile.ZipFile(trained.archive) as mar:
            weights, handler = mar.read("digits.pt"), mar.read("digits.py")
        scans = [scan.pixels for scan in trained.held_back[:SCANS]]
        return {
            "the weights": needles(weights, count=200),
            "the handler": needles(handler, count=40),
            "the scans": [piece for pixels in scans for piece in needles(pixels, count=4)] + scans,
        }

    def _plant(self, secrets: dict[str, list[bytes]]) -> int:
        place = self.stage.host / "planted"
        place.write_bytes(b"x" * 1000 + secrets["the weights"][0] + b"y" * 1000)
        try:
            return len(hits([place], secrets)[0])
        finally:
            place.unlink()

    def be_refused(self, trained: Trained) -> None:
        """Four attacks, live."""
        self._step("Refusals")
        told: list[Refusal] = []
        with tempfile.TemporaryDirectory(prefix="strongroom-attack-") as folder:
            for attempt in REFUSALS:
                refusal = attempt(self.stage, Path(folder), trained)
                told.append(refusal)
                self._say(f"[bold]{refusal.what}[/]")
                self._say(f"[red]refused:[/] {refusal.said}", 5)
                self._say(f"[green]next:[/] {refusal.hint}", 5)
        self.facts["refusals"] = [{"what": each.what, "said": each.said, "hint": each.hint} for each in told]

    def invite(self) -> None:
        """``--keep``: what to paste elsewhere."""
        url, policy = f"{self.stage.url}/predictions/digits", self.stage.owner / "client.toml"
        python = (
            "import requests\n"
            "from strongroom.client.adapter import SealedAdapter\n"
            "session = requests.Session()\n"
            f'session.mount("http://", SealedAdapter(policy="{policy}"))\n'
            f'print(session.post("{url}", json=[0] * 64).json())\n'
        )
        body = json.dumps([0] * 64)
        command = f"strongroom request {url} --policy {policy} -H 'Content-Type: application/json' -d '{body}'"
        self.facts["keep"] = {"python": python, "command": command}
        self.console.print("\n[bold]It keeps running. In another terminal:[/]\n")
        self.console.print(command + "\n", highlight=False, soft_wrap=True)
        self.console.print(python, highlight=False, soft_wrap=True)
        self.console.print("[bold]Ctrl-C stops everything and removes what was written.[/]")


def run(*, keep: bool, as_json: bool) -> None:
    """The demo, from beginning to clean end."""
    console = Console(stderr=as_json, quiet=as_json)
    story = Story(console)
    try:
        story.tell(keep=keep)
        if as_json:
            print(json.dumps(story.facts), flush=True)
        if keep:
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
    finally:
        story.close()
    if not as_json:
        console.print(
            f"\n[bold green]done[/] in {story.facts['seconds']} s; everything was stopped and nothing was left behind"
        )
    sys.stdout.flush()
