"""docs/errors.md lists every error class, and every error can carry a next step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from strongroom import errors

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.StrongroomError)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_page_lists_the_class_with_what_it_means_and_what_to_do(kind):
    row = re.search(rf"^\| `{kind.__name__}` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    assert row, f"docs/errors.md has no row for {kind.__name__}"
    assert len(row[2]) > 10


def test_the_page_lists_no_class_that_is_gone():
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert listed == {kind.__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_carries_a_hint(kind):
    assert kind("what happened", hint="what next").hint == "what next"
