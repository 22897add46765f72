"""The demo's handler, which knows nothing of strongroom: what one item holds is no other item's trouble."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import json
from strongroom_handlers.digits import PIXELS, DigitsHandler

unreadable = [json.loads('{"pixels": [1' + '0' * 400 + ']}'), {"pixels": [float("nan")] * PIXELS}, {"pixels": None}]
unreadable += [{"pixels": [-1] * PIXELS}, {"scan": []}, [[0] * 8] * 8, b"short", None, 7]
handler = DigitsHandler()
handler.device = "cpu"
for body in unreadable:
    scans = handler.preprocess([{"body": {"pixels": [16] * PIXELS}}, {"body": body}])
    assert handler.unreadable == {1}, body
    assert scans.shape == (2, 1, 8, 8) and scans[0].min() == 1, body
"""


def test_a_scan_that_cannot_be_read_leaves_the_rest_of_its_batch_alone():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
