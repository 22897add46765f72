"""What a request costs the keeper over its real socket, and how many a second it answers.

    python tests/benchmarks/bench_keeper.py

A keeper as `strongroom keeper` starts it, with one model that a broker released, and two hardened worker
processes, each with a connection of its own. The workers encapsulate everything to X-Wing before the clock
starts; then each opens one request after the other and settles it, as a worker does, without decrypting.
First as fast as it goes, then at a pace. Processor time is the kernel's count for the keeper's process.

The exit status is 1 if a request costs more than the limit, or if no paced run keeps the pace and leaves the keeper
idle for half of the time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doubles.keepers import KeeperProcess
from doubles.models import plain_archive
from strongroom.archive.unseal import SealedArchive
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request
from strongroom.channel.bundle import KeyBundle
from strongroom.channel.kem import XWING
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import RequestHead
from strongroom.demo.stage import Stage
from strongroom.keys import ArchiveDigest
from strongroom.launch.hardening import harden_worker
from strongroom.worker.link import Link, Settled

LINKS = 2
ROUNDS = 4000
"""Requests of one link in one run."""

RUNS = 3
PACE = 1000
"""Requests a second of all links together: the aim."""

LIMIT_US = 150.0


def worker(archive: str, socket: str) -> None:
    """One link. For each line on stdin, ``[requests, requests a second or 0]``, one line of what came of it."""
    link = Link(ArchiveDigest(bytes.fromhex(archive)), Path(socket))
    link.settings()
    harden_worker(network=False, disk=False)
    config, pair = KeyList.parse(KeyBundle.parse(link.bundle(None)).parts.ohttp_keys).choose((XWING,))
    inner = Request("POST", "https", "h", "/predictions/toy", (), b"").serialise()
    for line in sys.stdin:
        rounds, pace = json.loads(line)
        heads = []
        for _ in range(rounds):
            head, enc, _ = RequestHead.parse(ohttp.encapsulate(config, pair, inner)[0])
            heads.append((head.serialise(), enc, False))
        print("ready", flush=True)
        sys.stdin.readline()
        started, date, late = time.perf_counter(), int(time.time()), 0.0
        for number, each in enumerate(heads):
            if pace:
                early = started + number / pace - time.perf_counter()
                if early > 0:
                    time.sleep(early)
                late = max(late, -early)
            (granted,) = link.open([each])
            assert isinstance(granted, tuple), granted
            link.settle([Settled(granted[0], True, date)])
        seconds = time.perf_counter() - started
        link.flush()
        print(json.dumps({"seconds": seconds, "late": late}), flush=True)


class Links:
    """The worker processes, which start their runs together."""

    def __init__(self, keeper: KeeperProcess, archive: str) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), archive, str(keeper.socket)]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(LINKS)
        ]
        self._keeper = psutil.Process(keeper.pid)

    def run(self, rounds: int, pace: float = 0) -> tuple[float, float, float]:
        """Requests a second of all links, the keeper's microseconds of processor time a request, most seconds late."""
        for each in self._processes:
            self._say(each, json.dumps([rounds, pace / LINKS]))
        for each in self._processes:
            assert self._hear(each) == "ready"
        before = sum(self._keeper.cpu_times()[:2])
        for each in self._processes:
            self._say(each, "go")
        told = [json.loads(self._hear(each)) for each in self._processes]
        spent = sum(self._keeper.cpu_times()[:2]) - before
        requests = rounds * LINKS
        return requests / max(each["seconds"] for each in told), spent / requests * 1e6, max(e["late"] for e in told)

    def close(self) -> None:
        for each in self._processes:
            each.kill()
            each.wait()

    @staticmethod
    def _say(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    @staticmethod
    def _hear(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "a worker ended"
        return line.strip()


def main() -> int:
    """Print the figures; 1 if the pace is not kept or leaves no room."""
    stage = Stage.make()
    keeper = None
    links = None
    try:
        stage.make_author()
        stage.start_broker()
        files = {"toy.py": b"def handle(data, context):\n    return data\n"}
        stage.seal(plain_archive(stage.owner / "toy.mar", files, name="toy"))
        keeper = KeeperProcess(stage, {"toy": "toy.mar"})
        keeper.start()
        keeper.until_open("toy")
        with SealedArchive.open(stage.host / "model_store" / "toy.mar") as archive:
            links = Links(keeper, str(archive.core.digest))
        links.run(200)
        fastest = [links.run(ROUNDS) for _ in range(RUNS)]
        paced = [links.run(ROUNDS // 2, PACE) for _ in range(RUNS)]
    finally:
        if links is not None:
            links.close()
        if keeper is not None:
            keeper.stop()
        stage.close()
    print(
        f"X-Wing, {LINKS} links, as fast as it goes: "
        f"{min(run[0] for run in fastest):.0f} to {max(run[0] for run in fastest):.0f} requests a second; "
        f"the keeper's processor time {min(run[1] for run in fastest):.0f} to {max(run[1] for run in fastest):.0f} us "
        f"a request (limit {LIMIT_US:.0f})"
    )
    busy = [run[0] * run[1] / 1e6 for run in paced]
    print(
        f"paced at {PACE} a second: {min(run[0] for run in paced):.0f} to {max(run[0] for run in paced):.0f} answered, "
        f"at most {max(run[2] for run in paced) * 1e3:.0f} ms late; "
        f"{min(run[1] for run in paced):.0f} to {max(run[1] for run in paced):.0f} us a request, "
        f"so the keeper is busy for {min(busy):.2f} to {max(busy):.2f} of one core and idle otherwise"
    )
    missed = min(run[1] for run in fastest) > LIMIT_US
    return int(missed or not any(run[0] >= 0.98 * PACE and share < 0.5 for run, share in zip(paced, busy, strict=True)))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker(*sys.argv[1:])
        sys.exit(0)
    sys.exit(main())
