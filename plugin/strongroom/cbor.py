"""CBOR from strangers (RFC 8949): one item, nothing after it, and no tag acted on.

The library turns tags into numbers, dates, patterns and more. Over a large enough integer a decimal fraction takes
seconds, in which no other thread of the process runs. So a tag stays what it was written as: a number and a value.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cbor2

from strongroom.errors import MalformedInput


class _Untouched(dict[int, Callable[[Any, bool], Any]]):
    """What the library looks decoders of tags up in: whatever the tag is, it is kept as it stands."""

    def __missing__(self, tag: int) -> Callable[[Any, bool], Any]:
        return lambda value, immutable: cbor2.CBORTag(tag, value)


_UNTOUCHED = _Untouched()


def decode(octets: bytes, *, where: str, depth: int = 64, text_keys: bool = False) -> Any:
    """The one item that `octets` are; tags as `cbor2.CBORTag`. Raises `MalformedInput`.

    Refused are bytes after its end, a key twice in a map, and nesting deeper than `depth`. With `text_keys` also keys
    that are neither text nor bytes, which a stranger can choose so that they collide.
    """
    stream = io.BytesIO(octets)
    try:
        value = cbor2.CBORDecoder(
            stream, semantic_decoders=_UNTOUCHED, max_depth=depth, allow_duplicate_keys=False,
            strict_hashable_types=text_keys,
        ).decode()  # fmt: skip
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise MalformedInput(f"{where}: not CBOR") from error
    if stream.tell() != len(octets):
        raise MalformedInput(f"{where}: {len(octets) - stream.tell()} bytes after its end")
    return value
