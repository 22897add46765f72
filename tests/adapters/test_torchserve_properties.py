"""Java's properties format: read as a real Java reads it, written so that no reader differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom.adapters.torchserve.properties import read, write
from strongroom.errors import LaunchRefused

VECTORS = Path(__file__).parents[1] / "vectors" / "properties" / "java.json"
"""Files, and what java.util.Properties of OpenJDK 17 said of each (generate.py beside it)."""


def in_hex(settings: dict[str, str]) -> set[str]:
    wide = {name: value.encode("utf-16-be", "surrogatepass").hex() for name, value in settings.items()}
    return {f"{name.encode('utf-16-be', 'surrogatepass').hex()}={value}" for name, value in wide.items()}


def outcome(octets: bytes) -> dict[str, str] | str:
    """The settings, or why there are none."""
    try:
        return read(octets, "it")
    except LaunchRefused as refusal:
        return str(refusal)


def test_every_file_is_read_as_java_reads_it_or_refused():
    vectors = [(bytes.fromhex(octets), said) for octets, said in json.loads(VECTORS.read_text())]
    outcomes = [(octets, outcome(octets), said) for octets, said in vectors]
    for octets, found, said in outcomes:
        if isinstance(found, str):  # a byte order mark, or a line that goes on and holds nothing
            assert said == "refused" or "begins with" in found, octets
        else:
            assert in_hex(found) == set(said.split()), octets
    assert sum(isinstance(found, dict) for _, found, _ in outcomes) > 800


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("# lies in C:\\certs\\\nmanagement_address=x\n", {"management_address": "x"}),
        ("a: b\nc d\ne\n", {"a": "b", "c": "d", "e": ""}),
        ("a=1\\\n   # no comment\n", {"a": "1# no comment"}),
        ("\\u0070lugins_path=/x", {"plugins_path": "/x"}),
        ("a=http\\://h\\:1", {"a": "http://h:1"}),
    ],
)
def test_comments_separators_and_escapes_are_javas(text, settings):
    assert read(text.encode(), "it") == settings


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"\xef\xbb\xbfinference_address=x\n", "byte order mark"),
        (b"a=\\u12\n", "four hexadecimal digits"),
        (b"\\\n# a comment of later Javas only\n", "begins with an empty line"),
    ],
)
def test_what_java_refuses_or_garbles_is_refused_with_a_next_step(octets, said):
    with pytest.raises(LaunchRefused, match=said) as refusal:
        read(octets, "it")
    assert refusal.value.hint


names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)


@given(st.dictionaries(names, st.text(max_size=30), max_size=5))
def test_what_is_written_is_read_as_it_was_meant_or_not_written(settings):
    try:
        octets = write(settings, "it")
    except LaunchRefused:
        assert any(not value.isprintable() or "\\" in value or value != value.lstrip() for value in settings.values())
    else:
        assert read(octets, "it") == settings
        assert octets.isascii() and octets.count(b"\n") == len(settings)


@pytest.mark.parametrize(
    "value", ["a\nplugins_path=/evil", "a\rb", "a\\", "C:\\certs", "a\0", "\ud800", "a\u2028b", " a"]
)
def test_a_value_that_some_reader_would_take_apart_is_refused(value):
    with pytest.raises(LaunchRefused) as refusal:
        write({"keystore": value}, "it")
    assert refusal.value.hint


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a\nb", "#a", "ä"])
def test_a_name_that_some_reader_would_take_apart_is_refused(name):
    with pytest.raises(LaunchRefused, match="no name"):
        write({name: "1"}, "it")


def test_what_is_not_ascii_is_escaped_since_java_reads_latin_1():
    assert write({"keystore": "/jürgen/\U0001f511"}, "it") == b"keystore=/j\\u00fcrgen/\\ud83d\\udd11\n"
