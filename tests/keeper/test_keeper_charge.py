"""What the launcher tells its keeper over standard input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from strongroom.errors import MalformedInput
from strongroom.keeper.peers import Lineage
from strongroom.keeper.process import Charge
from strongroom.keys import ArchiveDigest, AuthorId
from strongroom.launch.admission import Admitted


def charge(broker_key: bytes | None = b"DER") -> Charge:
    admitted = Admitted(
        name="toy",
        path=Path("/store/toy.mar"),
        archive=ArchiveDigest(bytes([1]) * 32),
        author=AuthorId(bytes([2]) * 32),
        lineage="toy",
        version=3,
        model_version="1.0",
        resource=("default", "key", "toy"),
        broker_key=broker_key,
    )
    return Charge((admitted,), Lineage(17, 3, 1000, 1000), bytes(32), bytes(range(32)), "text", Path("/rooms"))


@pytest.mark.parametrize("broker_key", [None, b"DER"])
def test_a_charge_is_read_as_it_was_written(broker_key):
    assert Charge.parse(charge(broker_key).serialise()) == charge(broker_key)


@pytest.mark.parametrize(
    ("name", "value"), [("broker_key", 7), ("broker_key", "XY"), ("resource", ["a", "b"]), ("resource", "a/b/c")]
)
def test_an_archive_that_is_none_is_refused(name, value):
    told = json.loads(charge().serialise())
    told["archives"][0][name] = value
    with pytest.raises(MalformedInput):
        Charge.parse(json.dumps(told).encode())
