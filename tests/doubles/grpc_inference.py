"""TorchServe's gRPC inference calls, without generated stubs: the two messages are four fields together.

Field numbers from TorchServe 0.12's inference.proto: PredictionsRequest has `model_name` (1),
`model_version` (2) and the map `input` (3, string to bytes); PredictionResponse has `prediction` (1, bytes).
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MOST = 64 << 20


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def _field(number: int, octets: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(octets)) + octets


def request(model: str, **inputs: bytes) -> bytes:
    """A PredictionsRequest. An input's name is written with `_` for `-`."""
    entries = (_field(1, name.replace("_", "-").encode()) + _field(2, value) for name, value in inputs.items())
    return _field(1, model.encode()) + b"".join(_field(3, entry) for entry in entries)


def prediction(message: bytes) -> bytes:
    """The one field of a PredictionResponse."""
    if not message:
        return b""
    assert message[0] == 1 << 3 | 2
    size = shift = 0
    at = 1
    while True:
        size |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
        if message[at - 1] < 0x80:
            break
    assert at + size == len(message)
    return message[at:]


class Inference:
    """A channel to a server's inference port. Use as a context manager."""

    def __init__(self, port: int) -> None:
        options = [("grpc.max_receive_message_length", MOST), ("grpc.max_send_message_length", MOST)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._unary = self._channel.unary_unary(f"/{SERVICE}/Predictions", _same, prediction)
        self._stream = self._channel.unary_stream(f"/{SERVICE}/StreamPredictions", _same, prediction)

    def predict(self, model: str, *, seconds: float = 30, **inputs: bytes) -> bytes:
        """Predictions: one message in, one out."""
        return self._unary(request(model, **inputs), timeout=seconds)

    def stream(self, model: str, *, seconds: float = 30, **inputs: bytes) -> Iterator[bytes]:
        """StreamPredictions: the messages as they come."""
        return iter(self._stream(request(model, **inputs), timeout=seconds))

    def __enter__(self) -> Inference:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def _same(octets: bytes) -> bytes:
    return octets
