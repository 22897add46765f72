"""What cohere-tng expects around the standard bytes, in front of an endpoint of ours.

TNG asks for keys with a header of its own and puts a length (u32, big-endian) and a message with a hint in
front of each encapsulated request. The shim answers the one from our key bundle and takes the other away;
the Oblivious HTTP bytes pass through it unchanged, both ways.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from strongroom.channel.bundle import KEYS_REQUEST_TYPE, KeyBundle
from strongroom.channel.kem import X25519
from strongroom.channel.keylist import KeyList


class TngShim:
    """Listens for TNG's client and forwards to `endpoint`. Use as a context manager."""

    def __init__(self, endpoint: str) -> None:
        shim = self
        self.endpoint = endpoint
        self.hints: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                if self.headers["x-tng-ohttp-api"] == "/tng/key-config":
                    self._answer(200, "application/json", json.dumps(shim.key_config()).encode())
                else:
                    size = int.from_bytes(body[:4], "big")
                    shim.hints.append(body[4 : 4 + size])
                    self._forward(body[4 + size :])

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("transfer-encoding", ""):
                    return self.rfile.read(int(self.headers.get("content-length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _forward(self, body: bytes) -> None:
                headers = {"content-type": "message/ohttp-chunked-req"}
                with requests.post(shim.endpoint, data=body, headers=headers, stream=True) as answer:
                    if answer.status_code != 200:
                        self._answer(answer.status_code, answer.headers["content-type"], answer.content)
                        return
                    self.send_response(200)
                    self.send_header("content-type", answer.headers["content-type"])
                    self.send_header("transfer-encoding", "chunked")
                    self.end_headers()
                    for piece in answer.iter_content(None):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")

            def _answer(self, status: int, media_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", media_type)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> TngShim:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def key_config(self) -> dict[str, object]:
        """TNG's answer: the X25519 part of our key list, since it knows no other KEM that we offer first."""
        answer = requests.post(self.endpoint, data=b"{}", headers={"content-type": KEYS_REQUEST_TYPE})
        keys = KeyList.parse(KeyBundle.parse(answer.content).parts.ohttp_keys)
        known = KeyList(tuple(config for config in keys.configs if config.kem_id == X25519))
        return {
            "hpke_key_config": {
                "expire_timestamp": int(time.time()) + 3600,
                "encoded_key_config_list": base64.b64encode(known.serialise()).decode(),
            },
            "attest_response": {"Ok": None},
        }
