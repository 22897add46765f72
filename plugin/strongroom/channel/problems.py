"""What the outside sees when something goes wrong: one row per case, as data (docs/protocol.md section 6).

One text per row. No reason, length or stack trace from the inside; nothing depends on plaintext.
What was opened is answered 200 outside and with one of these, encapsulated, inside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from strongroom.channel.bhttp import Response
from strongroom.encoding import parse_json
from strongroom.errors import (
    ChannelError,
    DateRefused,
    EncapsulationInvalid,
    KeyUnknown,
    MalformedInput,
    MessageInvalid,
    ReplayRefused,
    StreamTruncated,
)

PROBLEM_TYPE = "application/problem+json"
OHTTP_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key"
DATE = "https://iana.org/assignments/http-problem-types#date"
BLANK = "about:blank"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document (RFC 9457): HTTP status, type and title."""

    status: int
    type: str
    title: str

    @classmethod
    def parse(cls, octets: bytes) -> Problem:
        """From somebody's document, leniently: only the three members are read; raises `MalformedInput`."""
        members = parse_json(octets, where="problem document", limit=64 * 1024)
        if not isinstance(members, dict):
            raise MalformedInput("problem document: an object is expected")
        status, kind, title = members.get("status", 0), members.get("type", BLANK), members.get("title", "")
        if not isinstance(status, int) or not isinstance(kind, str) or not isinstance(title, str):
            raise MalformedInput("problem document: a member has the wrong type")
        return cls(status, kind, title)

    def serialise(self) -> bytes:
        """The JSON document."""
        return json.dumps({"type": self.type, "title": self.title, "status": self.status}).encode()

    def response(self, headers: tuple[tuple[str, str], ...] = ()) -> Response:
        """As an inner response, to be encapsulated; `headers` may add a Date."""
        return Response(self.status, (("content-type", PROBLEM_TYPE), *headers), self.serialise())


# -- outside, not encapsulated ---------------------------------------------------------

NOT_OURS = Problem(415, BLANK, "This endpoint takes encapsulated requests only.")
KEY_UNKNOWN = Problem(400, OHTTP_KEY, "The key configuration is unknown or outdated.")
NOT_OPENED = Problem(422, OHTTP_KEY, "The encapsulated request does not open.")
SEEN_BEFORE = Problem(409, BLANK, "This encapsulated request was seen before.")
TOO_LARGE = Problem(413, BLANK, "The request is larger than this server accepts.")
TOO_MANY_NONCES = Problem(429, BLANK, "Fresh evidence is made at a bounded rate; ask without a nonce or later.")
UNAVAILABLE = Problem(503, BLANK, "The model is not available at the moment.")

# -- inside, encapsulated in a 200 -----------------------------------------------------

BAD_MESSAGE = Problem(400, BLANK, "The encapsulated message is not valid Binary HTTP.")
BAD_DATE = Problem(400, DATE, "The Date field is missing or outside the accepted window.")
WRONG_TARGET = Problem(421, BLANK, "The encapsulated request names another model than the one it was sent to.")
NO_EXPECT = Problem(417, BLANK, "Expect is not supported inside an encapsulated request.")
HEADERS_TOO_LARGE = Problem(431, BLANK, "The fields of the request are larger than this server accepts.")
CONTENT_TOO_LARGE = Problem(413, BLANK, "The content of the request is larger than this server accepts.")
HANDLER_FAILED = Problem(500, BLANK, "The model could not answer this request.")


def response_too_large(size: int, limit: int) -> Problem:
    """An answer over the frontend's limit; both numbers are bytes, and only the client sees them."""
    return Problem(413, BLANK, f"The answer has {size} bytes; this server may send {limit} (max_response_size).")


def outer_problem(error: ChannelError) -> Problem:
    """The unencapsulated answer to a request that could not be opened."""
    if isinstance(error, KeyUnknown):
        return KEY_UNKNOWN
    if isinstance(error, ReplayRefused):
        return SEEN_BEFORE
    if isinstance(error, EncapsulationInvalid | StreamTruncated):
        return NOT_OPENED
    return UNAVAILABLE


def inner_problem(error: ChannelError) -> Problem:
    """The encapsulated answer to a request that opened and is refused."""
    if isinstance(error, DateRefused):
        return BAD_DATE
    if isinstance(error, MessageInvalid):
        if error.status == 413:  # the size is the client's own, and the client alone reads this
            return Problem(413, BLANK, f"{CONTENT_TOO_LARGE.title[:-1]}: {error} (max_request_size).")
        return HEADERS_TOO_LARGE if error.status == 431 else BAD_MESSAGE
    return HANDLER_FAILED
