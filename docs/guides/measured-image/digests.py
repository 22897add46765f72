"""The digests of a configured image, and a policy that demands them.

    python3 digests.py OUT [--first-boot CONSOLE] [--ek-roots PEM] [--ovmf FILE --vcpus N] [--json]

Reads what `build` and `configure` wrote; asks no machine. What can be computed from those files is computed. What
only a firmware or a TPM knows is taken from the console of a first boot, where the guest prints it, and only if
that console agrees with what was computed. Needs strongroom installed, for the same arithmetic as its verbs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from strongroom.attest.launch_inputs import GUEST_FEATURES, SnpLaunch, stub_register
from strongroom.errors import ConfigurationInvalid, StrongroomError
from strongroom.evidence.policy import Policy
from strongroom.evidence.reference import ReferencePolicy
from strongroom.launch.config import Configuration
from strongroom.plugins import Plugins

NAME = "measured-image"


def digests_of(out: Path) -> dict[str, Any]:
    """Everything that follows from the files alone, in hex."""
    command_line = (out / "cmdline").read_text("utf-8").strip()
    parts = dict(word.partition("=")[::2] for word in command_line.split())
    kernel, initrd = (out / "vmlinuz").read_bytes(), (out / "initrd").read_bytes()
    # What QEMU hashes for the firmware's table in a direct SNP boot; the command line with the zero at its end.
    hashed = {"kernel": kernel, "initrd": initrd, "cmdline": command_line.encode() + b"\0"}
    return {
        "root_hash": parts["roothash"],
        "root_blocks": int(parts["rootblocks"]),
        "command_line": command_line,
        "sha256": {name: hashlib.sha256(octets).hexdigest() for name, octets in hashed.items()},
        "sha384": {name: hashlib.sha384(octets).hexdigest() for name, octets in hashed.items()},
        "tpm_pcr9_sha256": stub_register(command_line, hashlib.sha256(initrd).digest()).hex(),
        "tdx_rtmr2": stub_register(command_line, hashlib.sha384(initrd).digest(), "sha384").hex(),
        "configuration": hashlib.sha256((out / "config" / "strongroom.toml").read_bytes()).hexdigest(),
    }


def first_boot(console: Path) -> ReferencePolicy:
    """What `strongroom measure --json` printed in the guest; raises `ConfigurationInvalid`."""
    for line in console.read_bytes().decode("utf-8", "replace").splitlines():
        if line.startswith('{"name": "measured-image"'):
            read = json.loads(line)
            return ReferencePolicy(NAME, read["tee"], read["values"])
    raise ConfigurationInvalid(f"{console} holds no reference values", hint="boot, and keep what the console says")


def policy_of(
    tee: str,
    digests: dict[str, Any],
    measured: ReferencePolicy | None,
    *,
    measurement: str | None,
    ek_roots: str | None,
) -> ReferencePolicy | None:
    """The policy, or None where only a first boot can tell; raises `ConfigurationInvalid` where the two disagree."""
    if measured is not None and measured.tee != tee:
        raise ConfigurationInvalid(f"the console is of a {measured.tee}, the configuration says {tee}")
    values: dict[str, Any] = {} if measured is None else dict(measured.values)
    if tee == "tpm":
        registers = dict(values.get("pcrs", {}))
        _agree("PCR 9", registers.get("9", [digests["tpm_pcr9_sha256"]]), digests["tpm_pcr9_sha256"])
        values["pcrs"] = registers | {"9": [digests["tpm_pcr9_sha256"]]}
        values["launch"] = {"configuration": [digests["configuration"]]}
        if ek_roots is not None:
            values["ek_roots"] = ek_roots
    if tee == "snp" and measurement is not None:
        _agree("the measurement", values.get("measurements", [measurement]), measurement)
        values["measurements"] = [measurement]
    return ReferencePolicy(NAME, tee, values) if values else None


def _agree(what: str, found: list[str], computed: str) -> None:
    if found != [computed]:
        raise ConfigurationInvalid(
            f"{what} of the first boot is {found[0]}, and computed from the files it is {computed}",
            hint="another image, configuration or firmware was booted; believe none of its values",
        )


def main() -> None:
    """Digests as comments and the policy below them, or all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of build and configure")
    parser.add_argument("--first-boot", type=Path, metavar="CONSOLE", help="what the console of a first boot said")
    parser.add_argument(
        "--ek-roots",
        type=Path,
        metavar="PEM",
        help="certificates of the TPM's maker, where the TPM shows one of its own",
    )
    parser.add_argument(
        "--ovmf", type=Path, metavar="FILE", help="an OVMF with SEV metadata: computes SNP's measurement"
    )
    parser.add_argument("--vcpus", type=int, default=1, help="with --ovmf: processors of the guest")
    parser.add_argument("--vcpu-type", default="EPYC-v4", help="with --ovmf: QEMU's CPU model")
    parser.add_argument(
        "--guest-features",
        metavar="HEX",
        help="with --ovmf: SEV features; newer hosts use 0x21",
        default=hex(GUEST_FEATURES),
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    given = parser.parse_args()
    out: Path = given.out

    tee = Configuration.load(out / "config" / "strongroom.toml").tee
    digests = digests_of(out)
    measurement = None
    if given.ovmf is not None:
        launch = SnpLaunch(
            given.ovmf,
            given.vcpus,
            given.vcpu_type,
            out / "vmlinuz",
            out / "initrd",
            digests["command_line"],
            int(given.guest_features, 16),
        )
        measurement = launch.measurement().hex()
        digests["snp_measurement"] = measurement
    measured = None if given.first_boot is None else first_boot(given.first_boot)
    ek_roots = None if given.ek_roots is None else given.ek_roots.read_text("ascii")
    policy = policy_of(tee, digests, measured, measurement=measurement, ek_roots=ek_roots)
    text = "" if policy is None else policy.toml()
    if text:
        Policy.parse(text, Plugins.load([]).verifiers())  # what is printed is what a broker and a client accept
    if given.json:
        print(json.dumps(digests | {"tee": tee, "policy": text or None}, indent=1))
        return
    rows = {
        "verity root hash": digests["root_hash"],
        "configuration, launch.configuration of a TPM's log": digests["configuration"],
        **{f"{name}, SHA-256 as SNP's table of hashes has it": value for name, value in digests["sha256"].items()},
        **{f"{name}, SHA-384": value for name, value in digests["sha384"].items()},
        "PCR 9 of a TPM, SHA-256, in a direct boot": digests["tpm_pcr9_sha256"],
        "RTMR 2 of TDX in a direct boot, computed and never met": digests["tdx_rtmr2"],
    }
    if measurement is not None:
        rows["SNP measurement"] = measurement
    print("\n".join(f"# {name}:\n#   {value}" for name, value in rows.items()))
    print()
    print(text or f"# No policy: what {tee} evidence says is known after a first boot only (--first-boot CONSOLE).")
    if text and measured is None and tee == "tpm":
        print("# Not bound yet: firmware and kernel (PCR 0, 2, 4, 7) and the TPM's key; add --first-boot CONSOLE.")


try:
    main()
except (StrongroomError, OSError) as error:
    print(f"digests: {error}", file=sys.stderr)
    if isinstance(error, StrongroomError) and error.hint:
        print(f"digests: hint: {error.hint}", file=sys.stderr)
    sys.exit(1)
