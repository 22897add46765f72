"""The nosy host: a TCP relay between client and server that keeps every byte it forwards.

It is what a host, a gateway or a load balancer sees, no more and no less.
"""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listens on a free loopback port and forwards to `target`; `seen` grows as traffic passes."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests = bytearray()
        self.responses = bytearray()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()  # the server is away, and the client may see so
                continue
            for source, sink, kept in ((client, server, self.requests), (server, client, self.responses)):
                threading.Thread(target=self._forward, args=(source, sink, kept), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(65536):
                with self._lock:
                    kept += octets
                sink.sendall(octets)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    @property
    def seen(self) -> bytes:
        """Everything that passed, both ways."""
        with self._lock:
            return bytes(self.requests + self.responses)

    def mark(self) -> tuple[int, int]:
        """How much of each direction has passed so far."""
        with self._lock:
            return len(self.requests), len(self.responses)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def http_body(octets: bytes) -> bytes:
    """The body of the last HTTP message in `octets`."""
    return octets.rpartition(b"\r\n\r\n")[2]
