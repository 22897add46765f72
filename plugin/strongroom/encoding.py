"""The few encodings that more than one room needs, each exact and strict.

Nothing here knows what a field means. Whoever parses states sizes at the call; what
does not fit raises `MalformedInput` and says where.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from strongroom.errors import MalformedInput

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")


def b64url(octets: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def unb64url(text: str, *, where: str = "base64url") -> bytes:
    """The exact inverse of `b64url`: no padding, no white space, no second spelling.

    Raises `MalformedInput` for anything that `b64url` would not have written.
    """
    if not _BASE64URL.match(text) or len(text) % 4 == 1:
        raise MalformedInput(f"{where}: not base64url without padding")
    octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url(octets) != text:
        raise MalformedInput(f"{where}: base64url with stray bits at its end")
    return octets


def b64(octets: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(octets).decode("ascii")


def unb64(text: str, *, where: str = "base64") -> bytes:
    """The exact inverse of `b64`; raises `MalformedInput`."""
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInput(f"{where}: not base64") from error
    if b64(octets) != text:
        raise MalformedInput(f"{where}: base64 with stray bits at its end")
    return octets


def unhex(text: str, *, where: str = "hex") -> bytes:
    """Lower-case hex without separators; raises `MalformedInput`."""
    if not re.fullmatch(r"(?:[0-9a-f]{2})*", text):
        raise MalformedInput(f"{where}: not lower-case hex")
    return bytes.fromhex(text)


def small_number(text: str, *, most: int, where: str) -> int:
    """A number from 0 to `most` in plain decimal, without a second spelling; raises `MalformedInput`.

    Its length is looked at first: converting many thousand digits is slow, and Python refuses it in its own way.
    """
    plain = len(text) <= len(str(most)) and text.isascii() and text.isdigit() and str(int(text)) == text
    if not plain or int(text) > most:
        raise MalformedInput(f"{where}: {text[:40]!r} is not a number from 0 to {most}")
    return int(text)


def canonical_json(value: Any) -> bytes:
    """RFC 8785 (JCS) for values made of objects, arrays, strings, booleans, null and integers.

    Members are sorted by UTF-16 code units, as section 3.2.3 asks. Floats are refused: none of
    our documents holds one, and their canonical form is the hard part of JCS.
    """
    return _canonical(value).encode("utf-8")


_plain = json.JSONEncoder(ensure_ascii=False).encode
"""One encoder for all: `json.dumps` would make another for each string of a document."""


def _canonical(value: Any) -> str:
    if isinstance(value, Mapping):
        members = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
        return "{" + ",".join(f"{_canonical(str(name))}:{_canonical(each)}" for name, each in members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_canonical(each) for each in value) + "]"
    if value is None or isinstance(value, bool | str):
        return _plain(value)
    if isinstance(value, int) and abs(value) < 2**53:
        return str(value)
    raise MalformedInput(f"a {type(value).__name__} has no canonical form here")


def parse_json(octets: bytes | str, *, where: str, limit: int = 1 << 20) -> Any:
    """JSON with at most `limit` bytes, without duplicate members and without NaN.

    Raises `MalformedInput`.
    """
    if len(octets) > limit:
        raise MalformedInput(f"{where}: {len(octets)} bytes, the limit is {limit}")
    try:
        return json.loads(octets, object_pairs_hook=_unique_members, parse_constant=_no_constant)
    except MalformedInput as error:
        raise MalformedInput(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{where}: not JSON") from error


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedInput("a member stands twice in one object")
    return members


def _no_constant(name: str) -> NoReturn:
    raise MalformedInput(f"{name} is not JSON")


def labelled(label: str, *parts: bytes) -> bytes:
    """An unambiguous byte string of a label and parts, to be hashed or signed.

    u16 label length, the label in ASCII, then u64 length and octets of each part, all big-endian.
    Two different (label, parts) never encode alike.
    """
    name = label.encode("ascii")
    encoded = bytearray(len(name).to_bytes(2, "big") + name)
    for part in parts:
        encoded += len(part).to_bytes(8, "big") + part
    return bytes(encoded)


class Reader:
    """A strict cursor over big-endian binary fields; `done` refuses what is left over.

    Every method raises `MalformedInput` where the bytes run out.
    """

    def __init__(self, octets: bytes, *, where: str) -> None:
        self._octets = memoryview(octets)
        self._at = 0
        self._where = where

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._octets) - self._at

    @property
    def at(self) -> int:
        """The offset of the next byte."""
        return self._at

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size < 0 or size > self.left:
            raise MalformedInput(f"{self._where}: needs {size} bytes at offset {self._at}, {self.left} are left")
        self._at += size
        return bytes(self._octets[self._at - size : self._at])

    def uint(self, size: int) -> int:
        """The next `size` bytes as a big-endian unsigned integer."""
        return int.from_bytes(self.take(size), "big")

    def uint_le(self, size: int) -> int:
        """The next `size` bytes as a little-endian unsigned integer."""
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.left)

    def done(self) -> None:
        """Refuse trailing bytes."""
        if self.left:
            raise MalformedInput(f"{self._where}: {self.left} bytes after its end, at offset {self._at}")


class Fields:
    """A strict reader of one decoded JSON or TOML object.

    Each field is read once, with its type and size; `done` refuses unknown fields. Everything
    raises `MalformedInput`, naming the field.
    """

    def __init__(self, fields: object, *, where: str) -> None:
        if not isinstance(fields, Mapping):
            raise MalformedInput(f"{where}: an object is expected, found {type(fields).__name__}")
        self._fields = dict(fields)
        self.where = where

    def has(self, name: str) -> bool:
        """Whether an unread field of this name is there."""
        return name in self._fields

    def value(self, name: str) -> Any:
        """The field as it stands; prefer a typed method."""
        if name not in self._fields:
            raise MalformedInput(f"{self.where}: {name} is missing")
        return self._fields.pop(name)

    def _typed(self, name: str, kind: type, said: str) -> Any:
        value = self.value(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise MalformedInput(f"{self.where}: {name} is not {said}")
        return value

    def text(self, name: str, *, limit: int = 4096, default: str | None = None) -> str:
        """A string of at most `limit` characters."""
        if default is not None and not self.has(name):
            return default
        text: str = self._typed(name, str, "a string")
        if len(text) > limit:
            raise MalformedInput(f"{self.where}: {name} has {len(text)} characters, the limit is {limit}")
        return text

    def number(self, name: str, *, low: int = 0, high: int = 2**53 - 1, default: int | None = None) -> int:
        """An integer from `low` to `high`."""
        if default is not None and not self.has(name):
            return default
        number: int = self._typed(name, int, "an integer")
        if not low <= number <= high:
            raise MalformedInput(f"{self.where}: {name} is {number}, allowed is {low} to {high}")
        return number

    def truth(self, name: str, *, default: bool | None = None) -> bool:
        """A boolean."""
        if default is not None and not self.has(name):
            return default
        truth: bool = self._typed(name, bool, "true or false")
        return truth

    def blob(self, name: str, *, size: int | None = None, limit: int = 1 << 20) -> bytes:
        """Bytes in base64url: exactly `size`, or at most `limit`."""
        octets = unb64url(self.text(name, limit=2 * limit), where=f"{self.where}: {name}")
        if len(octets) > limit or (size is not None and len(octets) != size):
            raise MalformedInput(f"{self.where}: {name} has {len(octets)} bytes, allowed is {size or limit}")
        return octets

    def hexes(self, name: str, *, size: int | None = None, limit: int = 1 << 20) -> bytes:
        """Bytes in lower-case hex: exactly `size`, or at most `limit`."""
        octets = unhex(self.text(name, limit=2 * limit), where=f"{self.where}: {name}")
        if len(octets) > limit or (size is not None and len(octets) != size):
            raise MalformedInput(f"{self.where}: {name} has {len(octets)} bytes, allowed is {size or limit}")
        return octets

    def texts(self, name: str, *, limit: int = 1024, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of at most `limit` strings."""
        if default is not None and not self.has(name):
            return default
        values = self._typed(name, list, "a list of strings")
        if len(values) > limit or not all(isinstance(each, str) for each in values):
            raise MalformedInput(f"{self.where}: {name} is not a list of at most {limit} strings")
        return tuple(values)

    def table(self, name: str) -> Fields:
        """An object inside this one."""
        return Fields(self.value(name), where=f"{self.where}: {name}")

    def left(self) -> tuple[str, ...]:
        """The names of the fields not read yet."""
        return tuple(self._fields)

    def done(self) -> None:
        """Refuse fields that nobody read."""
        if self._fields:
            raise MalformedInput(f"{self.where}: unknown field {', '.join(sorted(map(str, self._fields)))}")
