"""Which lines of a worker are metrics of the server's own file, and which only look so."""

from __future__ import annotations

import pytest
from strongroom.adapters.torchserve.metrics import MetricLines, known_metrics

LINES = MetricLines(["PredictionTime", "HandlerTime"], "digits")
REQUEST = "0b6f3c52-9a3e-4a7e-9a55-7f4a8a1f2c11"
GOOD = "[METRICS]PredictionTime.ms:12.5|#ModelName:digits,Level:Model|#type:GAUGE|#hostname:vm,1795382768"


@pytest.mark.parametrize(
    "line", [GOOD, f"{GOOD},{REQUEST}", GOOD.replace("12.5", "1e-05"), GOOD.replace("PredictionTime", "HandlerTime")]
)
def test_a_metric_of_the_servers_file_passes(line):
    assert LINES(line)


@pytest.mark.parametrize(
    ("part", "secret"),
    [
        ("PredictionTime", "Secret"),
        (".ms:", ".secret:"),
        ("12.5", "secret"),
        ("12.5", "1" * 40),
        ("ModelName:digits", "ModelName:secret"),
        ("Level:Model", "Level:secret"),
        ("Level:Model", "Level:Model,Said:secret"),
        ("GAUGE", "secret"),
        ("1795382768", f"1795382768,{REQUEST[:-1]}x"),
        ("1795382768", "1795382768,secret"),
        ("[METRICS]", "secret [METRICS]"),
        ("hostname:vm", "hostname:vm\nsecret"),
    ],
)
def test_a_line_with_one_part_of_the_handlers_choice_does_not(part, secret):
    assert part in GOOD
    assert not LINES(GOOD.replace(part, secret))


def test_names_come_from_the_cache_before_the_handler():
    cache = type("Cache", (), {"cache": {"gauge": {"A": 1}, "counter": {"B": 2}}})
    assert sorted(known_metrics(cache)) == ["A", "B"]
    assert known_metrics(object()) == []
