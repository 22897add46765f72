"""The devices that attesters ask, emulated as their drivers behave: configfs, ioctls, NVML, a quoting service.

Each double reads and writes the caller's own memory through the addresses it is given, as a driver does,
and can be told to misbehave. What they answer is signed by the pretend vendors beside this file.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import cbor2
from cryptography.hazmat.primitives.serialization import Encoding

# -- configfs ---------------------------------------------------------------------


@dataclass
class PretendConfigfs:
    """The tsm report directory (Documentation/ABI/testing/configfs-tsm-report).

    `make_blob` is the firmware: report data in, (outblob, auxblob) out. `busy` makes that many reads of outblob
    fail with EBUSY; `rival` writes to every report at the given moment (``write`` or ``read``), that many times.
    """

    provider: str
    make_blob: Callable[[bytes], tuple[bytes, bytes]]
    busy: int = 0
    busy_error: int = errno.EBUSY
    rivals: dict[str, int] = field(default_factory=dict)
    close_error: int = 0
    exists: bool = True
    reports: dict[str, dict] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def there(self) -> bool:
        return self.exists

    def make(self, name: str) -> None:
        if name in self.reports:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.reports[name] = {"inblob": b"", "write_generation": 0, "read_generation": -1, "out": (b"", b"")}
        self.made.append(name)

    def remove(self, name: str) -> None:
        del self.reports[name]

    def has(self, name: str, attribute: str) -> bool:
        return attribute != "manifestblob" and name in self.reports

    def _disturb(self, name: str, moment: str) -> None:
        if self.rivals.get(moment, 0):
            self.rivals[moment] -= 1
            self.reports[name]["inblob"] = b"\xee" * 64
            self.reports[name]["write_generation"] += 1

    def write(self, name: str, attribute: str, octets: bytes) -> None:
        report = self.reports[name]
        if attribute != "inblob":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not 1 <= len(octets) <= 64:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self.close_error:  # configfs takes a binary attribute when its file is closed
            number, self.close_error = self.close_error, 0
            raise OSError(number, os.strerror(number))
        report["inblob"] = octets
        report["write_generation"] += 1
        self._disturb(name, "write")

    def read(self, name: str, attribute: str) -> bytes:
        report = self.reports[name]
        if attribute == "provider":
            return self.provider.encode() + b"\n"
        if attribute == "generation":
            return b"%d\n" % report["write_generation"]
        if attribute not in ("outblob", "auxblob"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if attribute == "outblob" and self.busy:
            self.busy -= 1
            raise OSError(self.busy_error, os.strerror(self.busy_error))
        if report["read_generation"] != report["write_generation"]:
            if not report["inblob"]:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            report["out"] = self.make_blob(report["inblob"])
            report["read_generation"] = report["write_generation"]
        octets = report["out"][attribute == "auxblob"]
        self._disturb(name, "read")
        return octets


# -- /dev/sev-guest ------------------------------------------------------------------


def certificate_table(entries: dict[str, bytes]) -> bytes:
    """GHCB section 4.1.8.1: (GUID, offset, length) …, zeros, then the certificates."""
    guids = {
        "VCEK": "63da758d-e664-4564-adc5-f4b93be8accd",
        "VLEK": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
        "ASK": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    }
    import uuid

    at = 24 * (len(entries) + 1)
    head = body = b""
    for kind, octets in entries.items():
        head += uuid.UUID(guids[kind]).bytes_le + (at + len(body)).to_bytes(4, "little")
        head += len(octets).to_bytes(4, "little")
        body += octets
    return head + bytes(24) + body


@dataclass
class PretendSevGuest:
    """The driver behind SNP_GET_EXT_REPORT; `report` is the firmware, `table` the host's certificates."""

    report: Callable[[bytes, int], bytes]
    table: bytes = b""
    status: int = 0
    error: int = 0
    calls: int = 0

    def __call__(self, descriptor: int, request: int, address: int) -> int:
        assert request == 0xC0205302, "SNP_GET_EXT_REPORT"
        os.fstat(descriptor)
        self.calls += 1
        message = (ctypes.c_uint64 * 4).from_address(address)
        assert message[0] & 0xFF == 1, "msg_version"
        user_data = ctypes.string_at(message[1], 64)
        vmpl = int.from_bytes(ctypes.string_at(message[1] + 64, 4), "little")
        certificates = int.from_bytes(ctypes.string_at(message[1] + 96, 8), "little")
        space = ctypes.c_uint32.from_address(message[1] + 104)
        if self.error:
            message[3] = 2 << 32  # SNP_GUEST_VMM_ERR_BUSY
            raise OSError(self.error, os.strerror(self.error))
        assert space.value % 4096 == 0, "the kernel takes whole pages"
        if len(self.table) > space.value:
            space.value = (len(self.table) + 4095) & ~4095
            message[3] = 1 << 32  # SNP_GUEST_VMM_ERR_INVALID_LEN
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        octets = self.report(user_data, vmpl)
        answer = self.status.to_bytes(4, "little") + len(octets).to_bytes(4, "little") + bytes(24) + octets
        ctypes.memmove(message[2], answer.ljust(4000, b"\0"), 4000)
        ctypes.memmove(certificates, self.table, len(self.table))
        return 0


# -- the measurement registers of a TDX guest ------------------------------------------


@dataclass
class PretendRegisters:
    """/sys/devices/virtual/misc/tdx_guest/measurements of Linux 6.16: tsm-mr over the TDX module.

    A read gives 48 bytes. A write of 48 bytes extends an RTMR; of any other size it is EINVAL, and on a register
    that only reads, EACCES. `values` is the TD's state, which a quote of the same TD has to show.
    """

    values: dict[str, bytes] = field(
        default_factory=lambda: {
            **{f"rtmr{index}:sha384": bytes(48) for index in range(4)},
            "mrtd:sha384": b"\x7d" * 48, "mrconfigid": bytes(48), "mrowner": bytes(48), "mrownerconfig": bytes(48),
        }
    )  # fmt: skip
    root: bool = True
    lost: int = 0
    """So many writes are answered as done, and are not."""

    def there(self, name: str) -> bool:
        return name in self.values

    def writable(self, name: str) -> bool:
        return self.root and name.startswith("rtmr")

    def read(self, name: str) -> bytes:
        if name not in self.values:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.values[name]

    def write(self, name: str, octets: bytes) -> None:
        if not self.writable(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if len(octets) != 48:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self.lost:
            self.lost -= 1
            return
        self.values[name] = hashlib.sha384(self.values[name] + octets).digest()

    @property
    def rtmr(self) -> tuple[bytes, bytes, bytes, bytes]:
        return tuple(self.values[f"rtmr{index}:sha384"] for index in range(4))


# -- /dev/tdx_guest and the host's quoting service ---------------------------------------


def tdx_guest(descriptor: int, request: int, address: int, *, config_id: bytes = bytes(48)) -> int:
    """TDX_CMD_GET_REPORT0: a TDREPORT with the report data at 128 (REPORTMACSTRUCT), MRCONFIGID at 576 (TDINFO)."""
    assert request == 0xC4405401, "TDX_CMD_GET_REPORT0"
    os.fstat(descriptor)
    tdreport = bytearray(1024)
    tdreport[0] = 0x81
    tdreport[128:192] = ctypes.string_at(address, 64)
    tdreport[576:624] = config_id
    ctypes.memmove(address + 64, bytes(tdreport), 1024)
    return 0


@dataclass
class PretendQuotingService:
    """Intel's qgsd behind a socket: `quote` makes one from report data; `spoil` changes its answer."""

    quote: Callable[[bytes], bytes]
    spoil: Callable[[bytes], bytes] = lambda answer: answer
    error: int = 0

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
            message = connection.recv(size, socket.MSG_WAITALL)
            assert message[:8] == b"\1\0\0\0" + bytes(4), "version 1.0, GET_QUOTE_REQ"
            assert int.from_bytes(message[8:12], "little") == len(message)
            assert int.from_bytes(message[16:20], "little") == 1024
            quote = self.quote(message[24 + 128 : 24 + 192])
            body = bytes(4) + len(quote).to_bytes(4, "little") + quote
            head = b"\1\0\1\0" + b"\1\0\0\0" + (16 + len(body)).to_bytes(4, "little") + self.error.to_bytes(4, "little")
            answer = self.spoil(head + body)
            connection.sendall(len(answer).to_bytes(4, "big") + answer)


# -- /dev/nsm -----------------------------------------------------------------------------


@dataclass
class PretendNsm:
    """The Nitro Secure Module: signs the document that its request asks for, or answers with an error."""

    document: Callable[[bytes], bytes]
    refuse: str = ""
    answer: Callable[[], object] | None = None
    """Says something else instead."""

    def __call__(self, descriptor: int, request: int, address: int) -> int:
        assert request == 0xC0200A00, "NSM's one ioctl"
        os.fstat(descriptor)
        message = (ctypes.c_uint64 * 4).from_address(address)
        asked = cbor2.loads(ctypes.string_at(message[0], message[1]))
        wanted = asked["Attestation"]["user_data"]
        answer = {"Error": self.refuse} if self.refuse else {"Attestation": {"document": self.document(wanted)}}
        octets = cbor2.dumps(answer if self.answer is None else self.answer())
        assert len(octets) <= message[3]
        ctypes.memmove(message[2], octets, len(octets))
        message[3] = len(octets)
        return 0


def nitro_document(
    authority, leaf, bundle, user_data: bytes, *, pcrs: dict[int, bytes] | None = None, at: datetime, **changes
) -> bytes:
    """A COSE_Sign1 attestation document under test certificates (`leaf` and `bundle` root first)."""
    from doubles.cca_platform import sign1

    payload = {
        "module_id": "i-0-enc0",
        "digest": "SHA384",
        "timestamp": int(at.timestamp() * 1000),
        "pcrs": {index: bytes(48) for index in range(16)} | {index: bytes([index + 1]) * 48 for index in range(3)},
        "certificate": leaf.certificate.public_bytes(Encoding.DER),
        "cabundle": [each.certificate.public_bytes(Encoding.DER) for each in (authority, *bundle)],
        "public_key": None,
        "user_data": user_data,
        "nonce": None,
    }
    payload["pcrs"].update(pcrs or {})
    return sign1(leaf.key, payload | changes)


# -- NVML -----------------------------------------------------------------------------------


@dataclass
class PretendNvml:
    """libnvidia-ml for attestation: `gpus` make a report from a nonce; codes can be forced by function name."""

    gpus: list
    confidential: int = 1
    devtools: int = 0
    environment: int = 2
    together: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    stale: bool = False
    running: int = 0

    def __getattr__(self, name: str):
        if name.startswith("nvml") and name not in self.absent:
            function = getattr(self, "_" + name)
            return lambda *arguments: self.codes.get(name) or function(*[_plain(each) for each in arguments])
        raise AttributeError(name)

    def _nvmlInit_v2(self) -> int:
        self.running += 1
        return 0

    def _nvmlShutdown(self) -> int:
        self.running -= 1
        return 0

    def _nvmlSystemGetConfComputeState(self, state) -> int:
        state.environment, state.cc_feature, state.devtools_mode = self.environment, self.confidential, self.devtools
        return 0

    def _nvmlSystemGetConfComputeSettings(self, settings) -> int:
        if settings.version != (20 | 1 << 24):  # NVML_STRUCT_VERSION(SystemConfComputeSettings, 1)
            return 25  # NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        settings.environment, settings.multi_gpu_mode = self.environment, self.together
        settings.cc_feature, settings.devtools_mode = self.confidential, self.devtools
        return 0

    def _nvmlDeviceGetCount_v2(self, count) -> int:
        count.value = len(self.gpus)
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:
        handle.value = 1000 + index
        return 0

    def _nvmlDeviceGetArchitecture(self, device, architecture) -> int:
        architecture.value = 9
        return 0

    def _nvmlDeviceGetUUID(self, device, buffer, size) -> int:
        buffer.value = f"GPU-{device - 1000}".encode()
        return 0

    def _nvmlDeviceGetConfComputeGpuAttestationReport(self, device, report) -> int:
        nonce = bytes(32) if self.stale else bytes(report.nonce)
        octets = self.gpus[device - 1000].report(nonce)
        report.report_size = len(octets)
        report.report[: len(octets)] = list(octets)
        return 0

    def _nvmlDeviceGetConfComputeGpuCertificate(self, device, answer) -> int:
        octets = self.gpus[device - 1000].chain
        answer.attestation_chain_size = len(octets)
        answer.attestation_chain[: len(octets)] = list(octets)
        return 0


def _plain(argument):
    """What a C function would see: the object behind byref, the number in a c_uint or c_void_p."""
    if hasattr(argument, "_obj"):
        return argument._obj
    return argument.value if isinstance(argument, ctypes.c_uint | ctypes.c_void_p) else argument


NOW = datetime(2026, 6, 1, tzinfo=UTC)
