"""Report data on its way into hardware: fitted to the field, and found again in what came out.

A device that answers with somebody else's report (another process won the race, a stale
buffer, a proxy that replays) is caught here and not by a puzzled verifier elsewhere.
"""

from __future__ import annotations

import hmac

from strongroom.errors import AttesterUnavailable

SHORTEST, LONGEST = 32, 64


def fit(report_data: bytes, width: int) -> bytes:
    """`report_data` padded with zeros, or cut, to `width` bytes: what `judge` will compare with.

    Raises `AttesterUnavailable` unless it has 32 to 64 bytes: less would not bind.
    """
    if not SHORTEST <= len(report_data) <= LONGEST:
        raise AttesterUnavailable(f"report data has {SHORTEST} to {LONGEST} bytes, got {len(report_data)}")
    return report_data[:width].ljust(width, b"\0")


def insist(found: bytes, expected: bytes, *, what: str) -> None:
    """Raise `AttesterUnavailable` unless the evidence is about our report data."""
    if not hmac.compare_digest(found, expected):
        raise AttesterUnavailable(
            f"{what} answered with evidence over other report data than ours",
            hint="another process uses the same device at the same time, or the device is not what it seems",
        )
