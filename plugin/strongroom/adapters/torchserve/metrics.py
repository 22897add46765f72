"""TorchServe's metric lines: the one thing that its workers have to say on stdout.

A worker reports a metric by logging one line, and the frontend parses it. A handler may report metrics of
its own in the same way, under names and with dimensions it chooses, so a line passes only where every part
of it was known before the handler was loaded: a name out of the server's metric file, a number, the
model's own dimensions, a request id that the frontend made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LINE = re.compile(
    r"\[METRICS\](?P<name>[A-Za-z0-9_.-]+)\.(?P<unit>[A-Za-z0-9/]+):(?P<value>-?[0-9.]{1,32}(?:e[+-]?[0-9]{1,3})?)"
    r"\|#(?P<dimensions>[^|]*)\|#type:(?:COUNTER|GAUGE|HISTOGRAM)\|#hostname:[A-Za-z0-9_.-]{1,255},[0-9]{1,12}"
    r"(?:,(?P<request>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))?"
)
UNITS = frozenset(
    ["Milliseconds", "Seconds", "Percent", "Count", "Megabytes", "Gigabytes", "Kilobytes", "Bytes", "unit", "ms", "s"]
)


class MetricLines:
    """Which lines are metrics that the server's own file names, of this model."""

    def __init__(self, names: Iterable[str], model: str) -> None:
        self._names = frozenset(names)
        self._dimensions = frozenset({f"ModelName:{model}", "Level:Model", "Level:Host"})

    def __call__(self, line: str) -> bool:
        """Whether a log line may pass."""
        read = _LINE.fullmatch(line)
        if read is None or read["name"] not in self._names or read["unit"] not in UNITS:
            return False
        return set(filter(None, read["dimensions"].split(","))) <= self._dimensions


def known_metrics(cache: object) -> list[str]:
    """The metric names that the server's file defines, from a worker's metric cache before a handler ran."""
    kinds = getattr(cache, "cache", None)
    if not isinstance(kinds, dict):
        return []
    return [str(name) for metrics in kinds.values() if isinstance(metrics, dict) for name in metrics]
