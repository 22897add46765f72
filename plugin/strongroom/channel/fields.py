"""HTTP fields and control data as Binary HTTP carries them: what is valid, and what is dropped.

A field is a pair of strings: the name in lower case, the value in Latin-1, so that each character
is one octet (RFC 9292 section 3.6). Everything invalid raises `MessageInvalid`; no message quotes
a field, since fields are plaintext.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from strongroom.channel.varint import read_varint, varint
from strongroom.errors import MessageInvalid

Headers = tuple[tuple[str, str], ...]
"""Field lines in their order; repeated names stay separate."""

_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_NOT_IN_VALUES = re.compile(rb"[\x00\r\n]")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*\Z")
_VISIBLE = re.compile(rb"[\x21-\x7e]*\Z")
_RESERVED = frozenset((b":method", b":scheme", b":authority", b":path", b":status"))

_USUAL = {
    name.encode(): name
    for name in (
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "host",
        "user-agent",
    )
}
"""Names that nearly every message has; they need no look at their bytes."""

HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Connection-specific fields: not an error when received, and dropped before anything acts on them."""


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """`headers` without connection-specific fields, those that `connection` names included."""
    headers = tuple(headers)
    named = {
        token.strip().lower() for name, value in headers if name.lower() == "connection" for token in value.split(",")
    }
    return tuple((name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | named)


def first(headers: Headers, name: str) -> str | None:
    """The value of the first line called `name` (lower case), or None."""
    return next((value for each, value in headers if each == name), None)


def check_line(name: bytes, value: bytes, *, pseudo_allowed: bool) -> None:
    """Refuse what RFC 9292 section 3.6 forbids; pseudo-fields may stand before all others only."""
    if name not in _USUAL and not _NAME.match(name):
        raise MessageInvalid("a field name holds a byte that HTTP does not permit")
    if _NOT_IN_VALUES.search(value) or value.strip(b" \t") != value:
        raise MessageInvalid("a field value holds NUL, CR or LF, or has white space at an end")
    if name[0] == 0x3A:
        if name in _RESERVED:
            raise MessageInvalid("a pseudo-field of the control data stands among the fields")
        if not pseudo_allowed:
            raise MessageInvalid("a pseudo-field stands behind other fields or in the trailers")


def decode_line(name: bytes, value: bytes, before: list[tuple[str, str]], *, trailers: bool) -> tuple[str, str]:
    """One field line, checked against RFC 9292 section 3.6 and what stands `before` it."""
    name = name.lower()
    check_line(name, value, pseudo_allowed=not trailers and (not before or before[-1][0][0] == ":"))
    return _USUAL.get(name) or name.decode("ascii"), value.decode("latin-1")


def decode_section(section: bytes, limit: int, *, trailers: bool) -> list[tuple[str, str]]:
    """Every line of a known-length field section, at most `limit`; raises `MessageInvalid`."""
    lines: list[tuple[str, str]] = []
    at, end = 0, len(section)
    while at < end:
        parts = []
        for _ in range(2):
            size = section[at] if at < end else 64
            if size < 64:  # nearly always: one byte of length
                at += 1
            else:
                read = read_varint(section, at)
                size, at = read if read is not None else (end, end + 1)
            parts.append(section[at : at + size])
            at += size
            if at > end:
                raise MessageInvalid("a field line runs over the end of its section")
        if len(lines) == limit:
            raise MessageInvalid(f"more than {limit} field lines", status=431)
        lines.append(decode_line(parts[0], parts[1], lines, trailers=trailers))
    return lines


def encode_lines(headers: Headers, *, trailers: bool = False) -> bytes:
    """Field lines, names in lower case; raises `MessageInvalid` for what `decode_line` would refuse."""
    lines = bytearray()
    pseudo_allowed = not trailers
    for name, value in headers:
        try:
            raw_name, raw_value = name.lower().encode("ascii"), value.encode("latin-1")
        except UnicodeEncodeError:
            raise MessageInvalid("a field holds characters outside Latin-1") from None
        check_line(raw_name, raw_value, pseudo_allowed=pseudo_allowed)
        pseudo_allowed = pseudo_allowed and raw_name[0] == 0x3A
        lines += varint(len(raw_name)) + raw_name + varint(len(raw_value)) + raw_value
    return bytes(lines)


def decode_control(method: bytes, scheme: bytes, authority: bytes, path: bytes) -> tuple[str, str, str, str]:
    """A request's control data under HTTP/2's rules (RFC 9113 section 8.3.1)."""
    if not _METHOD.match(method):
        raise MessageInvalid("the method is not a token")
    if not _VISIBLE.match(authority) or not _VISIBLE.match(path):
        raise MessageInvalid("the authority or the path holds white space, a control or a non-ASCII byte")
    if method == b"CONNECT":
        if scheme or path or not authority:
            raise MessageInvalid("a CONNECT request has an authority and nothing else")
    elif not _SCHEME.match(scheme):
        raise MessageInvalid("the scheme is not a scheme")
    elif not path.startswith(b"/") and not (method == b"OPTIONS" and path == b"*"):
        raise MessageInvalid("the path does not start with a slash")
    return method.decode(), scheme.decode(), authority.decode(), path.decode()


def encode_control(method: str, scheme: str, authority: str, path: str) -> bytes:
    """The four strings of a request's control data; raises `MessageInvalid`."""
    try:
        raw = [each.encode("ascii") for each in (method, scheme, authority, path)]
    except UnicodeEncodeError:
        raise MessageInvalid("the control data holds a non-ASCII character") from None
    decode_control(*raw)
    return b"".join(varint(len(each)) + each for each in raw)
