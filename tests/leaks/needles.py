"""What a leak looks like: a canary, as it is and in every form in which programs print things."""

from __future__ import annotations

import base64
import secrets
import urllib.parse

import numpy as np

FORMS = ("utf-16-le", "utf-16-be", "utf-32-le")


_MADE: list[str] = []


def canary(name: str) -> str:
    """Text that is nowhere yet: 128 random bits with a name that helps whoever finds it."""
    _MADE.append(f"canary-{name}-{secrets.token_hex(16)}")
    return _MADE[-1]


def made() -> dict[str, str | bytes]:
    """Every canary that this process made so far, by itself: whatever a journey sent, it need not be told of."""
    return {each: each for each in _MADE}


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


class Needles:
    """Many byte strings looked for at once, at some hundred megabytes a second; each is at least four bytes long."""

    def __init__(self, names: dict[bytes, str]) -> None:
        """`names` says what each needle is a piece of."""
        self._names = names
        self._two = np.zeros(1 << 16, dtype=bool)
        self._by_four: dict[int, list[bytes]] = {}
        for needle in names:
            self._two[int.from_bytes(needle[:2], "little")] = True
            self._by_four.setdefault(int.from_bytes(needle[:4], "little"), []).append(needle)
        self._four = np.array(sorted(self._by_four), dtype=np.uint32)

    def found(self, octets: bytes) -> set[str]:
        """The names of all that are somewhere in `octets`."""
        found: set[str] = set()
        if len(octets) < 4:
            return found
        every = np.frombuffer(octets, dtype=np.uint8)
        for parity in (0, 1):
            pairs = np.frombuffer(octets, dtype="<u2", offset=parity, count=(len(octets) - parity) // 2)
            at = np.flatnonzero(self._two[pairs]) * 2 + parity
            at = at[at + 4 <= len(octets)]
            four = sum(every[at + place].astype(np.uint32) << np.uint32(8 * place) for place in range(4))
            for position, start in zip(at[known := np.isin(four, self._four)], four[known], strict=True):
                for needle in self._by_four[int(start)]:
                    if octets[position : position + len(needle)] == needle:
                        found.add(self._names[needle])
        return found
