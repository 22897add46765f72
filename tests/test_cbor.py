"""CBOR from strangers: nothing after it, nothing twice, nothing too deep, and no tag acted on."""

from __future__ import annotations

import contextlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom import cbor
from strongroom.errors import MalformedInput

TAGS = [0, 1, 2, 3, 4, 5, 18, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 399, 1004, 43000, 55799]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_stays_a_number_and_a_value(tag):
    decoded = cbor.decode(cbor2.dumps(cbor2.CBORTag(tag, "x")), where="it")
    assert (type(decoded), decoded.tag, decoded.value) == (cbor2.CBORTag, tag, "x")


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "not CBOR"),
        (b"\x01\x02", "1 bytes after its end"),
        (b"\xa2\x01\x01\x01\x02", "not CBOR"),
        (b"\x81" * 65 + b"\x01", "not CBOR"),
        (b"\x5b" + b"\xff" * 8, "not CBOR"),
    ],
    ids=["nothing", "two items", "a key twice", "65 deep", "longer than all there is"],
)
def test_what_is_not_one_plain_item_is_refused(octets, why):
    with pytest.raises(MalformedInput, match=f"^it: {why}$"):
        cbor.decode(octets, where="it")


def test_keys_that_a_stranger_can_make_collide_are_refused_where_only_text_is_due():
    octets = cbor2.dumps({(1, 2): 3})
    assert cbor.decode(octets, where="it") == {(1, 2): 3}
    with pytest.raises(MalformedInput):
        cbor.decode(octets, where="it", text_keys=True)


@given(st.binary(max_size=100))
def test_any_octets_are_an_item_or_our_own_error(octets):
    with contextlib.suppress(MalformedInput):
        cbor.decode(octets, where="it")
