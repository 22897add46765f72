"""Vendors' services in memory: Intel's PCS (or a PCCS), AMD's KDS, NVIDIA's RIM service and an OCSP responder.

A real HTTP server on the loopback interface; paths, headers and encodings are the vendors'. `log` lists what was
asked, `failing` makes it answer with a status for a while, `answers` may be replaced to serve what is wrong.
"""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

from cryptography.x509 import ocsp


class VendorServices:
    """What is served: path (with query) → (body, headers)."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.ocsp: dict[int, bytes] = {}
        """Serial number → DER answer."""
        self.log: list[str] = []
        self.failing: list[int] = []
        self.url = ""

    def serve_intel(self, document: bytes, *, tee: str, fmspc: str, authority: str = "platform") -> None:
        """Take a nine-member document apart into the four answers of API version 4 (and a PCCS's fifth)."""
        collateral = json.loads(document)
        own, common = f"/{tee}/certification/v4", "/sgx/certification/v4"

        def signed(name: str, member: str) -> bytes:
            return f'{{"{name}":{collateral[member]},"signature":"{collateral[member + "_signature"]}"}}'.encode()

        def header(name: str, member: str) -> dict[str, str]:
            return {name: quote(collateral[member])}

        self.answers |= {
            f"{own}/tcb?fmspc={fmspc}": (
                signed("tcbInfo", "tcb_info"), header("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain"),
            ),
            f"{own}/qe/identity": (
                signed("enclaveIdentity", "qe_identity"),
                header("SGX-Enclave-Identity-Issuer-Chain", "qe_identity_issuer_chain"),
            ),
            f"{common}/pckcrl?ca={authority}&encoding=der": (
                bytes.fromhex(collateral["pck_crl"]), header("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain"),
            ),
            f"{common}/rootcacrl": (collateral["root_ca_crl"].encode(), {}),
        }  # fmt: skip

    def serve_rim(self, name: str, xml: bytes) -> None:
        body = json.dumps({"id": name, "rim": b64encode(xml).decode(), "rim_format": "TCG"}).encode()
        self.answers[f"/v1/rim/{name}"] = (body, {"Content-Type": "application/json"})


@contextmanager
def vendor_services() -> Iterator[VendorServices]:
    services = VendorServices()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            services.log.append(self.path)
            if services.failing:
                return self._answer(services.failing.pop(0), b"", {})
            if self.path in services.answers:
                body, headers = services.answers[self.path]
                return self._answer(200, body, headers)
            return self._answer(404, b"", {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            services.log.append(f"POST {urlsplit(self.path).path}")
            question = ocsp.load_der_ocsp_request(body)
            answer = services.ocsp.get(question.serial_number)
            self._answer(200 if answer else 404, answer or b"", {"Content-Type": "application/ocsp-response"})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    services.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield services
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
