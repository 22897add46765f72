"""The size limits of requests and answers, told by the launcher to its workers.

They travel in the environment, so a wrong value must cost a worker or an answer at most, never a secret.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "STRONGROOM_SIZES"
"""``max_request_size,max_response_size`` in bytes, of what is inside."""

DEFAULT = 6_553_500
"""Bytes: TorchServe's own default of both."""


def told(request: int, response: int) -> dict[str, str]:
    """What a launcher puts into a worker's environment."""
    return {VARIABLE: f"{request},{response}"}


def heard(environment: Mapping[str, str]) -> tuple[int, int]:
    """(max_request_size, max_response_size) in bytes; raises `ValueError` for another text."""
    request, response = map(int, environment.get(VARIABLE, f"{DEFAULT},{DEFAULT}").split(","))
    return request, response
