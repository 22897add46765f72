"""The ground the house stands on: stock TorchServe serves the plain digits model."""

from __future__ import annotations

import pytest
import requests
from doubles.serving import start_torchserve

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory):
    with start_torchserve(tmp_path_factory.mktemp("plain"), digits.archive.parent, ["digits=digits.mar"]) as serving:
        serving.wait_until_ready("digits", workers=2)
        yield serving


def test_the_plain_server_recognises_most_held_back_scans(plain, digits):
    right = 0
    for scan in digits.held_back[:30]:
        answer = requests.post(f"{plain.url}/predictions/digits", data=scan.pixels, timeout=30)
        assert answer.status_code == 200
        right += answer.json()["digit"] == scan.label
    assert right >= 25


def test_a_scan_that_cannot_be_read_gets_a_400(plain):
    answer = requests.post(f"{plain.url}/predictions/digits", data=b"\x00" * 63, timeout=30)
    assert answer.status_code == 400
