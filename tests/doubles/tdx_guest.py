"""A whole TDX guest: registers, CCEL and quotes that tell of one and the same trust domain."""

from __future__ import annotations

from pathlib import Path

from doubles.dcap_platform import PretendIntel, trust_domain
from doubles.tee_devices import PretendConfigfs, PretendRegisters
from strongroom.attest.tdx import TdxAttester


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def ccel(events: list[tuple[int, bytes, bytes]], *, padding: bytes = b"\xff" * 512) -> bytes:
    """A TCG crypto-agile log of (RTMR, SHA-384 digest, data)."""
    spec = b"Spec ID Event03\0" + u32(0) + b"\0\2\0\2" + u32(1) + b"\x0c\0\x30\0\0"
    log = u32(0) + u32(3) + bytes(20) + u32(len(spec)) + spec
    for register, digest, data in events:
        log += u32(register + 1) + u32(1) + u32(1) + b"\x0c\0" + digest + u32(len(data)) + data
    return log + padding


FIRMWARE = [(0, b"\xa1" * 48, b"configuration"), (1, b"\xb2" * 48, b"kernel"), (2, b"\xc3" * 48, b"command line")]


class PretendTdxGuest:
    """A guest that has just booted: firmware and boot loader have extended RTMR 0 to 2."""

    def __init__(self, folder: Path, *, config_id: bytes = bytes(48), firmware=FIRMWARE) -> None:
        self.intel = PretendIntel()
        self.registers = PretendRegisters()
        self.registers.values["mrconfigid"] = config_id
        for register, digest, _ in firmware:
            self.registers.write(f"rtmr{register}:sha384", digest)
        self.ccel = folder / "CCEL"
        self.ccel.write_bytes(ccel(firmware))
        self.launch_log = folder / "run" / "tdx-launch.json"
        self.reports = PretendConfigfs("tdx_guest", lambda data: (self.quote(data), b""))

    def quote(self, report_data: bytes) -> bytes:
        """By the host's quoting enclave, over what the registers hold now."""
        values = self.registers.values
        body = trust_domain(report_data=report_data, rtmr=self.registers.rtmr, mr_config_id=values["mrconfigid"])
        return self.intel.quote(body)

    def attester(self, **seams) -> TdxAttester:
        given = {"reports": self.reports, "registers": self.registers, "event_log": self.ccel}
        return TdxAttester(**{**given, "launch_log": self.launch_log, **seams})
