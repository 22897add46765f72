"""A client that speaks as the stock Rust client's code does, written apart from ours over `requests`.

What matters: it hashes what it sends with a JCS of its own, offers hash algorithms, keeps the cookie, and opens a JWE
with additional data that it *writes again* from the parsed header: `alg`, `enc`, then the rest as it was received,
without spaces. A broker that spells its header in any other way cannot be opened by it.
"""

from __future__ import annotations

import base64
import hashlib
import json

import requests
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap


def b64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def jcs(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class StockClient:
    """One client object has one TEE key, as upstream's has. `evidence(tee, digest)` makes evidence JSON."""

    def __init__(self, url, tee, evidence, kind="EC"):
        self.base, self.tee, self.evidence = f"{url}/kbs/v0", tee, evidence
        self.http = requests.Session()
        self.http.trust_env = False
        if kind == "EC":
            self.key = ec.generate_private_key(ec.SECP256R1())
            numbers = self.key.public_key().public_numbers()
            x, y = (b64url(each.to_bytes(32, "big")) for each in (numbers.x, numbers.y))
            self.jwk = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": x, "y": y}
        else:
            self.key = rsa.generate_private_key(65537, 2048)
            numbers = self.key.public_key().public_numbers()
            n, e = (b64url(each.to_bytes((each.bit_length() + 7) // 8, "big")) for each in (numbers.n, numbers.e))
            self.jwk = {"kty": "RSA", "alg": "RSA-OAEP-256", "n": n, "e": e}

    def attest(self):
        """The RCAR handshake; the token."""
        offered = {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]}
        request = {"version": "0.4.0", "tee": self.tee, "extra-params": offered}
        challenge = self.http.post(f"{self.base}/auth", json=request, timeout=60)
        assert challenge.status_code == 200, challenge.content
        nonce = challenge.json()["nonce"]
        document = {"additional-evidence": "", "nonce": nonce, "tee-pubkey": self.jwk}
        body = {
            "init-data": None,
            "runtime-data": {"nonce": nonce, "tee-pubkey": self.jwk},
            "tee-evidence": {
                "primary_evidence": self.evidence(hashlib.sha384(jcs(document)).digest()),
                "additional_evidence": "",
            },
        }
        answer = self.http.post(f"{self.base}/attest", json=body, timeout=60)
        assert answer.status_code == 200, answer.content
        return answer.json()["token"]

    def get(self, resource, token=None):
        """The plaintext of a resource, by the cookie, or as a passport with a token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = self.http.get(f"{self.base}/resource/{resource}", headers=headers, timeout=60)
        assert answer.status_code == 200, answer.content
        return self.open(answer.json())

    def open(self, jwe):
        header = json.loads(unb64url(jwe["protected"]))
        rest = {name: value for name, value in header.items() if name not in ("alg", "enc")}
        written = json.dumps({"alg": header["alg"], "enc": header["enc"], **rest}, separators=(",", ":"))
        content_key = self.unwrapped(header, unb64url(jwe["encrypted_key"]))
        sealed = unb64url(jwe["ciphertext"]) + unb64url(jwe["tag"])
        return AESGCM(content_key).decrypt(unb64url(jwe["iv"]), sealed, b64url(written.encode()).encode())

    def unwrapped(self, header, wrapped):
        if "epk" not in header:
            oaep = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
            return self.key.decrypt(wrapped, oaep)
        epk = header["epk"]
        x, y = (int.from_bytes(unb64url(epk[name]), "big") for name in "xy")
        shared = self.key.exchange(ec.ECDH(), ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())
        name = header["alg"].encode()
        info = b"\0\0\0\1" + shared + len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
        return aes_key_unwrap(hashlib.sha256(info).digest(), wrapped)
