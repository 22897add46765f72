"""The door of the evidence room: JSON bodies and byte strings come in here, or are refused.

`at_the_door` turns every refusal of the strict readers (`MalformedInput`, `RecursionError`)
into `EvidenceMalformed`, so that a verifier's caller meets one error for "cannot be parsed".
`Der` reads the little ASN.1 that hides inside certificate extensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from strongroom.encoding import Fields, unb64
from strongroom.errors import EvidenceMalformed, MalformedInput


@contextmanager
def at_the_door(what: str) -> Iterator[None]:
    """Run a parser; its `MalformedInput` leaves as `EvidenceMalformed` that names `what`."""
    try:
        yield
    except EvidenceMalformed:
        raise
    except (MalformedInput, RecursionError) as error:
        raise EvidenceMalformed(f"{what}: {error}", hint="get the evidence again, and send it unchanged") from error


def base64_field(fields: Fields, name: str, *, limit: int) -> bytes:
    """A member in standard base64 of at most `limit` bytes; raises `MalformedInput`."""
    octets = unb64(fields.text(name, limit=4 * (limit // 3 + 1)), where=f"{fields.where}: {name}")
    if len(octets) > limit:
        raise MalformedInput(f"{fields.where}: {name} has {len(octets)} bytes, the limit is {limit}")
    return octets


class Der:
    """A strict cursor over DER (X.690 section 10): definite, minimal lengths, low tag numbers.

    Raises `MalformedInput` for anything else, and from `done` for bytes that are left over.
    """

    SEQUENCE, OCTET_STRING, INTEGER, OID, ENUMERATED, BOOLEAN = 0x30, 0x04, 0x02, 0x06, 0x0A, 0x01

    def __init__(self, octets: bytes, *, where: str) -> None:
        self._octets = octets
        self._at = 0
        self._where = where

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._octets) - self._at

    def _fail(self, trouble: str) -> MalformedInput:
        return MalformedInput(f"{self._where}: {trouble} at offset {self._at}")

    def any(self) -> tuple[int, bytes]:
        """The next element: its tag byte and its contents."""
        head = self._octets[self._at : self._at + 2]
        if len(head) < 2 or head[0] & 0x1F == 0x1F:
            raise self._fail("no DER element")
        size, start = head[1], self._at + 2
        if size >= 0x80:
            count = size - 0x80
            spelled = self._octets[start : start + count]
            size = int.from_bytes(spelled, "big")
            if not 1 <= count <= 3 or len(spelled) != count or spelled[0] == 0 or size < 0x80:
                raise self._fail("a length that is not DER")
            start += count
        if start + size > len(self._octets):
            raise self._fail("an element that is longer than its container")
        self._at = start + size
        return head[0], self._octets[start : self._at]

    def take(self, tag: int) -> bytes:
        """The contents of the next element, which must have this tag."""
        found, contents = self.any()
        if found != tag:
            raise self._fail(f"tag {found:#04x} where {tag:#04x} is expected, before")
        return contents

    def inside(self, tag: int = SEQUENCE) -> Der:
        """A cursor over the next element's contents."""
        return Der(self.take(tag), where=self._where)

    def integer(self, tag: int = INTEGER) -> int:
        """A non-negative, minimally encoded integer (or ENUMERATED)."""
        contents = self.take(tag)
        negative_or_padded = not contents or contents[0] & 0x80 or (len(contents) > 1 and contents[:1] == b"\0")
        if negative_or_padded and not (len(contents) > 1 and contents[0] == 0 and contents[1] & 0x80):
            raise self._fail("a negative or padded integer before")
        return int.from_bytes(contents, "big")

    def oid(self) -> str:
        """An object identifier in dotted form."""
        contents = self.take(self.OID)
        arcs, arc = [], 0
        for octet in contents:
            arc = arc << 7 | octet & 0x7F
            if not octet & 0x80:
                arcs.append(arc)
                arc = 0
        if not contents or contents[-1] & 0x80:
            raise self._fail("a truncated object identifier before")
        first = min(arcs[0] // 40, 2)
        return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]]))

    def done(self) -> None:
        """Refuse what is left over."""
        if self.left:
            raise self._fail(f"{self.left} bytes after the end,")
