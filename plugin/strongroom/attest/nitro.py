"""Obtain an AWS Nitro attestation document from the Nitro Secure Module.

One CBOR request and one answer through an ioctl on ``/dev/nsm`` (AWS NSM API). Our report data goes into
``user_data``. The body is ``{"document": base64}``. docs/attestation/nitro.md is the page for people.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import cbor2

from strongroom.attest import ioctl
from strongroom.attest.binding import fit, insist
from strongroom.attest.ioctl import Ioctl, opened, read_write, system_ioctl
from strongroom.encoding import b64
from strongroom.errors import AttesterUnavailable, EvidenceMalformed
from strongroom.evidence.cose import Sign1, decode_cbor
from strongroom.evidence.nitro import TEE, AttestationDocument
from strongroom.evidence.types import Evidence

DEVICE = Path("/dev/nsm")
ASK = read_write(0x0A, 0, 32)
LARGEST_REQUEST, LARGEST_ANSWER = 0x1000, 0x3000


class _Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _Message(ctypes.Structure):
    _fields_ = [("request", _Span), ("response", _Span)]


class NitroAttester:
    """Nitro evidence of this enclave, through `device` and `ioctl`."""

    tee = TEE

    def __init__(self, *, device: Path = DEVICE, ioctl: Ioctl = system_ioctl) -> None:
        self._device, self._ioctl = device, ioctl

    def evidence(self, report_data: bytes) -> Evidence:
        """A fresh document with `report_data` (32 to 64 bytes) as user data; raises `AttesterUnavailable`."""
        wanted = fit(report_data, 64)
        answer = self._ask({"Attestation": {"user_data": wanted, "nonce": None, "public_key": None}})
        attestation = answer.get("Attestation") if isinstance(answer, dict) else None
        document = attestation.get("document") if isinstance(attestation, dict) else None
        if not isinstance(document, bytes):
            raise AttesterUnavailable(f"the Nitro Secure Module refused: {str(answer)[:200]}")
        try:
            found = AttestationDocument.parse(Sign1.parse(document, what="Nitro document").payload)
        except EvidenceMalformed as error:
            raise AttesterUnavailable(f"the module's document cannot be read: {error}") from error
        insist(found.user_data, wanted, what="the Nitro Secure Module")
        return Evidence(self.tee, {"document": b64(document)})

    def _ask(self, request: object) -> object:
        octets = cbor2.dumps(request)
        if len(octets) > LARGEST_REQUEST:
            raise AttesterUnavailable(f"a request of {len(octets)} bytes, the limit is {LARGEST_REQUEST}")
        asked = ctypes.create_string_buffer(octets, len(octets))
        answered = ctypes.create_string_buffer(LARGEST_ANSWER)
        message = _Message(
            _Span(ctypes.addressof(asked), len(octets)), _Span(ctypes.addressof(answered), LARGEST_ANSWER)
        )
        with opened(self._device) as descriptor:
            try:
                self._ioctl(descriptor, ASK, ctypes.addressof(message))
            except OSError as error:
                raise AttesterUnavailable(f"{self._device}: {error.strerror}") from error
        if message.response.length > LARGEST_ANSWER:
            raise AttesterUnavailable("the Nitro Secure Module's answer is longer than its buffer")
        try:
            return decode_cbor(answered.raw[: message.response.length], what="NSM answer")
        except EvidenceMalformed as error:
            raise AttesterUnavailable(str(error)) from error


def missing(device: Path = DEVICE) -> str:
    """What this machine lacks for a Nitro document, in one sentence; empty when nothing."""
    return ioctl.missing(device, "nsm")
