"""Everything that passes over the loopback device, put together again flow by flow; needs CAP_NET_RAW (packet(7))."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Hashable

ALL_PROTOCOLS = 3
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE = 33
ETHERNET, IPV4, IPV6, TCP = 14, 0x0800, 0x86DD, 6
OVERLAP = 1 << 10
AT_ONCE = 1 << 20
BETWEEN = b"\n-- between packets --\n"


class Ear:
    """Calls `hear(octets)` with packets, many at a time, and with a TCP flow's octets across its segments' borders."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear
        self._heard: list[bytes] = []
        self._size = 0
        self._tails: dict[Hashable, bytes] = {}
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 128 << 20)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind(("lo", ALL_PROTOCOLS))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """End, after what was sent so far was heard; gives the number of packets that the kernel had to drop."""
        self._stop.set()
        self._thread.join()
        counts = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._socket.close()
        return int(struct.unpack("=II", counts)[1])

    def _run(self) -> None:
        while True:
            if select.select([self._socket], [], [], 0.2)[0]:
                self._take(self._socket.recv(1 << 17))
                if self._size > AT_ONCE:
                    self._pass_on()
                continue
            self._pass_on()
            if self._stop.is_set():
                return

    def _take(self, packet: bytes) -> None:
        self._heard.append(packet)
        self._size += len(packet)
        found = _segment(packet)
        if found is not None:
            flow, octets = found
            joined = self._tails.get(flow, b"") + octets
            self._heard.append(joined[: 2 * OVERLAP])
            self._tails[flow] = joined[-OVERLAP:]

    def _pass_on(self) -> None:
        if self._heard:
            self._hear(BETWEEN.join(self._heard))
        self._heard.clear()
        self._size = 0


def _segment(packet: bytes) -> tuple[Hashable, bytes] | None:
    """The flow and the octets of a TCP segment; every packet of the loopback device is seen going out and coming in."""
    if len(packet) < ETHERNET + 40:
        return None
    kind = int.from_bytes(packet[12:14], "big")
    if kind == IPV4 and packet[ETHERNET + 9] == TCP:
        at, addresses = ETHERNET + (packet[ETHERNET] & 15) * 4, packet[ETHERNET + 12 : ETHERNET + 20]
    elif kind == IPV6 and packet[ETHERNET + 6] == TCP:
        at, addresses = ETHERNET + 40, packet[ETHERNET + 8 : ETHERNET + 40]
    else:
        return None
    if len(packet) < at + 20:
        return None
    octets = packet[at + (packet[at + 12] >> 4) * 4 :]
    return ((addresses, packet[at : at + 4]), octets) if octets else None
