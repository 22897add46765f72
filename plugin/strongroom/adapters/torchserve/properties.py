"""Java's properties format, read as ``java.util.Properties`` reads it and written so that nobody reads it otherwise.

TorchServe reads its configuration twice: the frontend with Java's own parser, and before that the Python wrapper with a
few lines of its own, for the JVM's arguments and the class path. So a setting that one of them sees and a check does
not would be a way in. What is written here is printable ASCII, one setting a line, and is read back in both ways.

Which settings are allowed is `flags`' business.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping

from strongroom.errors import LaunchRefused

BLANKS = " \t\f"
SETTING = re.compile(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
"""A logical line: the name ends at the first separator or blank without a backslash in front of it."""
ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|u|.)", re.DOTALL)
MEANING = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
MARK = "\xef\xbb\xbf"
"""A byte order mark of UTF-8, in the way Java reads it."""
NAME = re.compile(r"[A-Za-z0-9_.]+")
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def read(octets: bytes, where: str) -> dict[str, str]:
    """The settings of a file, the last of each name, as Java's parser gives them; raises `LaunchRefused`.

    Octets are Latin-1 there, whatever an editor showed. Refused is what Java refuses, and what its releases may read
    in different ways.
    """
    text = octets.decode("latin-1")
    if text.startswith(MARK):
        raise LaunchRefused(
            f"{where} begins with a byte order mark, which Java takes for a part of the first name",
            hint="save it without one",
        )
    settings = {}
    for line in _logical_lines(text, where):
        name, value = SETTING.fullmatch(line).groups()  # type: ignore[union-attr]  # it matches every line
        settings[_unescaped(name, where)] = _unescaped(value, where)
    return settings


def _logical_lines(text: str, where: str) -> Iterator[str]:
    """Natural lines without blank ones and comments, those joined that end in an odd number of backslashes."""
    joined = None
    for line in re.split(r"\r\n|\r|\n", text):
        line = line.lstrip(BLANKS)
        if joined is None and (not line or line[0] in "#!"):
            continue
        goes_on = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        joined = (joined or "") + (line[:-1] if goes_on else line)
        if goes_on and joined:
            continue
        if goes_on:
            raise LaunchRefused(f"{where}: a setting begins with an empty line that goes on", hint="remove the line")
        yield joined
        joined = None
    if joined:
        yield joined


def _unescaped(text: str, where: str) -> str:
    def meant(found: re.Match[str]) -> str:
        said = found[1]
        if said == "u":
            raise LaunchRefused(f"{where}: \\u is not followed by four hexadecimal digits", hint="rewrite the line")
        return chr(int(said[1:], 16)) if len(said) == 5 else MEANING.get(said, said)

    halves = ESCAPE.sub(meant, text).encode("utf-16-le", "surrogatepass")
    return halves.decode("utf-16-le", "surrogatepass")


def write(settings: Mapping[str, str], where: str) -> bytes:
    """A file that gives exactly `settings` to every reader, in their order; raises `LaunchRefused` where none could."""
    for name, value in settings.items():
        if not NAME.fullmatch(name):
            raise LaunchRefused(f"{name[:40]!r} is no name of a setting", hint="letters, digits, '_' and '.'")
        if any(each == "\\" or unicodedata.category(each) in UNPRINTABLE for each in value):
            raise LaunchRefused(
                f"the setting {name} holds a backslash or a character that cannot be printed: {value[:80]!r}",
                hint="take it out; a relative path begins with the present folder, so look at its name too",
            )
    octets = "".join(f"{name}={_escaped(value)}\n" for name, value in settings.items()).encode("ascii")
    by_lines = dict(line.split("=", 1) for line in octets.decode().splitlines())
    if read(octets, where) != dict(settings) or by_lines != {name: _escaped(value) for name, value in settings.items()}:
        raise LaunchRefused(
            "the settings for the server would be read otherwise than they are meant",
            hint="does a value begin with a blank? Take it out of config.properties",
        )
    return octets


def _escaped(value: str) -> str:
    r"""Printable ASCII as it is, and \uXXXX for the rest: halves of a pair for what is beyond 16 bits."""
    return "".join(each if each.isascii() else "".join(f"\\u{half:04x}" for half in _halves(each)) for each in value)


def _halves(character: str) -> Iterator[int]:
    octets = character.encode("utf-16-be")
    for start in range(0, len(octets), 2):
        yield int.from_bytes(octets[start : start + 2], "big")
