"""A real TPM 2.0 in software: Debian's swtpm with an EK certificate by its own local CA.

    with SoftwareTpm(folder) as tpm:
        TpmAttester(tpm.tcti, ...)

Not a mock: the same commands, sessions, PCRs and NV indices as in hardware, over a socket instead of a bus.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest


class SoftwareTpm:
    """One manufactured TPM below `folder`; powered on inside ``with``, and again by `reboot`."""

    def __init__(self, folder: Path, *, banks: str = "sha256", like: SoftwareTpm | None = None) -> None:
        """`like` copies another one's seeds, NV memory and CA while its power is off: that is much faster."""
        for tool in ("swtpm", "swtpm_setup"):
            if shutil.which(tool) is None:
                pytest.skip(f"SKIPPED LOUDLY: {tool} is not installed (Debian: swtpm, swtpm-tools)")
        self.folder = folder
        self._state, self._ca = folder / "state", folder / "ca"
        self._process: subprocess.Popen[bytes] | None = None
        if like is not None:
            shutil.copytree(like.folder, folder)
            return
        for each in (self._state, self._ca):
            each.mkdir(parents=True)
        self._manufacture(banks)

    def _manufacture(self, banks: str) -> None:
        options = self.folder / "options"
        options.write_text("--platform-manufacturer Test\n--platform-version 1\n--platform-model Double\n")
        localca = self.folder / "localca.conf"
        localca.write_text(
            f"statedir = {self._ca}\nsigningkey = {self._ca}/signkey.pem\n"
            f"issuercert = {self._ca}/issuercert.pem\ncertserial = {self._ca}/certserial\n"
        )
        setup = self.folder / "setup.conf"
        setup.write_text(
            f"create_certs_tool = {shutil.which('swtpm_localca')}\ncreate_certs_tool_config = {localca}\n"
            f"create_certs_tool_options = {options}\nactive_pcr_banks = {banks}\n"
        )
        subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", str(self._state), "--create-ek-cert", "--config", str(setup),
             "--pcr-banks", banks],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    @property
    def state(self) -> Path:
        """The folder that `swtpm --tpmstate` takes, for a machine that powers the TPM itself."""
        return self._state

    @property
    def roots(self) -> str:
        """PEM of the EK maker's chain: the issuing CA and its self-signed root."""
        return "".join((self._ca / name).read_text() for name in ("issuercert.pem", "swtpm-localca-rootca-cert.pem"))

    @property
    def tcti(self) -> str:
        """For libtss2."""
        return f"swtpm:host=127.0.0.1,port={self.port}"

    def __enter__(self) -> SoftwareTpm:
        for _ in range(20):
            self.port = _free_pair()
            self._process = subprocess.Popen(
                ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}", "--flags",
                 "not-need-init,startup-clear", "--server", f"type=tcp,port={self.port},bindaddr=127.0.0.1,disconnect",
                 "--ctrl", f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            if self._answers():
                return self
            self.off()
        raise RuntimeError("swtpm does not start")

    def _answers(self) -> bool:
        end = time.monotonic() + 5
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port + 1), timeout=1):
                return True
            time.sleep(0.02)
        return False

    def off(self) -> None:
        """Cut the power: PCRs and loaded objects are gone, the seeds and NV memory stay."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None

    def reboot(self) -> None:
        """Power off and on; the port may be another one afterwards."""
        self.off()
        self.__enter__()

    def __exit__(self, *_: object) -> None:
        self.off()


def _free_pair() -> int:
    """A port that is free together with the next one, as libtss2 expects it of swtpm."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port < 65535:
                with contextlib.suppress(OSError):
                    second.bind(("127.0.0.1", port + 1))
                    return port
