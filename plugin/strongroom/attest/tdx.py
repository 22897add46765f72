"""Obtain an Intel TDX quote and the boot's event log.

From configfs (provider ``tdx_guest``), which does it all; or, on older kernels, a TDREPORT from
``/dev/tdx_guest`` that the host's quote generation service turns into a quote over vsock (Intel DCAP, the
message format of qgs_msg_lib). The body is the key broker protocol's ``{"quote", "cc_eventlog"}``. The log is
the CCEL ACPI table's, with what `launch` extended into RTMR 3 behind it. docs/attestation/tdx.md and init-data.md
are the pages for people.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strongroom.attest import ioctl, tsm
from strongroom.attest.binding import fit, insist
from strongroom.attest.ioctl import Ioctl, opened, read_write, system_ioctl
from strongroom.attest.launch_log import LaunchLog, place
from strongroom.attest.tdx_registers import CONFIG_ID, SIZE, Registers, Sysfs, runtime_register
from strongroom.encoding import Reader, b64
from strongroom.errors import AttesterUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.dcap_quote import Quote, TdReport
from strongroom.evidence.tdx_event_log import Event, parse_log, replay
from strongroom.evidence.tdx_launch_log import EV_EVENT_TAG, LAUNCH_REGISTER, LaunchRecord, with_records
from strongroom.evidence.types import Evidence

DEVICE = Path("/dev/tdx_guest")
EVENT_LOG = Path("/sys/firmware/acpi/tables/data/CCEL")
PROVIDER = "tdx_guest"
TDREPORT_SIZE = 1024
GET_REPORT = read_write("T", 1, 64 + TDREPORT_SIZE)
QGS_PORT = 4050
HOST = 2
"""The host's vsock address (VMADDR_CID_HOST)."""
LARGEST_ANSWER = 1 << 16
LARGEST_LOG = 1 << 22
LAUNCH_LOG = place("tdx-launch.json")
_REGISTER = runtime_register(LAUNCH_REGISTER)
_CONFIG_ID_AT = 576
"""Offset of MRCONFIGID in a TDREPORT: TDINFO_STRUCT at 512, behind attributes, XFAM and MRTD."""
_TIMEOUT = 30.0


class _ReportRequest(ctypes.Structure):
    _fields_ = [("reportdata", ctypes.c_ubyte * 64), ("tdreport", ctypes.c_ubyte * TDREPORT_SIZE)]


def connect_to_host() -> socket.socket:
    """A vsock connection to the host's quote generation service."""
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    connection.settimeout(_TIMEOUT)
    connection.connect((HOST, QGS_PORT))
    return connection


class TdxAttester:
    """TDX evidence of this guest; seams as in `SnpAttester`, and `connect` for the quoting service."""

    tee = "tdx"

    def __init__(
        self,
        *,
        reports: tsm.Reports | None = None,
        device: Path = DEVICE,
        event_log: Path = EVENT_LOG,
        registers: Registers | None = None,
        launch_log: Path = LAUNCH_LOG,
        ioctl: Ioctl = system_ioctl,
        connect: Callable[[], socket.socket] = connect_to_host,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._reports = reports or tsm.Configfs()
        self._device, self._event_log = device, event_log
        self._registers = registers or Sysfs()
        self._launch_log_file = LaunchLog(launch_log, LaunchRecord.parse)
        self._ioctl, self._connect = ioctl, connect
        self._options: dict[str, Any] = {} if sleep is None else {"sleep": sleep}

    def evidence(self, report_data: bytes) -> Evidence:
        """A fresh quote over `report_data` (32 to 64 bytes); raises `AttesterUnavailable`."""
        wanted = fit(report_data, 64)
        if not tsm.missing(PROVIDER, self._reports):
            octets = tsm.report(wanted, provider=PROVIDER, reports=self._reports, **self._options).outblob
        else:
            octets = self._quote(self._tdreport(wanted))
        try:
            quote = Quote.parse(octets)
        except (EvidenceMalformed, MalformedInput) as error:
            raise AttesterUnavailable(f"the host's quote cannot be read: {error}") from error
        if not isinstance(quote.body, TdReport):
            raise AttesterUnavailable("the host answered with an enclave's quote, not a trust domain's")
        insist(quote.body.report_data, wanted, what="the quote generation service")
        return Evidence(self.tee, {"quote": b64(octets), "cc_eventlog": self._log()})

    # -- what the guest was started with, and what it starts ------------------------------

    def init_data_field(self) -> bytes:
        """MRCONFIGID, 48 bytes, by the TDX module itself; raises `AttesterUnavailable`."""
        if self._registers.there(CONFIG_ID):
            return self._read(CONFIG_ID)
        return self._tdreport(bytes(64))[_CONFIG_ID_AT : _CONFIG_ID_AT + SIZE]

    def launched(self) -> tuple[LaunchRecord, ...]:
        """What was extended in this boot; raises `AttesterUnavailable`."""
        return self._launch_log_file.read()

    def launch_trouble(self) -> str:
        """Why launch events cannot be extended or shown, in one sentence; empty where they can."""
        if not self._registers.there(_REGISTER):
            return f"the kernel does not show RTMR {LAUNCH_REGISTER} (Linux 6.16 does)"
        if not self._registers.writable(_REGISTER):
            return f"this user may not extend RTMR {LAUNCH_REGISTER}"
        return "" if self._ccel() else f"there is no event log at {self._event_log} to show them in"

    def extend(self, digest: bytes, event: str) -> LaunchRecord:
        """Extend RTMR 3 by an event and its 32-byte digest, and write it to the launch log.

        Called by `launch` before anything else starts. Raises `AttesterUnavailable`, also where the register does
        not hold what firmware and launch log account for: no verifier would accept what comes of it.
        """
        trouble = self.launch_trouble()
        if trouble:
            raise AttesterUnavailable(trouble)
        record = LaunchRecord.parse(LaunchRecord(event, bytes(digest)).serialise())
        self._insist(self.launched())
        records = self._launch_log_file.add(record)
        try:
            self._registers.write(_REGISTER, record.extended)
        except OSError as error:
            raise AttesterUnavailable(f"RTMR {LAUNCH_REGISTER} could not be extended: {error.strerror}") from error
        self._insist(records)
        return record

    def _insist(self, records: tuple[LaunchRecord, ...]) -> None:
        ours = tuple(Event(LAUNCH_REGISTER, EV_EVENT_TAG, each.extended, "", each.data) for each in records)
        try:
            expected = replay((*parse_log(self._ccel() or b""), *ours))[LAUNCH_REGISTER]
        except MalformedInput as error:
            raise AttesterUnavailable(f"{self._event_log} cannot be read: {error}") from error
        if self._read(_REGISTER) != expected:
            raise AttesterUnavailable(
                f"RTMR {LAUNCH_REGISTER} does not hold what the event log and the launch log account for",
                hint="something else extended it in this boot; use an image in which only launch does",
            )

    def _read(self, name: str) -> bytes:
        try:
            octets = self._registers.read(name)
        except OSError as error:
            raise AttesterUnavailable(f"the measurement register {name}: {error.strerror}") from error
        if len(octets) != SIZE:
            raise AttesterUnavailable(f"the measurement register {name} has {len(octets)} bytes, not {SIZE}")
        return octets

    def _log(self) -> str | None:
        octets, records = self._ccel(), self.launched()
        if octets is None:
            return None
        try:
            return b64(with_records(octets, records) if records else octets)
        except MalformedInput as error:
            raise AttesterUnavailable(f"{self._event_log} cannot be read: {error}") from error

    def _ccel(self) -> bytes | None:
        try:
            octets = self._event_log.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AttesterUnavailable(
                f"{self._event_log}: {error.strerror}", hint="the event log is root's: let this user read it"
            ) from error
        if len(octets) > LARGEST_LOG:
            raise AttesterUnavailable(f"{self._event_log}: {len(octets)} bytes, the limit is {LARGEST_LOG}")
        return octets

    def _tdreport(self, wanted: bytes) -> bytes:
        request = _ReportRequest()
        request.reportdata[:] = list(wanted)
        with opened(self._device) as descriptor:
            try:
                self._ioctl(descriptor, GET_REPORT, ctypes.addressof(request))
            except OSError as error:
                raise AttesterUnavailable(f"{self._device}: {error.strerror}") from error
        return bytes(request.tdreport)

    def _quote(self, tdreport: bytes) -> bytes:
        """Ask the host's service for a quote of this TDREPORT."""
        body = len(tdreport).to_bytes(4, "little") + bytes(4) + tdreport
        message = _header(0, len(body)) + body
        try:
            with self._connect() as connection:
                connection.sendall(len(message).to_bytes(4, "big") + message)
                size = int.from_bytes(_receive(connection, 4), "big")
                if size > LARGEST_ANSWER:
                    raise AttesterUnavailable(f"the quote generation service announces {size} bytes")
                answer = _receive(connection, size)
        except OSError as error:
            raise AttesterUnavailable(
                f"the host's quote generation service does not answer: {error}",
                hint="a kernel from 6.7 asks it through configfs; otherwise the host must run qgsd with a vsock port",
            ) from error
        try:
            return _answered(answer)
        except MalformedInput as error:
            raise AttesterUnavailable(f"the quote generation service's answer: {error}") from error


def _header(kind: int, size: int) -> bytes:
    """qgs_msg_header_t: version 1.0, kind, whole size, error code 0."""
    return b"".join(
        (
            (1).to_bytes(2, "little"),
            (0).to_bytes(2, "little"),
            kind.to_bytes(4, "little"),
            (16 + size).to_bytes(4, "little"),
            bytes(4),
        )
    )


def _answered(answer: bytes) -> bytes:
    read = Reader(answer, where="qgs")
    major, _minor, kind, size, error = read.uint_le(2), read.uint_le(2), *(read.uint_le(4) for _ in range(3))
    if error:
        raise MalformedInput(f"error {error:#x}")
    if (major, kind, size) != (1, 1, len(answer)):
        raise MalformedInput(f"version {major}, kind {kind}, {size} of {len(answer)} bytes")
    identity, length = read.uint_le(4), read.uint_le(4)
    read.take(identity)
    quote = read.take(length)
    read.done()
    return quote


def _receive(connection: socket.socket, size: int) -> bytes:
    octets = bytearray()
    while len(octets) < size:
        piece = connection.recv(size - len(octets))
        if not piece:
            raise OSError("the connection ended in the middle of an answer")
        octets += piece
    return bytes(octets)


def missing(reports: tsm.Reports | None = None, device: Path = DEVICE) -> str:
    """What this machine lacks for a TDX quote, in one sentence; empty when nothing."""
    by_tsm = tsm.missing(PROVIDER, reports or tsm.Configfs())
    return "" if not by_tsm or not ioctl.missing(device, "tdx-guest") else by_tsm
