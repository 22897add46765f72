"""Init-data as a keeper sends it (docs/release.md section 4): believed only where the hardware holds its digest."""

from __future__ import annotations

from typing import Any

from strongroom.evidence.init_data import InitData, check_field
from strongroom.evidence.types import Claims


def check_init_data(text: str, claims: Claims) -> dict[str, Any]:
    """The ``[data]`` table of an init-data text that the hardware vouches for; raises `MalformedInput`."""
    parsed = InitData.parse(text)
    check_field(parsed, claims)
    return dict(parsed.data)
