"""CRC-32 of parts, joined: the payload's zip checksum is computed block by block on many cores.

Appending n octets multiplies the CRC register by x^(8n) modulo the CRC polynomial; that is linear over
GF(2), so the operator for a length is a 32 x 32 bit matrix, and lengths combine by squaring.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
"""CRC-32 of ISO 3309, as zip uses it, with reflected bits."""


def _apply(matrix: tuple[int, ...], vector: int) -> int:
    total, row = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[row]
        vector >>= 1
        row += 1
    return total


def _after(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(_apply(second, row) for row in first)


_ONE_BIT = (_POLYNOMIAL, *(1 << row for row in range(31)))
_IDENTITY = tuple(1 << row for row in range(32))


@lru_cache(maxsize=64)
def _zeros(length: int) -> tuple[int, ...]:
    """The operator that appends `length` zero octets to a register."""
    operator, power = _IDENTITY, _ONE_BIT
    for _ in range(3):
        power = _after(power, power)
    while length:
        if length & 1:
            operator = _after(operator, power)
        power = _after(power, power)
        length >>= 1
    return operator


def crc32_join(first: int, second: int, second_length: int) -> int:
    """The CRC-32 of two byte strings one after the other, from their own ones."""
    return _apply(_zeros(second_length), first) ^ second
