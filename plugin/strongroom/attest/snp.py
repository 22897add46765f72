"""Obtain an SEV-SNP report, with the certificates that the host gave for it.

From configfs (provider ``sev_guest``) or, on older kernels, from ``/dev/sev-guest`` (AMD document 56860
chapter 7 for the report, the Linux uapi header sev-guest.h for the request). The body is the key broker
protocol's ``{"attestation_report": {…}, "cert_chain": [{"cert_type", "data"}] or null}``.
docs/attestation/sev-snp.md is the page for people.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strongroom.attest import ioctl, tsm
from strongroom.attest.binding import fit, insist
from strongroom.attest.ioctl import Ioctl, opened, read_write, system_ioctl
from strongroom.encoding import Reader
from strongroom.errors import AttesterUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.snp_report import SnpReport, to_serde
from strongroom.evidence.types import Evidence

DEVICE = Path("/dev/sev-guest")
PROVIDER = "sev_guest"
REPORT_SIZE = 1184
GET_EXTENDED_REPORT = read_write("S", 2, 32)
CERTIFICATE_SPACE = 0x4000
"""Bytes offered for the host's certificate table at first: four pages, as the kernel wants whole pages."""
_CERTIFICATES_TOO_LONG = 1 << 32
"""exitinfo2: the host's table needs more space; its size came back in certs_len (GHCB 2.0 section 4.1.8)."""
_KINDS = {
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "VCEK",
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "VLEK",
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ASK",
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ARK",
}


class _ReportRequest(ctypes.Structure):
    _fields_ = [("user_data", ctypes.c_ubyte * 64), ("vmpl", ctypes.c_uint32), ("reserved", ctypes.c_ubyte * 28)]


class _ExtendedRequest(ctypes.Structure):
    _fields_ = [("data", _ReportRequest), ("certs_address", ctypes.c_uint64), ("certs_len", ctypes.c_uint32)]


class _Response(ctypes.Structure):
    _fields_ = [("data", ctypes.c_ubyte * 4000)]


class _GuestRequest(ctypes.Structure):
    _fields_ = [
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("exitinfo2", ctypes.c_uint64),
    ]


class SnpAttester:
    """SEV-SNP evidence of this guest, at VMPL 0 unless told otherwise.

    `reports` is configfs; where it has no such provider, `device` is asked through `ioctl`.
    """

    tee = "snp"

    def __init__(
        self,
        *,
        reports: tsm.Reports | None = None,
        device: Path = DEVICE,
        ioctl: Ioctl = system_ioctl,
        vmpl: int = 0,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._reports = reports or tsm.Configfs()
        self._device, self._ioctl, self._vmpl = device, ioctl, vmpl
        self._options: dict[str, Any] = {} if sleep is None else {"sleep": sleep}

    def evidence(self, report_data: bytes) -> Evidence:
        """A fresh report over `report_data` (32 to 64 bytes); raises `AttesterUnavailable`."""
        wanted = fit(report_data, 64)
        if not tsm.missing(PROVIDER, self._reports):
            found = tsm.report(wanted, provider=PROVIDER, reports=self._reports, **self._options)
            octets, table = found.outblob, found.auxblob
        else:
            octets, table = self._ask_device(wanted)
        try:
            report = SnpReport.parse(octets[:REPORT_SIZE])
            certificates = certificate_table(table)
        except (EvidenceMalformed, MalformedInput) as error:
            raise AttesterUnavailable(f"the firmware's report cannot be read: {error}") from error
        insist(report.report_data, wanted, what="the SNP firmware")
        chain = [{"cert_type": kind, "data": list(data)} for kind, data in certificates if kind in ("VCEK", "VLEK")]
        return Evidence(self.tee, {"attestation_report": to_serde(report), "cert_chain": chain or None})

    def _ask_device(self, wanted: bytes) -> tuple[bytes, bytes]:
        with opened(self._device) as descriptor:
            space = CERTIFICATE_SPACE
            for _ in range(2):
                octets, table, needed = self._request(descriptor, wanted, space)
                if not needed:
                    return octets, table
                space = (needed + 0xFFF) & ~0xFFF
        raise AttesterUnavailable(f"the host's certificate table keeps growing: {space} bytes")

    def _request(self, descriptor: int, wanted: bytes, space: int) -> tuple[bytes, bytes, int]:
        """(report, certificate table, 0), or (b"", b"", the space that the table needs)."""
        certificates = ctypes.create_string_buffer(space)
        request = _ExtendedRequest(certs_address=ctypes.addressof(certificates), certs_len=space)
        request.data.user_data[:] = list(wanted)
        request.data.vmpl = self._vmpl
        response = _Response()
        message = _GuestRequest(1, ctypes.addressof(request), ctypes.addressof(response), 0)
        try:
            self._ioctl(descriptor, GET_EXTENDED_REPORT, ctypes.addressof(message))
        except OSError as error:
            if message.exitinfo2 == _CERTIFICATES_TOO_LONG and request.certs_len > space:
                return b"", b"", request.certs_len
            raise AttesterUnavailable(
                f"{self._device}: {error.strerror}, firmware error {message.exitinfo2:#x}",
                hint="the host may throttle requests: try again in a minute",
            ) from error
        read = Reader(bytes(response.data), where="MSG_REPORT_RSP")
        status, size = read.uint_le(4), read.uint_le(4)
        read.take(24)
        if status != 0 or size != REPORT_SIZE:
            raise AttesterUnavailable(f"the SNP firmware answered with status {status:#x} and {size} bytes")
        return read.take(size), certificates.raw, 0


def certificate_table(octets: bytes) -> list[tuple[str, bytes]]:
    """The host's certificates by kind (GHCB 2.0 section 4.1.8.1); unknown kinds are left out.

    A table of (GUID, offset, length) that a zero GUID ends. An empty buffer, or one of zeros, has none.
    Raises `MalformedInput`.
    """
    certificates: list[tuple[str, bytes]] = []
    read = Reader(octets, where="certificate table")
    while read.left >= 24:
        guid, offset, size = read.take(16), read.uint_le(4), read.uint_le(4)
        if not any(guid):
            return certificates
        if offset + size > len(octets):
            raise MalformedInput("certificate table: an entry beyond its end")
        kind = _KINDS.get(uuid.UUID(bytes_le=guid)) or _KINDS.get(uuid.UUID(bytes=guid))
        if kind is not None:
            certificates.append((kind, octets[offset : offset + size]))
    if octets:
        raise MalformedInput("certificate table: no end")
    return certificates


def missing(reports: tsm.Reports | None = None, device: Path = DEVICE) -> str:
    """What this machine lacks for an SNP report, in one sentence; empty when nothing."""
    by_tsm = tsm.missing(PROVIDER, reports or tsm.Configfs())
    return "" if not by_tsm or not ioctl.missing(device, "sev-guest") else by_tsm
