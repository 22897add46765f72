"""A handler that tries doors: what it can write, reach, signal and start. It answers with what came of each."""

import asyncio
import functools
import multiprocessing
import os
import signal
import socket
import tempfile
from multiprocessing import shared_memory
from pathlib import Path

MODEL_CANARY = "canary-of-the-nosy-model-5d21f0c3"


def attempt(what):
    try:
        found = what()
    except Exception as error:
        return f"{type(error).__name__}"
    return "done" if found is None else found


def parent(pid):
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def launcher():
    return parent(os.getppid())


def keeper():
    for each in Path("/proc").iterdir():
        if not each.name.isdigit() or parent(each.name) != launcher():
            continue
        if b"\x00keeper\x00" in (each / "cmdline").read_bytes():
            return int(each.name)
    raise LookupError("no keeper")


def ours():
    """The launcher's private folder: the keeper's socket stands in it."""
    return Path(os.environ["STRONGROOM_KEEPER"]).parent


def reach(canary, host):
    folder, boss, held = ours(), launcher(), keeper()
    return {
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "store": attempt(lambda: (folder / "store" / "x.mar").write_text("x")),
        "config": attempt(lambda: (folder / "config" / "config.properties").open("a").close()),
        "a class for the server": attempt(lambda: (folder / "home" / "evil.class").write_text("x")),
        "another socket in place of the keeper's": attempt(lambda: os.unlink(folder / "keeper.sock")),
        "init-data": attempt(lambda: os.listdir(folder / "init-data")),
        "memory of the launcher": attempt(lambda: open(f"/proc/{boss}/mem", "r+b").close()),
        "environment of the launcher": attempt(lambda: open(f"/proc/{boss}/environ", "rb").read(1)),
        "memory of the keeper": attempt(lambda: open(f"/proc/{held}/mem", "r+b").close()),
        "files of the keeper": attempt(lambda: os.listdir(f"/proc/{held}/fd")),
        "signal to the keeper": attempt(lambda: os.kill(held, 0)),
        "signal to the launcher": attempt(lambda: os.kill(boss, 0)),
        "signal to the server": attempt(lambda: os.kill(os.getppid(), 0)),
        "/tmp": attempt(lambda: Path("/tmp/nosy").write_text(canary)),
        "the host's folder": attempt(lambda: Path(host, "nosy").write_text(canary)),
        "its logs": attempt(lambda: Path(host, "logs", "nosy.log").write_text(canary)),
        "a disk": attempt(lambda: open(next(Path("/dev").glob("[vs]da")), "r+b").close()),
        "the kernel's settings": attempt(lambda: open("/proc/sys/kernel/core_pattern", "w").close()),
    }


def write(canary):
    """Leave plaintext in every place that a library would think of."""
    wrote = {}
    places = {name: os.environ[name] for name in os.environ if name.endswith(("_DIR", "_HOME", "_PATH", "_FOLDER"))}
    places |= {"HOME": os.environ["HOME"], "temp": tempfile.gettempdir(), "cwd": os.getcwd()}
    places |= {"MPLCONFIGDIR": os.environ["MPLCONFIGDIR"], "cache": str(Path.home() / ".cache" / "deep")}
    for name, place in places.items():
        if name in ("JAVA_HOME", "LD_LIBRARY_PATH"):
            continue
        Path(place).mkdir(parents=True, exist_ok=True)
        Path(place, f"left-{name}").write_text(canary)
        wrote[name] = os.path.realpath(place)
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(canary)
    segment = shared_memory.SharedMemory(name=f"nosy_{os.getpid()}", create=True, size=4096)
    segment.buf[: len(canary)] = canary.encode()
    segment.close()  # and not unlinked
    wrote["named temporary file"] = os.path.realpath(file.name)
    return wrote


PLANTED = """
import pathlib, socket
pathlib.Path("/dev/shm", {name!r}).write_text("it ran")
"""


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def plant():
    """Leave code wherever the server or the next worker might look, and end this worker: whoever runs it is not us."""
    here, folder = Path.cwd(), ours()
    names = ("sitecustomize", "usercustomize", "ts", "strongroom", "strongroom_handlers", "json")
    for place in (here, *here.parent.iterdir(), Path(tempfile.gettempdir()), Path.home(), folder, *folder.glob("*/")):
        for name in names:
            code = PLANTED.format(name=f"nosy_ran_{name}").encode()
            attempt(functools.partial(put, place / f"{name}.py", code))
        attempt(functools.partial(put, place / "org/pytorch/serve/ModelServer.class", b"no class at all"))
        attempt(functools.partial(put, place / "log4j2.xml", b"no settings at all"))
    os._exit(1)


class Numbers:
    def __len__(self):
        return 32

    def __getitem__(self, index):
        import torch

        return torch.full((4,), float(index))


def double(number):
    return 2 * number


def work():
    """What handlers ordinarily need of processes and loopback."""
    import torch
    from torch.utils.data import DataLoader

    async def echo():
        left, right = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=left)
        reader, _ = await asyncio.open_connection(sock=right)
        writer.write(b"over a unix socket\n")
        return (await reader.readline()).decode().strip()

    def manager():
        with multiprocessing.get_context("fork").Manager() as shared:
            numbers = shared.list([1])
            numbers.append(2)
            return list(numbers)

    def pool(kind):
        with multiprocessing.get_context(kind).Pool(2) as workers:
            return workers.map(double, [1, 2])

    return {
        "DataLoader": attempt(lambda: sum(float(each.sum()) for each in DataLoader(Numbers(), 8, num_workers=2))),
        "fork pool": attempt(lambda: pool("fork")),
        "manager": attempt(manager),
        "asyncio": attempt(lambda: asyncio.run(echo())),
        "threads": attempt(lambda: torch.ones(400, 400).mm(torch.ones(400, 400)).sum().item()),
        "loopback": attempt(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
        "names": attempt(lambda: socket.getaddrinfo("localhost.invalid", 80)),
        "own child": attempt(lambda: os.kill(os.fork() or os._exit(signal.pause() or 0), signal.SIGKILL)),
    }


def compiled(canary):
    """torch.compile with its C++ backend: a compiler, generated sources, caches."""
    import torch

    @torch.compile
    def twice(x):
        return torch.sin(x) * 2 + len(canary)

    return {
        "value": float(twice(torch.zeros(8))[0]),
        "cache": sorted({each.suffix for each in Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.*")}),
    }


def profiled(canary):
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU]) as trace, record_function(canary):
        torch.ones(64, 64).mm(torch.ones(64, 64))
    path = Path(tempfile.gettempdir(), "trace.json")
    trace.export_chrome_trace(str(path))
    return {"trace holds the canary": canary in path.read_text(), "place": os.path.realpath(path)}


def handle(data, context):
    import json

    if data is None:
        Path(tempfile.gettempdir(), "at-load").write_text(MODEL_CANARY)
        return None
    answers = []
    for row in data:
        body = row["body"] if isinstance(row["body"], dict) else json.loads(bytes(row["body"]))
        found = {}
        if "plant" in body:
            plant()
        if "reach" in body:
            found["reach"] = reach(body["canary"], body["host"])
        if "write" in body:
            found["write"] = write(body["canary"])
        if "work" in body:
            found["work"] = work()
        if "compile" in body:
            found["compile"] = compiled(body["canary"])
        if "profile" in body:
            found["profile"] = profiled(body["canary"])
        answers.append(found)
    return answers
