"""A handler that tries what a measured image has to refuse, and answers with what came of it.

It runs where a user's handler runs: in a worker, with that worker's rights.
"""

import json
import os
import subprocess
from pathlib import Path


def attempt(action):
    try:
        return f"done: {action()}"
    except OSError as error:
        return type(error).__name__ if error.strerror is None else error.strerror


def write(path):
    with open(path, "w") as file:
        return file.write("written")


WRITTEN = (
    "/written",
    "/usr/lib/pid1.py",
    "/usr/local/lib/python3.11/dist-packages/strongroom/keys.py",
    "/srv/models/written",
    "/run/config/strongroom.toml",
    "/dev/vda",
    "/dev/vdb",
    "/dev/dm-0",
    "/dev/mem",
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
)
PROGRAMS = (
    "/bin/sh",
    "/bin/bash",
    "/bin/dash",
    "/bin/busybox",
    "/bin/login",
    "/usr/bin/dpkg",
    "/usr/bin/apt",
    "/usr/bin/perl",
    "/usr/sbin/sshd",
)
SETTINGS = (
    "kernel/yama/ptrace_scope",
    "kernel/core_pattern",
    "kernel/kexec_load_disabled",
    "kernel/modules_disabled",
    "user/max_user_namespaces",
)


def pry():
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return {
        "uid": os.getuid(),
        "root": [fields[1:4] for fields in mounts if fields[1] == "/"],
        "writes": {path: attempt(lambda path=path: write(path)) for path in WRITTEN},
        "remount": attempt(remount),
        "shells": [path for path in PROGRAMS if os.path.exists(path)],
        "shell": attempt(lambda: subprocess.run(["sh", "-c", "true"], check=False).returncode),
        "programs": sorted(os.listdir("/usr/bin")),
        "swap": Path("/proc/swaps").read_text().splitlines()[1:],
        "sysctl": {name: Path("/proc/sys", name).read_text().strip() for name in SETTINGS},
    }


def remount():
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/", None, 32, None) != 0:  # MS_REMOUNT without MS_RDONLY
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "the root is writable now"


def handle(data, context):
    return data and [json.dumps(pry())] * len(data)
