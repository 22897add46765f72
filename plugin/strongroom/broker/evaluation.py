"""The policy interpreter as a program of its own: one question a frame, one answer a frame, on a socket.

`engine` starts it and asks; nothing else imports regopy. The interpreter is C++ behind a foreign function interface:
some policies end it with a signal, some never end, some take all memory there is, and it aborts beside torch. Here
none of that ends a broker. A question holds a policy, a query, the claims of a token and the request's data, and no
secret.

A frame is a u32 big-endian length and that many bytes of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import time
from functools import lru_cache
from typing import Any

FRAME_LIMIT = 64 << 20
MEMORY_LIMIT = 1 << 30
"""Bytes that the interpreter may hold before it ends itself. Its allocator reserves far more than it uses, so a limit
of the kernel on addresses would not do."""


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """``{"ok": …, "value": …}``: of the one expression of `query`, or of its `binding`; None where it is undefined."""
    from regopy.rego_shared import RegoError

    try:
        compiled = _compiled(question["policy"], question["query"], question["data"])
        interpreter = _interpreter()
        interpreter.set_input(question["claims"])
        output = interpreter.query_bundle(compiled)
        if not output.ok():
            return {"ok": False, "value": "an error that the interpreter does not name"}
        if len(output) != 1:
            return {"ok": True, "value": None}
        if question["binding"]:
            return {"ok": True, "value": output.results[0].bindings.get(question["binding"])}
        expressions = output.results[0].expressions
        return {"ok": True, "value": expressions[0] if len(expressions) == 1 else None}
    except (RegoError, ValueError, TypeError, KeyError, IndexError, RecursionError, MemoryError) as error:
        return {"ok": False, "value": f"{type(error).__name__}: {error}"[:20_000]}


def _interpreter() -> Any:
    from regopy import Interpreter
    from regopy.rego_shared import LogLevel

    interpreter = Interpreter()
    interpreter.log_level = LogLevel.NONE
    # Without this a builtin that fails is merely undefined, and `not` turns that into true.
    interpreter.strict_built_in_errors = True
    return interpreter


@lru_cache(maxsize=256)
def _compiled(text: str, query: str, data: str) -> Any:
    """A policy compiled together with a request's data: keepers of one archive ask the same again and again.

    Compiling takes some milliseconds, and what was compiled some 120 KiB.
    """
    interpreter = _interpreter()
    interpreter.add_module("policy", text)
    interpreter.add_data_json(data)
    bundle = interpreter.build(query)
    if not bundle.ok():
        raise ValueError("an error that the interpreter does not name")
    return bundle


def receive(link: socket.socket) -> bytes | None:
    """One frame; None where the other side is gone."""
    head = _exactly(link, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "big")
    return None if size > FRAME_LIMIT else _exactly(link, size)


def _exactly(link: socket.socket, size: int) -> bytes | None:
    octets = bytearray()
    while len(octets) < size:
        part = link.recv(min(size - len(octets), 1 << 20))
        if not part:
            return None
        octets += part
    return bytes(octets)


def send(link: socket.socket, octets: bytes) -> None:
    """One frame."""
    link.sendall(len(octets).to_bytes(4, "big") + octets)


def _watch(broker: int) -> None:
    """End this process when it holds too much, or when its broker is gone, also in the middle of an evaluation.

    The interpreter computes without Python's lock, so this goes on beside it.
    """
    page = resource.getpagesize()
    while True:
        time.sleep(0.1)
        with open("/proc/self/statm", "rb") as file:
            if int(file.read().split()[1]) * page > MEMORY_LIMIT:
                os._exit(3)
        if os.getppid() != broker:
            os._exit(4)


def main() -> None:
    """Answer on the socket whose descriptor is the first argument, until the process that is the second is gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out all the same, the kernel takes this process and not its broker
    threading.Thread(target=_watch, args=(int(sys.argv[2]),), daemon=True).start()
    with socket.socket(fileno=int(sys.argv[1])) as link:
        while (octets := receive(link)) is not None:
            send(link, json.dumps(answer(json.loads(octets)), default=str).encode())


if __name__ == "__main__":
    main()
