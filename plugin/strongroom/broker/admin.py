"""Administrators: short-lived EdDSA-signed tokens, and what each role may do (docs/release.md section 14).

A token is a JWT that the administrator's own program signs for one minute, names this broker as its
audience, and carries the role that the broker knows for the key. No password or session exists.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from strongroom.broker.audit import public_octets
from strongroom.broker.refusals import Refused
from strongroom.broker.rootkey import read_private
from strongroom.broker.store import Store
from strongroom.encoding import Fields, b64url, canonical_json, parse_json, unb64url
from strongroom.errors import KeyFileInvalid, MalformedInput

TOKEN_SECONDS = 60
CLOCK_LEEWAY = 30

ROLES = ("admin", "owner", "auditor")
"""`admin` may do everything; `owner` keeps the keys of one repository; `auditor` reads the log."""

_ALLOWED = {
    "admin": frozenset(
        {"resource", "policy", "revoke", "limit", "lease", "lease-end", "audit", "status", "backup", "people"}
    ),
    "owner": frozenset({"resource", "revoke", "limit", "lease", "lease-end", "status"}),
    "auditor": frozenset({"audit", "status", "lease"}),
}
_HEADER_PREFIX = "Strongroom-Broker: "


@dataclass(frozen=True, slots=True)
class Administrator:
    """Who signed a request. `repository` is empty for everything, else the one it may touch."""

    key_id: str
    role: str
    repository: str

    def may(self, what: str, repository: str | None = None) -> None:
        """Raise `Refused` unless the role allows it, in that repository (None: in all of them)."""
        if what not in _ALLOWED[self.role]:
            raise Refused.admin(f"role {self.role} may not touch {what}")
        if self.repository and repository != self.repository:
            raise Refused.admin(f"{self.key_id} is confined to repository {self.repository}")


def key_id_of(public: Ed25519PublicKey) -> str:
    """The first 16 bytes of SHA-256 over the public key, in hex."""
    return hashlib.sha256(public_octets(public)).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class AdminKey:
    """An administrator's private key, and the broker it was made for."""

    private: Ed25519PrivateKey
    broker: str

    @classmethod
    def load(cls, path: Path) -> AdminKey:
        """From PEM (PKCS #8) of an owner-readable file; raises `KeyFileInvalid`."""
        octets = read_private(path)
        try:
            private = load_pem_private_key(octets, None)
        except (ValueError, TypeError) as error:
            raise KeyFileInvalid(f"{path} is not an administrator's key", hint="broker init makes admin.key") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileInvalid(f"{path} is not an Ed25519 key")
        lines = octets.decode("utf-8", "replace").splitlines()
        named = [line.removeprefix(_HEADER_PREFIX) for line in lines if line.startswith(_HEADER_PREFIX)]
        return cls(private, named[0].strip() if named else "")

    def serialise(self) -> bytes:
        """The exact inverse of `load`: a line that names the broker, and PEM."""
        pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return f"{_HEADER_PREFIX}{self.broker}\n".encode() + pem if self.broker else pem

    def token(self, role: str = "admin", *, now: float | None = None) -> str:
        """A bearer token for the next minute."""
        issued = int(time.time() if now is None else now)
        claims = {"role": role, "iat": issued, "exp": issued + TOKEN_SECONDS}
        if self.broker:
            claims["aud"] = self.broker
        header = {"typ": "JWT", "alg": "EdDSA", "kid": key_id_of(self.private.public_key())}
        signed = ".".join(b64url(canonical_json(each)) for each in (header, claims))
        return f"{signed}.{b64url(self.private.sign(signed.encode()))}"


def register(store: Store, public: Ed25519PublicKey, role: str, repository: str = "") -> str:
    """Let a key administrate; returns its id."""
    if role not in ROLES or (role == "owner") != bool(repository):
        raise KeyFileInvalid(f"role {role!r} with repository {repository!r}", hint="an owner has one, others none")
    key_id = key_id_of(public)
    store.write(
        "INSERT OR REPLACE INTO administrators VALUES (?, ?, ?, ?)", key_id, public_octets(public), role, repository
    )
    return key_id


def authenticate(store: Store, broker: str, authorization: str | None, *, now: float) -> Administrator:
    """Who sent this ``Authorization`` header; raises `Refused`."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > 8192:
        raise Refused.admin("no administrator's token")
    key_id, claims, role, repository = _verified(store, token)
    issued, expires = claims.get("iat"), claims.get("exp")
    if not isinstance(issued, int) or not isinstance(expires, int) or expires - issued > 600:
        raise Refused.admin("a token without dates, or with a life of more than ten minutes")
    if not issued - CLOCK_LEEWAY <= now < expires + CLOCK_LEEWAY:
        raise Refused.admin("the token has expired, or the two clocks differ")
    if claims.get("aud") != broker:
        raise Refused.admin("a token for another broker")
    if claims.get("role") != role:
        raise Refused.admin(f"the token claims role {claims.get('role')!r}, the key has {role}")
    return Administrator(key_id, role, repository)


def _verified(store: Store, token: str) -> tuple[str, dict[str, Any], str, str]:
    """(key id, claims, role, repository) of a token that a known key signed; raises `Refused`.

    By hand over Ed25519 (RFC 7515 section 5.2), so that whoever only seals needs no JOSE library. The
    algorithm is that of the keys we know, whatever a header says.
    """
    try:
        header, claims, signature = token.split(".")
        fields = Fields(parse_json(unb64url(header), where="token header", limit=4096), where="token header")
        key_id = fields.text("kid", limit=64)
        if fields.text("alg", limit=16) != "EdDSA":
            raise Refused.admin("a token that is not signed with EdDSA")
        rows = store.rows("SELECT public, role, repository FROM administrators WHERE key_id = ?", key_id)
        if not rows:
            raise Refused.admin("a token of a key that this broker does not know")
        public, role, repository = rows[0]
        Ed25519PublicKey.from_public_bytes(public).verify(unb64url(signature), f"{header}.{claims}".encode())
        read = parse_json(unb64url(claims), where="token claims", limit=4096)
    except (ValueError, InvalidSignature, MalformedInput) as error:
        raise Refused.admin(f"not a token of a known administrator: {type(error).__name__}") from error
    if not isinstance(read, dict):
        raise Refused.admin("a token without claims")
    return key_id, read, role, repository
