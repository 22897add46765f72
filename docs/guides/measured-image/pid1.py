"""The root's one program: starts `strongroom launch` as its own user, and powers off when that ends.

`init` has verified and mounted the root before, so what stands here is measured. It uses Python's standard
library alone, holds no secret, and opens no way in: the guest does what its configuration says or stops.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

CONFIG = Path("/run/config")
FLAGS = CONFIG / "torchserve.flags"
WORK = "/run/work"
USER = 1000
PYTHON = ("/usr/bin/python3", "-P", "-m", "strongroom.cli")
ENVIRONMENT = {"PATH": "/usr/bin", "HOME": WORK, "LANG": "C.UTF-8"}
PR_SET_NO_NEW_PRIVS = 38
RB_POWER_OFF = 0x4321FEDC


def say(line: str) -> None:
    """To the console, which belongs to the host."""
    print(f"strongroom image: {line}", flush=True)


def insist_that_the_root_is_read_only() -> None:
    """Raises `RuntimeError` unless the kernel refuses to write."""
    try:
        os.close(os.open("/written", os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        if error.errno == errno.EROFS:
            say("the root is verified, and writing to it is refused: " + os.strerror(errno.EROFS))
            return
        raise
    raise RuntimeError("the root can be written to")


def prepare() -> None:
    """What every child inherits: no new rights by any program, locked memory and files as many as it asks for."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    if ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise RuntimeError("no_new_privs cannot be set")


def run(*arguments: str) -> int:
    """One strongroom command as the image's user; its status, negative for a signal."""
    process = subprocess.Popen(
        [*PYTHON, *arguments],
        cwd=WORK,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        user=USER,
        group=USER,
        extra_groups=[],
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    return process.wait()


def serve() -> None:
    """Reference values to the console, then the server for as long as it runs."""
    insist_that_the_root_is_read_only()
    prepare()
    os.umask(0o077)
    with (CONFIG / "strongroom.toml").open("rb") as file:
        tee = tomllib.load(file)["attestation"]["tee"]
    # What this boot can be recognised by. The first boot on a machine that its owner trusts is where registers that
    # only the firmware knows come from; nothing here is believed by anybody else.
    say("reference values follow")
    run("measure", "--json", "--tee", tee, "--name", "measured-image")
    say("reference values end")
    flags = FLAGS.read_text("utf-8").split() if FLAGS.is_file() else ["--models", "ALL", "--disable-token-auth"]
    server = ["torchserve", "--start", "--ncs", "--model-store", "/srv/models"]
    server += ["--ts-config", str(CONFIG / "config.properties"), *flags]
    status = run("launch", "--config", str(CONFIG / "strongroom.toml"), "--", *server)
    say(f"strongroom launch ended with status {status}")


try:
    serve()
except BaseException as error:  # the first process must not end: the kernel would panic instead of saying why
    say(f"{type(error).__name__}: {error}")
finally:
    say("powering off")
    sys.stdout.flush()
    os.sync()
    ctypes.CDLL(None).reboot(RB_POWER_OFF)
