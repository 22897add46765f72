"""A broker that answers as a stock Trustee's code does: a real HTTP server, written apart from ours.

Cookie without attributes but Expires, errors without a content type, no `aad`, JWE by another library,
evidence of type ``sample`` believed as it stands. `faults` make it misbehave in one way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from joserfc import jwe, jwt
from joserfc.jwk import ECKey

ERRORS = "https://github.com/confidential-containers/kbs/errors/"


def jcs(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Trustee:
    """State of one double. `faults` maps a step (auth, attest, resource) to how it answers."""

    def __init__(self):
        self.resources = {}
        self.sessions = {}
        self.faults = {}
        self.extra_params = ""
        self.seen = []
        self.signing = ECKey.generate_key("P-256")

    def auth(self, request):
        if request["version"] != "0.4.0":
            return 401, self.error(
                "AttestationError",
                "Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: "
                f"expect =0.4.0 while the request is {request['version']}",
            )
        session = uuid.uuid4().hex
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        self.sessions[session] = {"nonce": nonce, "token": None, "tee": request["tee"]}
        return 200, {"nonce": nonce, "extra-params": self.extra_params}, session

    def attest(self, session, body):
        known = self.sessions.get(session)
        if known is None or body["runtime-data"]["nonce"] != known["nonce"]:
            return 401, self.error("AttestationError", "Attestation error: RCAR handshake Attest failed")
        if known["token"] is None:
            jwk = body["runtime-data"]["tee-pubkey"]
            additional = body["tee-evidence"]["additional_evidence"]
            document = {"additional-evidence": additional, "nonce": known["nonce"], "tee-pubkey": jwk}
            digest = hashlib.sha384(jcs(document)).digest()
            found = base64.b64decode(body["tee-evidence"]["primary_evidence"]["report_data"])
            if found[:48] != digest:
                return 401, self.error("AttestationError", "Attestation error: RCAR handshake Attest failed")
            self.seen.append(json.loads(additional) if additional else {})
            known["jwk"] = jwk
            claims = {"submods": {"cpu0": {"ear.status": "affirming"}, "gpu0": {"ear.status": "warning"}}}
            known["token"] = jwt.encode({"alg": "ES256"}, claims, self.signing)
        return 200, {"token": known["token"]}, session

    def resource(self, session, path):
        known = self.sessions.get(session)
        if known is None or known["token"] is None:
            return 401, self.error("TokenNotFound", "Attestation Token not found")
        if path not in self.resources:
            return 401, self.error("PluginInternalError", "Plugin internal error")
        jwk = known["jwk"]
        key = ECKey.import_key({name: jwk[name] for name in ("kty", "crv", "x", "y")})
        header = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}
        compact = jwe.encrypt_compact(header, self.resources[path], key, algorithms=list(header.values()))
        return 200, dict(
            zip(("protected", "encrypted_key", "iv", "ciphertext", "tag"), compact.split("."), strict=True)
        )

    @staticmethod
    def error(name, detail):
        return {"type": ERRORS + name, "detail": detail}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def session(self):
        cookies = dict(part.strip().split("=", 1) for part in self.headers.get("Cookie", "").split(";") if "=" in part)
        return cookies.get("kbs-session-id")

    def respond(self, status, body=None, session=None):
        encoded = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        self.send_response(status)
        if session:
            self.send_header("Set-Cookie", f"kbs-session-id={session}; Expires={self.server.trustee.cookie_ends}")
        if status == 200:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def step(self, name, act):
        trustee = self.server.trustee
        trustee.counts[name] = trustee.counts.get(name, 0) + 1
        fault = trustee.faults.get(name)
        answer = fault(trustee.counts[name]) if fault else None
        self.respond(*(answer if answer is not None else act()))

    def do_POST(self):
        octets = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(octets)
        trustee = self.server.trustee
        if self.path == "/kbs/v0/auth":
            self.step("auth", lambda: trustee.auth(body))
        else:
            self.step("attest", lambda: trustee.attest(self.session(), body))

    def do_GET(self):
        path = self.path.removeprefix("/kbs/v0/resource/")
        self.step("resource", lambda: self.server.trustee.resource(self.session(), path))


@contextmanager
def trustee_running():
    trustee = Trustee()
    trustee.counts = {}
    trustee.cookie_ends = "Fri, 01 Jan 2100 00:00:00 GMT"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.trustee = trustee
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    trustee.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield trustee
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
