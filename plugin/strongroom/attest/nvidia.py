"""Obtain attestation reports of all NVIDIA GPUs that this guest holds, from the driver's NVML.

A report is asked over a nonce: the first 32 bytes of our report data (the key broker protocol cuts its
digest to them). The body is that protocol's ``{"device_evidence_list": [{"arch", "uuid", "evidence",
"certificate"}]}``, one entry a GPU, in the driver's order. docs/attestation/nvidia.md is the page for people.

NVML is loaded with ctypes, so that nothing has to be installed beside the driver. The structures are those of
nvml.h (confidential computing section), where sizes are fixed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from strongroom.attest.binding import fit, insist
from strongroom.encoding import b64
from strongroom.errors import AttesterUnavailable, MalformedInput
from strongroom.evidence.nvidia_spdm import SpdmReport
from strongroom.evidence.types import Evidence

LIBRARY = "libnvidia-ml.so.1"
NONCE_SIZE = 32
SIMULATION = 1
"""NVML_CC_SYSTEM_ENVIRONMENT_SIM: no hardware behind the confidential mode."""
_ARCHITECTURES = {9: "HOPPER", 10: "BLACKWELL"}
_UUID_SIZE = 96


class _State(ctypes.Structure):
    _fields_ = [("environment", ctypes.c_uint), ("cc_feature", ctypes.c_uint), ("devtools_mode", ctypes.c_uint)]


class _Settings(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint),
        ("environment", ctypes.c_uint),
        ("cc_feature", ctypes.c_uint),
        ("devtools_mode", ctypes.c_uint),
        ("multi_gpu_mode", ctypes.c_uint),
    ]


_SETTINGS_V1 = ctypes.sizeof(_Settings) | 1 << 24


class _Certificate(ctypes.Structure):
    _fields_ = [
        ("chain_size", ctypes.c_uint),
        ("attestation_chain_size", ctypes.c_uint),
        ("chain", ctypes.c_ubyte * 0x1000),
        ("attestation_chain", ctypes.c_ubyte * 0x1400),
    ]


class _Report(ctypes.Structure):
    _fields_ = [
        ("has_cec_report", ctypes.c_uint),
        ("report_size", ctypes.c_uint),
        ("cec_report_size", ctypes.c_uint),
        ("nonce", ctypes.c_ubyte * NONCE_SIZE),
        ("report", ctypes.c_ubyte * 0x2000),
        ("cec_report", ctypes.c_ubyte * 0x1000),
    ]


def load_library() -> Any:
    """The driver's NVML; raises `OSError` where there is none."""
    return ctypes.CDLL(LIBRARY)


class Nvml:
    """The few NVML calls that attestation needs; raises `AttesterUnavailable` for every error code.

    Use it as a context: it initialises the library and shuts it down.
    """

    def __init__(self, load: Callable[[], Any] = load_library) -> None:
        try:
            self._library = load()
        except OSError as error:
            raise AttesterUnavailable(
                f"{LIBRARY} cannot be loaded: no NVIDIA driver in this guest",
                hint="install the driver, or drop the GPUs",
            ) from error

    def __enter__(self) -> Nvml:
        self._call("nvmlInit_v2")
        return self

    def __exit__(self, *_: object) -> None:
        self._library.nvmlShutdown()

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise AttesterUnavailable(
                f"this driver has no {name}: it is older than confidential computing",
                hint="driver 550 or later is needed",
            ) from error
        code = function(*arguments)
        if code != 0:
            raise AttesterUnavailable(
                f"{name} failed with NVML error {code}",
                hint="the GPU must be in confidential mode (nvidia-smi conf-compute -f)",
            )

    def unprotected(self) -> str:
        """Why these GPUs protect nothing now, in one sentence; empty where they do.

        Confidential computing is on, or the mode for several GPUs that NVIDIA calls protected PCIe (then the
        feature itself reads as off); devtools mode is off. The report does not say it, so the guest has to ask.
        """
        state = _State()
        self._call("nvmlSystemGetConfComputeState", ctypes.byref(state))
        if state.devtools_mode:
            return "confidential computing is on in devtools mode, which protects nothing"
        if not state.cc_feature and not self._together():
            return "confidential computing is off"
        if state.environment == SIMULATION:
            return "the driver calls its confidential mode a simulation"
        return ""

    def _together(self) -> bool:
        """Whether a mode for several GPUs is on; drivers before 550 know of none."""
        settings = _Settings(version=_SETTINGS_V1)
        try:
            self._call("nvmlSystemGetConfComputeSettings", ctypes.byref(settings))
        except AttesterUnavailable:
            return False
        return bool(settings.multi_gpu_mode)

    def devices(self) -> list[ctypes.c_void_p]:
        """Handles of all GPUs, in the driver's order."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        handles = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
            handles.append(handle)
        return handles

    def describe(self, device: ctypes.c_void_p) -> tuple[str, str]:
        """(architecture, uuid): words for people, which decide nothing."""
        architecture = ctypes.c_uint()
        self._call("nvmlDeviceGetArchitecture", device, ctypes.byref(architecture))
        uuid = ctypes.create_string_buffer(_UUID_SIZE)
        self._call("nvmlDeviceGetUUID", device, uuid, ctypes.c_uint(_UUID_SIZE))
        return _ARCHITECTURES.get(architecture.value, str(architecture.value)), uuid.value.decode("ascii", "replace")

    def report(self, device: ctypes.c_void_p, nonce: bytes) -> bytes:
        """SPDM request and response over `nonce` (32 bytes)."""
        answer = _Report()
        answer.nonce[:] = list(nonce)
        self._call("nvmlDeviceGetConfComputeGpuAttestationReport", device, ctypes.byref(answer))
        return _cut(answer.report, answer.report_size, "attestation report")

    def certificate(self, device: ctypes.c_void_p) -> bytes:
        """The attestation certificate chain, PEM, leaf first."""
        answer = _Certificate()
        self._call("nvmlDeviceGetConfComputeGpuCertificate", device, ctypes.byref(answer))
        return _cut(answer.attestation_chain, answer.attestation_chain_size, "certificate chain")


def _cut(array: Any, size: int, what: str) -> bytes:
    octets = bytes(array)
    if not 0 < size <= len(octets):
        raise AttesterUnavailable(f"the driver's {what} has {size} bytes, its field {len(octets)}")
    return octets[:size]


class NvidiaAttester:
    """Evidence of every GPU in this guest; `load` is the seam to another NVML."""

    tee = "nvidia"

    def __init__(self, *, load: Callable[[], Any] = load_library) -> None:
        self._load = load

    def evidence(self, report_data: bytes) -> Evidence:
        """Fresh reports over the first 32 bytes of `report_data`; raises `AttesterUnavailable`.

        Also where the GPUs are not in confidential mode or in devtools mode: a verifier cannot see it in the
        report, and this code is part of the guest that the CPU's evidence measures.
        """
        nonce = fit(report_data, NONCE_SIZE)
        with Nvml(self._load) as nvml:
            if trouble := nvml.unprotected():
                raise AttesterUnavailable(
                    f"no GPU is attested: {trouble}",
                    hint="the host sets the mode of its GPUs (NVIDIA's gpu-admin-tools) and restarts the guest",
                )
            devices = [self._device(nvml, device, nonce) for device in nvml.devices()]
        if not devices:
            raise AttesterUnavailable(
                "the driver sees no GPU", hint="pass the GPUs through to this guest, or drop them from devices"
            )
        return Evidence(self.tee, {"device_evidence_list": devices})

    def _device(self, nvml: Nvml, device: ctypes.c_void_p, nonce: bytes) -> dict[str, str]:
        architecture, uuid = nvml.describe(device)
        report = nvml.report(device, nonce)
        try:
            found = SpdmReport.parse(report).nonce
        except MalformedInput as error:
            raise AttesterUnavailable(f"{uuid}: the GPU's report cannot be read: {error}") from error
        insist(found, nonce, what=f"GPU {uuid}")
        certificate = nvml.certificate(device).rstrip(b"\0")
        return {"arch": architecture, "uuid": uuid, "evidence": b64(report), "certificate": b64(certificate)}


def missing(load: Callable[[], Any] = load_library) -> str:
    """What this machine lacks for GPU evidence, in one sentence; empty when nothing."""
    try:
        with Nvml(load) as nvml:
            number = len(nvml.devices())
            trouble = nvml.unprotected() if number else "the driver sees no GPU"
    except AttesterUnavailable as error:
        return str(error)
    return f"{number} GPU here, and {trouble}" if number and trouble else trouble
