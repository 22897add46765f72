"""How keeper and workers talk: CBOR frames over a unix stream socket, descriptors by SCM_RIGHTS.

A frame is a u32 big-endian length and that many bytes of CBOR (at most `LIMIT`). Descriptors travel
with a frame of their own, one byte each batch, after the reply that announces how many follow. Both
ends are ours, but a worker also runs code that is not: the keeper reads every frame as hostile.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import cbor2

from strongroom import cbor
from strongroom.errors import KeeperUnavailable, MalformedInput

LIMIT = 8 << 20
"""Bytes of one frame. A batch of contexts is about 200 bytes each; a key bundle a few KiB."""

FIRST_LIMIT = 1 << 10
"""Bytes of a frame from a peer of which the keeper knows nothing yet."""

_DEPTH = 8

AT_ONCE = 200
"""Descriptors of one message; Linux allows 253 (SCM_MAX_FD)."""


def send(connection: socket.socket, message: Any) -> None:
    """One frame; raises `KeeperUnavailable` where the other end is gone."""
    body = cbor2.dumps(message)
    if len(body) > LIMIT:
        raise MalformedInput(f"a keeper frame of {len(body)} bytes, the limit is {LIMIT}")
    try:
        connection.sendall(len(body).to_bytes(4, "big") + body)
    except OSError as error:
        raise KeeperUnavailable("the other end of the keeper's socket is gone") from error


def receive(connection: socket.socket, *, limit: int = LIMIT) -> Any:
    """One frame of at most `limit` bytes; raises `KeeperUnavailable` at the end of the stream, or `MalformedInput`."""
    size = int.from_bytes(_exactly(connection, 4), "big")
    if size > limit:
        raise MalformedInput(f"a keeper frame of {size} bytes, the limit is {limit}")
    return cbor.decode(_exactly(connection, size), where="a keeper frame", depth=_DEPTH, text_keys=True)


def limit_waiting(connection: socket.socket, seconds: float) -> None:
    """From now on each send and receive fails after so many seconds; 0 means never.

    The kernel counts. Python's own `settimeout` asks it before every call whether the call would block, and a
    worker's request waits for each of those questions.
    """
    spec = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, spec)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, spec)


def _exactly(connection: socket.socket, size: int) -> bytes:
    pieces, left = [], size
    try:
        while left:
            piece = connection.recv(left, socket.MSG_WAITALL)
            if not piece:
                raise KeeperUnavailable("the other end of the keeper's socket is gone")
            pieces.append(piece)
            left -= len(piece)
    except OSError as error:
        raise KeeperUnavailable(f"the keeper's socket failed: {error.strerror}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def send_descriptors(connection: socket.socket, descriptors: Sequence[int]) -> None:
    """All of them, in order; the receiver knows how many from the frame before."""
    for start in range(0, len(descriptors), AT_ONCE):
        try:
            socket.send_fds(connection, [b"\x00"], descriptors[start : start + AT_ONCE])
        except OSError as error:
            raise KeeperUnavailable("the other end of the keeper's socket is gone") from error


def receive_descriptors(connection: socket.socket, count: int) -> list[int]:
    """`count` descriptors, close-on-exec; closes what came if fewer or more arrive."""
    received: list[int] = []
    try:
        while len(received) < count:
            due = min(AT_ONCE, count - len(received))
            room = socket.CMSG_SPACE(due * array.array("i").itemsize)
            data, ancillary, _, _ = connection.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
            came = array.array("i")
            for level, kind, octets in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    came.frombytes(octets[: len(octets) - len(octets) % came.itemsize])
            received += came
            if not data or len(came) != due:
                raise KeeperUnavailable(f"{len(received)} of {count} descriptors arrived from the keeper")
    except (OSError, KeeperUnavailable) as error:
        for descriptor in received:
            os.close(descriptor)
        if isinstance(error, KeeperUnavailable):
            raise
        raise KeeperUnavailable(f"the keeper's socket failed: {error.strerror}") from error
    return received
