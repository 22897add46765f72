"""Padding policies: to which size a binary message is filled up with zeros before it is sealed.

Padding stands at the end of a whole message (RFC 9292 section 3.8), so it hides the size of
single-shot messages. In a stream there is none between chunks; there, gathering hides sizes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from strongroom.errors import ConfigurationInvalid

_POLICY = re.compile(r"(none|power-of-two|bucket:([1-9][0-9]{0,8}))\Z")
_SMALLEST = 256  # powers of two below this would tell short messages apart for nothing


@dataclass(frozen=True, slots=True)
class Padding:
    """A policy, written ``none``, ``power-of-two`` or ``bucket:4096`` (a multiple of that many bytes)."""

    policy: str = "none"

    def __post_init__(self) -> None:
        """Raises `ConfigurationInvalid` for a policy that is not one of the three."""
        if not _POLICY.match(self.policy):
            raise ConfigurationInvalid(
                f"{self.policy!r} is not a padding policy", hint="write none, power-of-two or bucket:BYTES"
            )

    def padding(self, size: int) -> int:
        """How many zero bytes a message of `size` bytes gets."""
        if self.policy == "none":
            return 0
        if self.policy == "power-of-two":
            return max(_SMALLEST, 1 << (size - 1).bit_length() if size else 1) - size
        return -size % int(self.policy.removeprefix("bucket:"))


NO_PADDING = Padding()
