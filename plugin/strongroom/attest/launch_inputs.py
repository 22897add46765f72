"""What a guest's evidence will say, computed from what it is launched with.

So that reference values can come from a build and not from trusting a first boot. For SEV-SNP the arithmetic
(pages of the firmware, hashes of kernel, initrd and command line, one VMSA a processor) is the package
``sev-snp-measure``'s, made by the people who know it; here is only the question. It is no dependency:
whoever measures images installs it. For a TPM and for TDX, `stub_register` is the one register that the
kernel itself extends before it runs; the others are the firmware's.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

from strongroom.errors import AttesterUnavailable, ConfigurationInvalid
from strongroom.evidence.reference import ReferencePolicy

VMMS = {"qemu": "QEMU", "ec2": "ec2", "gce": "gce"}
"""Our word → the package's name of the hypervisor: each starts processors in another state."""
GUEST_FEATURES = 0x1
"""SNPActive alone: QEMU's default up to kernel 6.5; later hosts may launch with 0x21 (DebugSwap too)."""


@dataclass(frozen=True, slots=True)
class SnpLaunch:
    """What a hypervisor launches: firmware, processors, and the kernel where it is booted directly.

    `vcpu_type` is QEMU's CPU model (``EPYC-v4``, ``EPYC-Milan``, …), which only QEMU's processors start with.
    `initrd` and `command_line` belong to `kernel`: the firmware measures all three or none. `vmm` is one of `VMMS`.
    """

    firmware: Path
    vcpus: int
    vcpu_type: str = "EPYC-v4"
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    guest_features: int = GUEST_FEATURES
    vmm: str = "qemu"

    def measurement(self) -> bytes:
        """48 bytes: the MEASUREMENT of a report of this guest; raises `ConfigurationInvalid`.

        Raises `AttesterUnavailable` where ``sev-snp-measure`` is not installed.
        """
        try:
            guest = importlib.import_module("sevsnpmeasure.guest")
            vcpu_types = importlib.import_module("sevsnpmeasure.vcpu_types")
            vmm_types = importlib.import_module("sevsnpmeasure.vmm_types")
        except ImportError as error:
            raise AttesterUnavailable(
                "sev-snp-measure is not installed", hint="pip install sev-snp-measure, then measure again"
            ) from error
        if self.vcpu_type not in vcpu_types.CPU_SIGS:
            raise ConfigurationInvalid(
                f"vcpu type {self.vcpu_type!r} is not known", hint="one of " + ", ".join(sorted(vcpu_types.CPU_SIGS))
            )
        if self.vmm not in VMMS:
            raise ConfigurationInvalid(f"hypervisor {self.vmm!r} is not known", hint="one of " + ", ".join(VMMS))
        if self.kernel is None and (self.initrd is not None or self.command_line):
            raise ConfigurationInvalid("an initrd or a command line is measured only with a kernel")
        for path in (self.firmware, self.kernel, self.initrd):
            if path is not None and not path.is_file():
                raise ConfigurationInvalid(f"{path}: no such file")
        try:
            digest: bytes = guest.snp_calc_launch_digest(
                self.vcpus, vcpu_types.CPU_SIGS[self.vcpu_type], str(self.firmware), _name(self.kernel),
                _name(self.initrd), self.command_line, self.guest_features, "", vmm_types.VMMType[VMMS[self.vmm]],
            )  # fmt: skip
        except (ValueError, RuntimeError, KeyError, OSError, AssertionError) as error:
            raise ConfigurationInvalid(
                f"{self.firmware}: {error}", hint="an OVMF built for SEV is needed (AmdSev or OvmfPkg with metadata)"
            ) from error
        return digest

    def reference_policy(self, name: str) -> ReferencePolicy:
        """A policy that lists this measurement."""
        return ReferencePolicy.of_measurement(name, "snp", self.measurement())


def stub_register(command_line: str, initrd: bytes, algorithm: str = "sha256") -> bytes:
    """The register that Linux's EFI stub extends: PCR 9 of a TPM, and RTMR 2 of TDX with ``sha384``.

    `initrd` is the digest of the whole file by that algorithm, `command_line` what QEMU's ``-append`` says. Two events
    (Linux 6.1, drivers/firmware/efi/libstub): the load options, which are UTF-16LE with a zero at the end and to
    which OVMF adds ``initrd=initrd`` in a direct boot, then the initrd. Holds where nothing else extends that
    register: with a boot loader in between, its own files come first.
    """
    options = hashlib.new(algorithm, f"{command_line} initrd=initrd\0".encode("utf-16-le")).digest()
    register = bytes(len(options))
    for event in (options, initrd):
        register = hashlib.new(algorithm, register + event).digest()
    return register


def _name(path: Path | None) -> str:
    return "" if path is None else str(path)
