"""A load balancer: a real HTTP reverse proxy that sends each request to the next host in turn, and keeps count."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from strongroom.channel.bundle import KEYS_REQUEST_TYPE


@dataclass(frozen=True)
class Passed:
    """One request that passed: its media type and body, which host got it, and the status that came back."""

    media_type: str
    body: bytes = field(repr=False)
    host: int
    status: int

    @property
    def asks_for_keys(self) -> bool:
        return self.media_type == KEYS_REQUEST_TYPE


class Balancer:
    """Round robin over `ports` of this machine, request by request, whoever the client is."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.passed: list[Passed] = []
        self._turn, self._lock = 0, threading.Lock()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                host = double._next(len(ports))
                upstream = http.client.HTTPConnection("127.0.0.1", ports[host], timeout=60)
                try:
                    upstream.request("POST", self.path, body, dict(self.headers.items()))
                    answer = upstream.getresponse()
                    octets = answer.read()
                except OSError:
                    self.send_error(502)
                    return
                finally:
                    upstream.close()
                double.passed.append(Passed(self.headers.get("content-type", ""), body, host, answer.status))
                self.send_response(answer.status)
                self.send_header("content-type", answer.headers.get("content-type", ""))
                self.send_header("content-length", str(len(octets)))
                self.end_headers()
                self.wfile.write(octets)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _next(self, count: int) -> int:
        with self._lock:
            self._turn += 1
            return self._turn % count

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
