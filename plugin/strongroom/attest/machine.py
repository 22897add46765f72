"""What this machine is: which TEE it could attest as, and how well its kernel keeps memory to itself.

Everything here only looks. `strongroom doctor` prints it; the keeper decides nothing by it.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.hookspecs import AttesterOffer
from strongroom.launch.hardening import swaps
from strongroom.launch.probe import HINTS, look
from strongroom.plugins import Plugins

DEVICE_TEES = frozenset({"nvidia"})
"""TEEs that stand beside a CPU's and never for it."""
NEVER_CHOSEN = frozenset({"simulated"})


@dataclass(frozen=True, slots=True)
class TeeFinding:
    """One kind of TEE: what is missing to attest as it (empty when nothing), and whether we can verify it."""

    tee: str
    missing: str
    verifier: str
    """Empty where its verifier loads, else why not."""

    def serialise(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"tee": self.tee, "missing": self.missing, "verifier": self.verifier or "ok"}


@dataclass(frozen=True, slots=True)
class Hardening:
    """One property of the process or the kernel that keeps memory private."""

    what: str
    ok: bool
    found: str
    hint: str

    def serialise(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"what": self.what, "ok": self.ok, "found": self.found, "hint": "" if self.ok else self.hint}


def tees(plugins: Plugins) -> list[TeeFinding]:
    """Every TEE that an attester or a verifier is known for, attesters' order first."""
    offers, verifiers = plugins.attesters(), plugins.verifiers()
    names = [*offers, *(tee for tee in verifiers if tee not in offers)]
    return [
        TeeFinding(name, _missing(offers.get(name)), _verifier_trouble(plugins, name))
        for name in dict.fromkeys(names)
        if name not in NEVER_CHOSEN
    ]


def _missing(offer: AttesterOffer | None) -> str:
    if offer is None:
        return "strongroom has no attester for it, only the verifier"
    try:
        return offer.missing()
    except Exception as error:  # a plugin's look at hardware may fail in any way; doctor goes on
        return f"looking for it failed with {type(error).__name__}: {error}"


def _verifier_trouble(plugins: Plugins, tee: str) -> str:
    try:
        return "" if plugins.verifiers()[tee].tee == tee else "is another TEE's"
    except KeyError:
        return "none is known"
    except Exception as error:
        return str(error)


def chosen(findings: Iterable[TeeFinding]) -> str | None:
    """The CPU TEE that a keeper would use here: the first that lacks nothing. None where there is none."""
    return next((each.tee for each in findings if not each.missing and each.tee not in DEVICE_TEES), None)


def processes() -> list[Hardening]:
    """What a keeper and a worker can do for themselves here, tried out in two processes (`launch.probe`)."""
    return [Hardening(each.what, each.ok, each.found, HINTS.get(each.what, "")) for each in look()]


def summary(findings: Iterable[TeeFinding]) -> str:
    """What this machine can prove, in one line."""
    found = list(findings)
    tee = chosen(found)
    if tee is None:
        return "no TEE can be used here: only the simulated TEE works, which protects nothing and has to be named"
    said = f"this machine attests as {tee}"
    if tee == "tpm":
        said += ": it can show what was booted, and does not keep its memory from whoever runs it"
    devices = [each.tee for each in found if each.tee in DEVICE_TEES and not each.missing]
    return said + (f"; beside it devices = {devices!r} can attest" if devices else "")


def hardening(root: Path = Path("/")) -> list[Hardening]:
    """What protects the memory of processes here; `root` is where proc and sys are looked for."""
    in_use = swaps(root / "proc/swaps")
    scope = _word(root / "proc/sys/kernel/yama/ptrace_scope")
    pattern = _word(root / "proc/sys/kernel/core_pattern")
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    lockdown = _word(root / "sys/kernel/security/lockdown")
    return [
        Hardening(
            "swap", not in_use, "off" if not in_use else ", ".join(in_use),
            "opened models could be written to it, so launch refuses: swapoff -a; zram is accepted",
        ),
        Hardening(
            "ptrace", scope in ("1", "2", "3"), f"yama scope {scope or 'absent'}",
            "processes that are not hardened can be read by others of their user: sysctl kernel.yama.ptrace_scope=2",
        ),
        Hardening(
            "core dumps", soft == 0 or pattern in ("", "|/bin/false"),
            "off" if soft == 0 else f"allowed here, to {pattern or 'nowhere'}",
            "a crash could write memory to disk (the keeper forbids its own): ulimit -c 0",
        ),
        Hardening(
            "locked memory", locked == resource.RLIM_INFINITY or os.geteuid() == 0,
            "unlimited" if locked == resource.RLIM_INFINITY else f"{locked >> 20} MiB"
            + (", and root is not held to it" if os.geteuid() == 0 else ""),
            "keys may be swapped where swap is on: LimitMEMLOCK=infinity for the service",
        ),
        Hardening(
            "kernel lockdown", "[none]" not in lockdown and bool(lockdown), lockdown or "absent",
            "root can read kernel memory: boot with lockdown=confidentiality",
        ),
        Hardening(
            "java", shutil.which("java") is not None, shutil.which("java") or "not on PATH",
            "TorchServe needs Java 11 or newer: pip install 'strongroom[torchserve]' brings one",
        ),
    ]  # fmt: skip


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _word(path: Path) -> str:
    return " ".join(_lines(path)).strip()
