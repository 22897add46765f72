"""A handler that says everything it knows, in every way it can, and looks around in its process.

The body of a request names what it does. It answers with what it found, so a test need not believe logs.
"""

import ctypes
import faulthandler
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

from ts.handler_utils.utils import send_intermediate_predict_response

MODEL_CANARY = "canary-of-the-model-3f1c8a52d09b"

print(f"at import {MODEL_CANARY}")
logging.getLogger("handler").error("at import %s", MODEL_CANARY)


class Spill(Exception):
    pass


def say(text):
    print(text, flush=True)
    print(text, file=sys.stderr, flush=True)
    sys.__stdout__.write(text)
    sys.__stderr__.flush()
    logging.basicConfig(force=True, level=logging.DEBUG)
    logging.getLogger().warning("root says %s", text)
    logging.getLogger("handler.deep").critical("%s", text)
    logging.getLogger("ts.service").error("framework says %s", text)
    logging.info("[METRICS]%s.Count:1|#Level:Model|#type:COUNTER|#hostname:h,1", text)
    warnings.warn(text, stacklevel=1)
    os.write(1, f"{text} by descriptor\n".encode())
    os.write(2, f"{text} by descriptor\n".encode())
    libc = ctypes.CDLL(None)
    libc.puts(f"{text} by libc".encode())
    libc.fflush(None)
    subprocess.run(["/bin/sh", "-c", f"echo {text} by a child; echo {text} by a child >&2"], check=False)
    faulthandler.dump_traceback(all_threads=True)
    threading.Thread(target=fail, args=(text,)).start()
    Path(tempfile.gettempdir(), "left-behind").write_text(text)


def fail(text):
    raise Spill(text)


def attempt(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"


def parent(pid):
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def look():
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    launcher = parent(os.getppid())
    keeper = next(
        each.name
        for each in Path("/proc").iterdir()
        if each.name.isdigit()
        and parent(each.name) == launcher
        and b"\x00keeper\x00" in (each / "cmdline").read_bytes()
    )
    return {
        "seccomp": status["Seccomp"],
        "no_new_privs": status["NoNewPrivs"],
        "capabilities": int(status["CapEff"], 16),
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "core": Path("/proc/self/limits").read_text().split("Max core file size")[1].split()[:2],
        "tcp": attempt(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
        "udp": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "unix": attempt(lambda: socket.socketpair()),
        "child tcp": subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], check=False).returncode,
        "keeper memory": attempt(lambda: open(f"/proc/{keeper}/mem", "rb")),
        "keeper files": attempt(lambda: os.readlink(f"/proc/{keeper}/fd/3")),
        "keeper environment": attempt(lambda: open(f"/proc/{keeper}/environ", "rb").read()),
        "ptrace": ctypes.CDLL(None).ptrace(16, int(keeper), 0, 0),
        "temp": tempfile.gettempdir(),
        "environment": sorted(os.environ),
    }


def handle(data, context):
    if data is None:
        say(f"at load {MODEL_CANARY}")
        return None
    answers = []
    for index, row in enumerate(data):
        body = row["body"] if isinstance(row["body"], dict) else json.loads(bytes(row["body"]))
        if "say" in body:
            say(body["say"])
            context.metrics.add_counter(body["say"], 1)
            context.metrics.add_time("HandlerTime", 1.25)
        if "raise" in body:
            fail(body["raise"])
        if "take" in body:
            held = bytearray(body["take"] << 20)
            del held
        if "fill" in body:
            held = bytearray(b"x") * (body["fill"] << 20)
            del held
        if "exit" in body:
            sys.exit(body["exit"])
        if "stream" in body:
            ids = {index: context.request_ids[index]}
            send_intermediate_predict_response(
                {index: body["stream"]}, ids, "Intermediate Prediction success", 200, context
            )
        if "answer" in body:
            answers.append({"answered": hashlib.sha256(body["answer"].encode()).hexdigest()})
            continue
        answers.append({"looked": look()} if "look" in body else {"said": True})
    return answers
