"""A handler that follows the path of its weights to the end, and has other programs read them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

folder = ""


def handle(data, context):
    global folder
    if data is None:
        folder = context.system_properties["model_dir"]
        return None
    weights = os.path.join(folder, "weights.pt")
    state = torch.load(weights)
    read = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
    found = {
        "real": os.path.realpath(weights) == weights,
        "own": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "child": subprocess.run([sys.executable, "-c", read, weights], capture_output=True, text=True).stdout.strip(),
        "last": float(state["weight"][-1]),
        "mapped": weights in Path("/proc/self/maps").read_text(),
        "changed": attempt(lambda: os.chmod(weights, 0o644)),
        "listed": attempt(lambda: os.listdir(os.path.dirname(folder))),
    }
    return [json.dumps(found)] * len(data)


def attempt(what):
    try:
        return repr(what())
    except OSError as error:
        return error.strerror
