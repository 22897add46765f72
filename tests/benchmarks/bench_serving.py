"""What sealing costs a served model: the same model plain and sealed, on one machine, in one run.

    python tests/benchmarks/bench_serving.py

prints medians, ratios and the copies of a 5 MB body. Plain and sealed take turns, so that whatever else the
machine does falls on both. Run it from an installed package: a sealed server of the simulated TEE measures
the installation, and refuses one that changes under it.
"""

from __future__ import annotations

import concurrent.futures
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import psutil
import requests

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doubles.direct_link import DirectLink, request_keys
from doubles.houses import House, standing
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Limits, Request, Response
from strongroom.worker.service import Outer, SealedService

KIB = 1024
MODELS = {"quick": "returning_handler.py", "slow": "waiting_handler.py"}
WORKERS = 2


def latency(house: House, size: int, rounds: int, at_once: int = 25) -> dict[str, tuple[float, float]]:
    """(plain, sealed) milliseconds of one request of `size` bytes that is answered with as many.

    The median, and the 20th part from below, which neighbours on the machine disturb less.
    """
    body = bytes(size)
    plain = requests.Session()
    taken: dict[str, list[float]] = {"plain": [], "sealed": []}
    ways: dict[str, tuple[requests.Session, str]] = {
        "plain": (plain, house.plain.url),
        "sealed": (house.session, f"http://127.0.0.1:{house.stage.inference}"),
    }
    for turn in range(rounds // at_once + 1):
        for name, (session, url) in ways.items():
            for _ in range(at_once):
                before = time.perf_counter()
                answer = session.post(f"{url}/predictions/quick", data=body)
                after = time.perf_counter()
                assert answer.content == body
                if turn:  # the first turn warms up
                    taken[name].append(after - before)
    cuts = [statistics.quantiles(taken[name], n=20) for name in ways]
    return {name: (cuts[0][at] * 1e3, cuts[1][at] * 1e3) for name, at in (("median", 9), ("least", 0))}


def processor(house: House, size: int, rounds: int) -> dict[str, tuple[float, float]]:
    """(plain, sealed) milliseconds of processor time a request, by who spends it; waiting does not count."""
    body = bytes(size)
    spent: dict[str, list[float]] = {"client": [], "frontend and workers": [], "keeper": []}
    plain = requests.Session()
    for session, url, root in (
        (plain, house.plain.url, house.plain.process.pid),
        (house.session, f"http://127.0.0.1:{house.stage.inference}", house.stage.launcher.pid),
    ):
        for _ in range(20):
            session.post(f"{url}/predictions/quick", data=body)
        before, own = _spent(root), time.process_time()
        for _ in range(rounds):
            session.post(f"{url}/predictions/quick", data=body)
        own, after = time.process_time() - own, _spent(root)
        spent["client"].append(own / rounds * 1e3)
        for name, at in (("frontend and workers", 0), ("keeper", 1)):
            spent[name].append((after[at] - before[at]) / rounds * 1e3)
    return {name: (values[0], values[1]) for name, values in spent.items()}


def _spent(root: int) -> tuple[float, float]:
    """Seconds of processor time of the processes below `root`: (all but the keeper, the keeper)."""
    others = keeper = 0.0
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        times = process.cpu_times()
        if "keeper" in process.cmdline():
            keeper += times.user + times.system
        else:
            others += times.user + times.system
    return others, keeper


def throughput(house: House, connections: int, seconds: float) -> tuple[float, float]:
    """(plain, sealed): requests of 1 KiB a second to the 5 ms handler, over so many connections."""

    def hammer(make: Callable[[], requests.Session], url: str) -> float:
        until = time.monotonic() + seconds

        def one() -> int:
            session, done = make(), 0
            while time.monotonic() < until:
                assert session.post(f"{url}/predictions/slow", data=bytes(KIB)).status_code == 200
                done += 1
            return done

        with concurrent.futures.ThreadPoolExecutor(connections) as pool:
            return sum(pool.map(lambda _: one(), range(connections))) / seconds

    plain = sealed = 0.0
    for _ in range(2):
        plain += hammer(requests.Session, house.plain.url) / 2
        sealed += hammer(lambda: house.session, f"http://127.0.0.1:{house.stage.inference}") / 2
    return plain, sealed


def copies(size: int) -> tuple[float, float]:
    """(request, response): the most extra copies of a body of `size` bytes that a worker holds at once.

    The request's are counted until the handler has its row, beside the encapsulated body; the response's from
    the handler's answer on, beside that answer.
    """
    from strongroom.adapters.torchserve.routes import Route
    from strongroom.adapters.torchserve.rows import row_of

    keys = request_keys()
    service = SealedService(DirectLink(keys), limit=2 * size, limits=Limits())  # type: ignore[arg-type]
    config, pair = keys.source.present().keys.choose()
    inner = Request("POST", "http", "h", "/predictions/m", (("content-type", "x/y"),), bytes(size)).serialise()
    message, opener = ohttp.encapsulate(config, pair, inner)
    peaks: list[float] = []
    answer = bytes(size)

    def handler(requests: list[Request], indices: list[int], stream: object) -> list[Response]:
        rows = [row_of(each.content, each.headers, Route("m", None)) for each in requests]
        assert len(rows[0][0]["body"]) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        del rows
        tracemalloc.reset_peak()
        peaks.append(tracemalloc.get_traced_memory()[0])
        return [Response(200, (), answer)]

    outer = Outer("message/ohttp-req", message)
    del inner
    tracemalloc.start()
    sealed = service.answer([outer], lambda: handler)[0]  # type: ignore[arg-type, return-value]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert Response.parse(opener.open(sealed.body)).content == answer
    return peaks[0] / size, (peak - peaks[1]) / size


def main() -> None:
    """Measure everything and print it."""
    request, response = copies(5_000_000)
    print(f"5 MB body: {request:.2f} extra copies of the request, {response:.2f} of the response (at most 2)")
    config = f"minWorkers: {WORKERS}\nmaxWorkers: {WORKERS}\nbatchSize: 1\n".encode()
    with (
        tempfile.TemporaryDirectory() as folder,
        standing(Path(folder), models=MODELS, config=config, workers=WORKERS, limit=6_553_500) as house,
    ):
        for size, rounds in ((KIB, 600), (100 * KIB, 300)):
            for name, (plain, sealed) in latency(house, size, rounds).items():
                print(
                    f"{size // KIB} KiB, {name}: plain {plain:.2f} ms, sealed {sealed:.2f} ms: "
                    f"{sealed - plain:+.2f} ms, {sealed / plain:.2f}x"
                )
            for name, (plain, sealed) in processor(house, size, rounds).items():
                print(f"{size // KIB} KiB, processor time, {name}: plain {plain:.2f} ms, sealed {sealed:.2f} ms")
        plain, sealed = throughput(house, 4, 5)
        print(f"5 ms handler, 4 connections: plain {plain:.0f}/s, sealed {sealed:.0f}/s: {sealed / plain:.2f}x")


if __name__ == "__main__":
    main()
