"""What somebody on the path can read of a chunked answer without any key: the sizes of its chunks."""

from __future__ import annotations


def chunk_sizes(octets: bytes) -> list[int]:
    """The lengths before each ciphertext, behind the response nonce; the final chunk's is 0."""
    sizes, at = [], 0
    while at < len(octets):
        width = 1 << (octets[at] >> 6)
        size = int.from_bytes(octets[at : at + width], "big") & ((1 << (8 * width - 2)) - 1)
        at += width
        sizes.append(size)
        if not size:
            return sizes
        assert at + size <= len(octets), "a chunk is cut short"
        at += size
    return sizes
