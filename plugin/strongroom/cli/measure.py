"""`strongroom measure`: reference values for a policy, from this guest or from a piece of evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(measure)


def measure(
    evidence: Annotated[
        Path | None, typer.Argument(metavar="[EVIDENCE]", help="a report or quote; default: ask this machine")
    ] = None,
    tee: Annotated[str | None, typer.Option(metavar="TEE", help="attest as this TEE, or what raw evidence is")] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="the name of the policy")] = "measured",
    ovmf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="compute an SNP guest's measurement from its launch inputs")
    ] = None,
    vcpus: Annotated[int, typer.Option(metavar="N", help="with --ovmf: how many processors", min=1, max=512)] = 1,
    vcpu_type: Annotated[str, typer.Option(metavar="MODEL", help="with --ovmf: QEMU's CPU model")] = "EPYC-v4",
    kernel: Annotated[Path | None, typer.Option(metavar="FILE", help="with --ovmf: a kernel booted directly")] = None,
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="with --kernel")] = None,
    append: Annotated[str, typer.Option(metavar="TEXT", help="with --kernel: its command line")] = "",
    guest_features: Annotated[
        str, typer.Option(metavar="HEX", help="with --ovmf: SEV features of the VMSA; newer hosts use 0x21")
    ] = "0x1",
    init_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what the hardware has to be given so that it holds this file")
    ] = None,
    vmm: Annotated[str, typer.Option(metavar="NAME", help="with --ovmf: the hypervisor, qemu, ec2 or gce")] = "qemu",
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="keep the evidence too, for explain")] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", metavar="NAME", help="load this plugin too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Print a policy with the reference values that a guest has now. Nothing is verified: look before you trust.

    Examples: `strongroom measure > policy.toml` (in the guest) · `strongroom measure report.bin` ·
    `strongroom measure --tee simulated` · `strongroom measure --init-data init-data.toml --tee tdx` ·
    `strongroom measure --ovmf OVMF.amdsev.fd --vcpus 4 --kernel vmlinuz`
    """
    import json
    import secrets
    import sys

    from strongroom.attest.machine import chosen, tees
    from strongroom.cli.drafts import replacing
    from strongroom.errors import AttesterUnavailable, WrongUse
    from strongroom.evidence.presentation import read_evidence, write_evidence
    from strongroom.evidence.reference import reference_policy
    from strongroom.plugins import Plugins

    if ovmf is not None:
        from strongroom.attest.launch_inputs import SnpLaunch

        if kernel is None and (initrd is not None or append):
            raise WrongUse("--initrd and --append go only with a kernel", hint="give --kernel FILE")
        try:
            features = int(guest_features, 16)
        except ValueError as error:
            raise WrongUse(f"--guest-features {guest_features}: not hexadecimal", hint="for instance 0x21") from error
        launch = SnpLaunch(ovmf, vcpus, vcpu_type, kernel, initrd, append, features, vmm)
        computed = launch.reference_policy(name)
        print(json.dumps(computed.serialise()) if as_json else computed.toml(), end="\n" if as_json else "")
        print("snp: computed from the launch inputs; no machine was asked", file=sys.stderr)
        return
    if init_data is not None:
        _init_data(init_data, tee, as_json)
        return
    plugins = Plugins.load(plugin or [])
    if evidence is not None:
        found = read_evidence(evidence.read_bytes(), tee=tee)
    else:
        wanted = tee or chosen(tees(plugins))
        if wanted is None:
            raise AttesterUnavailable(
                "this machine has no TEE to measure", hint="`strongroom doctor` says what is missing; --tee names one"
            )
        found = plugins.attester(wanted).evidence(secrets.token_bytes(64))
    if save is not None:
        with replacing(save, lambda path: read_evidence(path.read_bytes()), "evidence") as draft:
            draft.write_text(json.dumps(write_evidence(found)))
    measured = reference_policy(found, plugins.verifiers(), name=name)
    if as_json:
        print(json.dumps(measured.serialise()))
    else:
        print(measured.toml(), end="")
    print(f"{found.tee}: {measured.compared} reference values; check that this is the guest you trust", file=sys.stderr)


def _init_data(path: Path, tee: str | None, as_json: bool) -> None:
    """The field of each TEE for an init-data file, in hex for policies and in base64 for hypervisors."""
    import base64
    import json

    from strongroom.errors import WrongUse
    from strongroom.evidence.init_data import FIELDS, VIRTUAL_TPMS, fitted
    from strongroom.launch.init_files import read

    read_data = read(path)
    names = {"snp": "HOST_DATA", "tdx": "MRCONFIGID", "sgx": "CONFIGID", "cca": "personalization value"}
    known = [*FIELDS, *sorted(VIRTUAL_TPMS)]
    if tee is not None and tee not in known:
        raise WrongUse(f"no field of {tee!r} holds init-data", hint=f"one of {', '.join(known)}")
    values = {each: fitted(read_data.digest, each) for each in known if tee in (None, each)}
    told = {
        each: {"hex": value.hex(), "base64": base64.b64encode(value).decode()}
        for each, value in values.items()
        if value
    }
    if as_json:
        print(json.dumps({"digest": read_data.digest.hex(), "algorithm": read_data.algorithm, "fields": told}))
        return
    print(f'init_data = ["{read_data.digest.hex()}"]')
    for each, value in told.items():
        print(f"# {each}: {names.get(each, 'PCR 8')} {value['hex']} (base64 {value['base64']})")
    for each in [each for each in values if each not in told]:
        print(f"# {each}: none; behind a TPM the algorithm has to be sha256, and this file says {read_data.algorithm}")
