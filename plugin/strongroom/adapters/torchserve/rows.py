"""From an inner request to the row that TorchServe's frontend and worker would have made of it, and
from a handler's answer to the bytes they would have sent.

Measured on TorchServe 0.12.0 and held by a journey test that serves one handler plain and sealed: a body
is a `bytearray` under ``body``, JSON is decoded, text is decoded, forms become one entry a field, and a
decoding that fails passes the bytes on.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.adapters.torchserve.routes import Route
from strongroom.errors import MessageInvalid

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
OCTETS = "application/octet-stream"
"""What the frontend takes an uploaded file for that names no type."""
MOST_PARTS = 1024

_LINE_END = re.compile(rb"\r?\n")
_ESCAPE_CUT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)
"""For a parser that would log single bytes of what it reads."""

CHANNEL_DATE = "date"
"""The channel's own field (docs/protocol.md section 5). Programs do not send it, so no handler looks for it."""


class Headers(dict[str, Any]):
    """Request headers as handlers read them, whatever the case they ask in.

    TorchServe keeps the client's spelling and Binary HTTP has lower case only, so a handler that was
    written for one spelling must find the other.
    """

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(self._spelled(name))

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(self._spelled(name), value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(self._spelled(name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self._spelled(name))

    def get(self, name: str, default: Any = None) -> Any:
        """The header in whatever case, or `default`."""
        return super().get(self._spelled(name), default)

    def pop(self, name: str, *default: Any) -> Any:
        """Take the header out, in whatever case."""
        return super().pop(self._spelled(name), *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The header in whatever case, or `default` from now on."""
        return super().setdefault(self._spelled(name), default)

    def _spelled(self, name: Any) -> Any:
        """The name as it stands here, where it does in any case."""
        if super().__contains__(name) or not isinstance(name, str):
            return name
        return next((each for each in self if each.lower() == name.lower()), name)


@dataclass(frozen=True, slots=True)
class Part:
    """One input parameter: a form field, or the body itself."""

    name: str
    content_type: str
    value: bytes


def row_of(content: bytes, headers: Sequence[tuple[str, str]], route: Route) -> tuple[dict[str, Any], Headers]:
    """The handler's row and its request headers.

    Raises `MessageInvalid` for a form that cannot be read.
    """
    given = {name: value for name, value in headers if name != CHANNEL_DATE}
    declared = given.get("content-type", "")
    parts = [Part(name, "", value.encode()) for name, value in route.parameters]
    parts += parts_of(content, declared)
    row = {part.name: _decoded(part) for part in parts}
    seen: dict[str, Any] = {part.name: {"content-type": part.content_type} for part in parts}
    return row, Headers(seen | given | route.headers)


def parts_of(content: bytes, declared: str) -> Iterator[Part]:
    """The fields of a form, or the whole body as one part."""
    bare = declared.partition(";")[0].strip()
    boundary = _options(declared).get(b"boundary") if bare.lower() == MULTIPART else None
    if boundary is not None:  # without one the frontend sees a body like any other
        yield from _multipart(content, boundary)
    elif bare.lower() == FORM:
        yield from _form(content)
    else:
        yield Part("body", bare, content)


def _form(content: bytes) -> Iterator[Part]:
    """As the frontend reads one: UTF-8, up to the first end of a line, whole escapes only."""
    from urllib.parse import parse_qsl

    octets = _LINE_END.split(content, 1)[0]
    if _ESCAPE_CUT.search(octets):
        raise MessageInvalid("an escape in the form is cut")
    try:
        fields = parse_qsl(octets.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_PARTS)
    except ValueError as error:
        raise MessageInvalid("the form cannot be read") from error
    for name, value in fields:
        yield Part(name, "", value.encode())


def _options(declared: str) -> dict[bytes, bytes]:
    """The parameters of a header value, of which each character is one byte."""
    from python_multipart.multipart import parse_options_header

    options: dict[bytes, bytes] = parse_options_header(declared)[1]
    return options


def _multipart(content: bytes, boundary: bytes) -> Iterator[Part]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    reader = _PartReader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.logger = _SILENT
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise MessageInvalid("the multipart body cannot be read") from error
    for headers, value in reader.parts:
        disposition = _options(headers.get("content-disposition", ""))
        if b"name" not in disposition:
            raise MessageInvalid("a multipart part without a name")
        declares = headers.get("content-type", OCTETS)
        kind = declares.partition(";")[0].strip() if b"filename" in disposition else ""
        yield Part(disposition[b"name"].decode("utf-8", "replace"), kind, value)


class _PartReader:
    """Collects what the multipart parser calls back with."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[str, str], bytes]] = []
        self._headers: dict[str, str] = {}
        self._name, self._value, self._data = bytearray(), bytearray(), bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MOST_PARTS:
            raise MessageInvalid(f"more than {MOST_PARTS} parts in a multipart body")
        self._headers, self._data = {}, bytearray()

    def _header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")  # one character a byte
        self._name, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        self.parts.append((self._headers, bytes(self._data)))


def _decoded(part: Part) -> Any:
    """The value as TorchServe's worker would hand it over (TS_DECODE_INPUT_REQUEST at its default)."""
    try:
        if part.content_type == "application/json":
            return json.loads(part.value.decode("utf-8"))
        if part.content_type.startswith("text"):
            return part.value.decode("utf-8")
    except (ValueError, RecursionError):
        pass
    return bytearray(part.value)


def answer_bytes(answer: Any) -> bytes:
    """The bytes of one item that a handler returned; raises `TypeError` for what JSON cannot hold."""
    if isinstance(answer, bytes | bytearray):
        return bytes(answer)
    if isinstance(answer, str):
        return answer.encode("utf-8")
    import torch

    if isinstance(answer, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        return buffer.getvalue()
    return json.dumps(answer, indent=2).encode("utf-8")
