"""QUIC variable-length integers (RFC 9000 section 16): 1, 2, 4 or 8 bytes, values below 2^62.

Writers use the smallest size. Readers accept any size for any value, as Binary HTTP asks.
"""

from __future__ import annotations

MAX_VARINT = (1 << 62) - 1
_SHORT = tuple(bytes([value]) for value in range(1 << 6))


def varint(value: int) -> bytes:
    """`value` in its smallest form; raises `ValueError` outside 0 to 2^62 - 1."""
    if 0 <= value < 1 << 6:
        return _SHORT[value]
    if value < 0 or value > MAX_VARINT:
        raise ValueError(f"{value} does not fit a variable-length integer")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


def read_varint(octets: bytes | bytearray | memoryview, at: int) -> tuple[int, int] | None:
    """(value, offset behind it), or None where the bytes run out."""
    if at >= len(octets):
        return None
    first = octets[at]
    if first < 0x40:
        return first, at + 1
    end = at + (1 << (first >> 6))
    if end > len(octets):
        return None
    return int.from_bytes(octets[at:end], "big") & ((1 << (8 * (end - at) - 2)) - 1), end
