"""An Azure guest made of a real software TPM: NV index, persistent key and quotes are the TPM's own.

What Azure's paravisor does at boot is done here by `AzureMachine`; the host's metadata service is a real HTTP
server on loopback. The SNP report is signed under `amd_keys`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.azure_guest import AzureGuest
from doubles.software_tpm import SoftwareTpm
from strongroom.encoding import b64url
from strongroom.evidence.tpm_structures import TpmPublic

INDEX, HANDLE = 0x01400001, 0x81000003


class AzureMachine:
    """A booted guest. `change` may spoil the runtime data that the paravisor writes."""

    def __init__(self, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda runtime: runtime):
        self.tpm = SoftwareTpm(folder)
        self._change = change
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, bytes]] = []

    def __enter__(self) -> AzureMachine:
        self.tpm.__enter__()
        self._boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.tpm.off()

    def _boot(self) -> None:
        """The paravisor: a restricted signing key, made persistent, and the HCL report that names it."""
        from tpm2_pytss import ESAPI, ESYS_TR, TPM2B_PUBLIC, TPMA_OBJECT, TPMT_PUBLIC, TCTILdr

        attributes = TPMA_OBJECT.parse("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda")
        template = TPM2B_PUBLIC(TPMT_PUBLIC.parse("rsa2048:rsassa-sha256:null", objectAttributes=attributes))
        name, _, configuration = self.tpm.tcti.partition(":")
        with TCTILdr(name, configuration) as tcti, ESAPI(tcti) as esapi:
            key, made, *_ = esapi.create_primary(None, template, primary_handle=ESYS_TR.ENDORSEMENT)
            esapi.evict_control(ESYS_TR.OWNER, key, HANDLE)
            esapi.flush_context(key)
            modulus = TpmPublic.parse(bytes(made.publicArea.marshal())).unique[0]
            own = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": b64url(modulus)}
            runtime = self._change({"keys": [own], "user-data": "00" * 64, "vm-configuration": {"secure-boot": True}})
            self.guest = AzureGuest(runtime=runtime)
            _write(esapi, self.guest.hcl().serialise())
        pem = x509.load_der_x509_certificate(self.guest.chip.certificate()).public_bytes(Encoding.PEM).decode()
        self.answers["/metadata/THIM/amd/certification"] = (200, json.dumps({"vcekCert": pem, "tcbm": "0"}).encode())

    @contextmanager
    def metadata(self):
        """The base address of the metadata service, while it runs."""
        machine = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                machine.asked.append((self.path, self.rfile.read(size)))
                status, body = machine.answers.get(self.path, (404, b""))
                if self.headers.get("Metadata") != "true":
                    status, body = 400, b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _write(esapi: Any, octets: bytes) -> None:
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

    public = TPMS_NV_PUBLIC(
        nvIndex=INDEX, nameAlg=TPM2_ALG.SHA256, attributes=TPMA_NV.OWNERREAD | TPMA_NV.OWNERWRITE,
        dataSize=len(octets),
    )  # fmt: skip
    handle = esapi.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=public))
    for at in range(0, len(octets), 512):
        esapi.nv_write(handle, octets[at : at + 512], at, auth_handle=ESYS_TR.OWNER)
