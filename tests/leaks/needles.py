"""What a leak looks like: a canary, as it is and in every form in which programs print things."""

from __future__ import annotations

import base64
import secrets
import urllib.parse

FORMS = ("utf-16-le", "utf-16-be", "utf-32-le")


def canary(name: str) -> str:
    """Text that is nowhere yet: 128 random bits with a name that helps whoever finds it."""
    return f"canary-{name}-{secrets.token_hex(16)}"


def encodings(secret: str | bytes) -> set[bytes]:
    """A text or a key as it may stand in a file: plain, hex, base64 at each of its three phases, quoted, wide, listed.

    Of a canary its random part is enough, and either half of that: what was cut off is found too.
    """
    if isinstance(secret, bytes):
        return _printed(secret) | {secret}
    found: set[bytes] = set()
    token = secret.rpartition("-")[2]
    pieces = [token[: len(token) // 2], token[len(token) // 2 :]] if secret.startswith("canary-") else [secret]
    for piece in pieces:
        found |= {piece.encode(), piece.upper().encode(), urllib.parse.quote(piece).encode()}
        found |= {piece.encode(form) for form in FORMS}
    return found | _printed(secret.encode())


def _printed(octets: bytes) -> set[bytes]:
    found = {octets.hex().encode(), octets.hex().upper().encode(), octets.hex(":").encode(), octets[::-1]}
    found |= {separator.join(map(str, octets)).encode() for separator in (", ", ",", " ")}
    found |= {repr(octets)[2:-1].encode(), repr("".join(map(chr, octets)))[1:-1].encode()}
    for phase in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Without the ends, which depend on the neighbours.
            found.add(encode(bytes(phase) + octets)[4 if phase else 0 : -4])
    return found
