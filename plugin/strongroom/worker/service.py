"""Sealed requests in, sealed answers out, for any serving framework that hands over a batch of bodies.

Each item of a batch is opened, judged and answered on its own: what does not open never reaches the
user's handler and never sinks its neighbours. What was opened is answered 200 outside, whatever the inner
status; what was not gets a problem document that says its class and nothing else (docs/protocol.md
section 6).

This module knows the channel and the keeper. The framework's skin turns its own batch into `Outer` items
and brings an `Inner` that runs the user's handler.
"""

from __future__ import annotations

import calendar
import email.utils
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from strongroom.channel import chunked, ohttp, problems
from strongroom.channel.bhttp import Limits, Request, Response
from strongroom.channel.bundle import BUNDLE_TYPE, KEYS_REQUEST_TYPE, KeysRequest
from strongroom.channel.fields import end_to_end
from strongroom.channel.hpke import RecipientContext
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.channel.padding import NO_PADDING, Padding
from strongroom.channel.problems import Problem
from strongroom.errors import (
    ChannelError,
    EncapsulationInvalid,
    MalformedInput,
    MessageInvalid,
    NonceRateExceeded,
    StreamTruncated,
    StrongroomError,
)
from strongroom.worker.link import Link, Settings, Settled
from strongroom.worker.streams import BatchStream, Send

_log = logging.getLogger(__name__)

NO_STORE = ("cache-control", "no-store")
INCREMENTAL = ("incremental", "?1")
"""RFC 10036: intermediaries are asked not to wait for the end."""

_IMF_FIXDATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT\Z", re.ASCII)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Outer:
    """One item as it arrived: its media type, its body, and whether its answer may leave in pieces."""

    media_type: str
    body: bytes | bytearray | memoryview = field(repr=False)
    streams: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the host for one item."""

    status: int
    media_type: str
    body: bytes | bytearray = field(repr=False)
    headers: tuple[tuple[str, str], ...] = (NO_STORE,)

    @classmethod
    def problem(cls, problem: Problem) -> Answer:
        """An answer that is not encapsulated."""
        return cls(problem.status, problems.PROBLEM_TYPE, problem.serialise())


class Inner(Protocol):
    """The user's handler behind a framework's skin."""

    def __call__(self, requests: Sequence[Request], indices: Sequence[int], stream: BatchStream) -> Sequence[Response]:
        """Answer opened requests; `indices` are their places in the batch. Never raises.

        What is sent before the end goes to `stream.emit`, by place in the batch.
        """


@dataclass(slots=True)
class Exchange:
    """One opened request on its way to its answer."""

    index: int
    form: Form
    enc: bytes
    context: RecipientContext
    request: Request | None = None
    refusal: Response | None = None
    sealer: chunked.ResponseSealer | None = None

    def __post_init__(self) -> None:
        if self.form is Form.CHUNKED:
            self.sealer = chunked.ResponseSealer(self.context, self.enc)

    def sealed(self, response: Response, padding: Padding, limit: int) -> Answer:
        """The encapsulated answer; a content over `limit` bytes becomes an error."""
        if len(response.content) > limit:
            response = problems.response_too_large(len(response.content), limit).response()
        message = response.serialise()
        room = max(limit, len(message)) - len(message)  # padding alone takes no message over the limit
        message += bytes(min(padding.padding(len(message)), room))
        if self.sealer is None:
            body: bytes | bytearray = ohttp.seal_response(self.context, self.enc, message)
        else:
            body = self.sealer.front + self.sealer.seal(message) + self.sealer.finish()
        return self.answer(body)

    def answer(self, body: bytes | bytearray) -> Answer:
        """Sealed bytes as they go out: always 200, whatever is inside."""
        headers = (NO_STORE,) if self.form is Form.SINGLE else (NO_STORE, INCREMENTAL)
        return Answer(200, self.form.response_type, body, headers)


class SealedService:
    """Answers batches for one model. `limit` is the most bytes of one answer's content.

    The framework has to take somewhat more: the header fields, and what sealing adds (under one in 256).

    `settings` are the configuration's; whoever learns them later may set them.
    """

    def __init__(self, link: Link, *, limit: int, limits: Limits, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._link = link
        self._limit = limit
        self._limits = limits

    def answer(self, batch: Sequence[Outer], inner: Callable[[], Inner], send: Send | None = None) -> list[Answer]:
        """One answer for each item, in order. `send` lets streams go out before that.

        `inner` gives the handler, and may raise `KeeperError` while the model is not open: then every
        sealed item gets a 503, and nothing was reserved or decrypted.
        """
        answers: list[Answer | None] = [None] * len(batch)
        sealed: list[tuple[int, Form]] = []
        for index, outer in enumerate(batch):
            form = Form.of_request(outer.media_type)
            if form is not None:
                sealed.append((index, form))
            elif _bare(outer.media_type) == KEYS_REQUEST_TYPE:
                answers[index] = self.bundle(outer.body)
            else:
                answers[index] = Answer.problem(problems.NOT_OURS)
        if sealed:
            try:
                handler = inner()
                exchanges = self._opened(batch, sealed, answers)
                self._run(batch, exchanges, handler, answers, send)
            except StrongroomError as error:
                _log.warning("a batch of %d was not served: %s", len(sealed), type(error).__name__)
        return [Answer.problem(problems.UNAVAILABLE) if each is None else each for each in answers]

    def bundle(self, body: bytes | bytearray | memoryview | None = None) -> Answer:
        """The key bundle, for a keys request or (without a body) from the cache."""
        try:
            nonce = None if body is None else KeysRequest.parse(bytes(body)).nonce
            return Answer(200, BUNDLE_TYPE, self._link.bundle(nonce))
        except MalformedInput:
            return Answer.problem(Problem(400, problems.BLANK, "The keys request cannot be read."))
        except NonceRateExceeded:
            return Answer.problem(problems.TOO_MANY_NONCES)
        except StrongroomError as error:
            _log.warning("no key bundle: %s: %s", type(error).__name__, error)
            return Answer.problem(problems.UNAVAILABLE)

    def _opened(
        self, batch: Sequence[Outer], sealed: Sequence[tuple[int, Form]], answers: list[Answer | None]
    ) -> list[Exchange]:
        """Ask the keeper for every context at once, decrypt, and settle all before acting on any."""
        heads, rests = [], []
        for index, form in sealed:
            try:
                head, enc, rest = RequestHead.parse(batch[index].body)
            except ChannelError as error:
                answers[index] = Answer.problem(problems.outer_problem(error))
                continue
            heads.append((head.serialise(), enc, form is Form.CHUNKED))
            rests.append((index, form, enc, rest))
        if not heads:
            return []
        exchanges: list[Exchange] = []
        settled: list[tuple[Exchange | None, Settled]] = []
        for (index, form, enc, rest), granted in zip(rests, self._link.open(heads), strict=True):
            if isinstance(granted, StrongroomError):
                answers[index] = Answer.problem(_outer(granted))
                continue
            reservation, context = granted[0], RecipientContext.parse(granted[1])
            exchange = Exchange(index, form, enc, context)
            try:
                plaintext = self._plaintext(exchange, rest)
            except (EncapsulationInvalid, StreamTruncated):
                answers[index] = Answer.problem(problems.NOT_OPENED)
                settled.append((None, Settled(reservation, False, None)))
                continue
            self._read(exchange, plaintext)
            settled.append((exchange, Settled(reservation, True, _date(exchange.request))))
        refusals = self._link.settle([each for _, each in settled]) if settled else []
        for (opened, _), refusal in zip(settled, refusals, strict=True):
            if opened is None:
                continue
            exchanges.append(opened)
            if isinstance(refusal, ChannelError):
                opened.refusal = _dated(problems.inner_problem(refusal), getattr(refusal, "now", None))
            elif refusal is not None:
                raise refusal
        return exchanges

    def _plaintext(self, exchange: Exchange, ciphertext: memoryview) -> bytes:
        if exchange.form is Form.SINGLE:
            return ohttp.open_request(exchange.context, ciphertext)
        return chunked.open_request(exchange.context, ciphertext)

    def _read(self, exchange: Exchange, plaintext: bytes) -> None:
        try:
            exchange.request = Request.parse(plaintext, self._limits)
        except MessageInvalid as error:
            exchange.refusal = problems.inner_problem(error).response()
            return
        kept = end_to_end(exchange.request.headers)
        if len(kept) != len(exchange.request.headers):
            exchange.request = replace(exchange.request, headers=kept)
        if exchange.request.header("expect") is not None:
            exchange.refusal = problems.NO_EXPECT.response()

    def _run(
        self,
        batch: Sequence[Outer],
        exchanges: Sequence[Exchange],
        handler: Inner,
        answers: list[Answer | None],
        send: Send | None,
    ) -> None:
        for exchange in exchanges:
            if exchange.refusal is not None:
                answers[exchange.index] = exchange.sealed(exchange.refusal, NO_PADDING, self._limit)
        wanted = [each for each in exchanges if each.refusal is None]
        requests = [each.request for each in wanted if each.request is not None]
        if not requests:
            return
        sealers = {each.index: each.sealer if batch[each.index].streams else None for each in wanted}
        stream = BatchStream(
            sealers, send, gather=self.settings.gather, limit=self._limit, padding=self.settings.stream_padding
        )
        try:
            responses = handler(requests, [each.index for each in wanted], stream)
        finally:
            stream.close()
        for exchange, response in zip(wanted, responses, strict=True):
            try:
                last = stream.last(exchange.index, response)
                if isinstance(last, Response):
                    answers[exchange.index] = exchange.sealed(last, self.settings.padding, self._limit)
                else:
                    answers[exchange.index] = exchange.answer(last)
            except MessageInvalid:
                # A header that the handler set cannot be sent; its content is not at fault and not shown.
                failed = problems.HANDLER_FAILED.response()
                answers[exchange.index] = exchange.sealed(failed, NO_PADDING, self._limit)


def _outer(error: StrongroomError) -> Problem:
    return problems.outer_problem(error) if isinstance(error, ChannelError) else problems.UNAVAILABLE


def _bare(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()


def _date(request: Request | None) -> int | None:
    """The inner Date in seconds since 1970; one that cannot be read counts as none."""
    value = request.header("date") if request is not None else None
    if value is None:
        return None
    try:
        if (fixed := _IMF_FIXDATE.match(value)) is not None:  # what everybody sends; the others take their time
            day, month, *rest = fixed.groups()
            year, hour, minute, second = map(int, rest)
            return calendar.timegm((year, _MONTHS.index(month) + 1, int(day), hour, minute, second))
        return int(email.utils.parsedate_to_datetime(value).timestamp())
    except (ValueError, OverflowError):
        return None


def _dated(problem: Problem, now: float | None) -> Response:
    """With the Date of the clock that refused, so that the client may correct itself once."""
    return problem.response((("date", email.utils.formatdate(now, usegmt=True)),))
