"""The broker's HTTP face: Starlette routes over `release.Broker` (docs/release.md sections 2 to 8 and 14).

Bodies are read with a size limit and a time limit; every refusal has the protocol's exact shape; what
went wrong inside becomes a refusal without detail, never a traceback. Work happens in threads, since
judging evidence is arithmetic.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from strongroom.broker import desk
from strongroom.broker.admin import Administrator, authenticate
from strongroom.broker.metrics import exposition
from strongroom.broker.pace import Pace
from strongroom.broker.protocol import BASE_PATH, BODY_LIMIT, SESSION_COOKIE, Resource
from strongroom.broker.refusals import Refused
from strongroom.broker.release import Broker
from strongroom.broker.sessions import Session
from strongroom.encoding import canonical_json
from strongroom.errors import MalformedInput, StrongroomError

log = logging.getLogger("strongroom.broker")

BODY_SECONDS = 30.0
"""How long a peer may take to send a body."""

UNHEALTHY = "decisions cannot be recorded, so nothing is released; the broker's log and `broker status` say why"

Handler = Callable[[Request], Awaitable[Response]]


class BodyRefused(Exception):
    """Refused before it was looked at; `status` is 413 (too large), 408 (too slow) or 429 (too often)."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def application(broker: Broker, *, pace: Pace | None = None) -> Starlette:
    """The ASGI application of one broker."""
    face = _Face(broker, pace or Pace())
    base = BASE_PATH
    segments = "/{repository}/{type}/{tag}"
    routes = [
        Route(f"{base}/auth", face.guarded(face.auth), methods=["POST"]),
        Route(f"{base}/attest", face.guarded(face.attest), methods=["POST"]),
        Route(f"{base}/resource{segments}", face.guarded(face.resource), methods=["GET"]),
        Route(f"{base}/resource{segments}", face.guarded(face.administrate("put_resource")), methods=["POST"]),
        Route(f"{base}/resource{segments}", face.guarded(face.administrate("delete_resource")), methods=["DELETE"]),
        Route(f"{base}/resource-policy", face.guarded(face.administrate("set_release_policy")), methods=["POST"]),
        Route(f"{base}/resource-policy", face.guarded(face.administrate("get_release_policy")), methods=["GET"]),
        Route(f"{base}/attestation-policy", face.guarded(face.administrate("set_appraisal_policy")), methods=["POST"]),
        Route(f"{base}/attestation-policy", face.guarded(face.administrate("get_appraisal_policy")), methods=["GET"]),
        Route(f"{base}/reference-value", face.guarded(face.reference_value), methods=["POST"]),
        Route(f"{base}/reference-value/{{id}}", face.guarded(face.reference_value), methods=["GET"]),
        *[
            Route(f"{base}/strongroom/admin/{path}", face.guarded(face.administrate(name)), methods=[method])
            for (method, path, name) in desk.ROUTES
        ],
        Route(f"{base}/strongroom/epoch{segments}", face.guarded(face.epoch), methods=["GET"]),
        Route(f"{base}/{{plugin}}/{{rest:path}}", face.guarded(face.unknown_plugin), methods=["GET", "POST", "DELETE"]),
        Route("/healthz", face.health, methods=["GET"]),
        Route("/metrics", face.metrics, methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={404: _no_such_path, 405: _no_such_path})


async def _no_such_path(request: Request, error: Exception) -> Response:
    return _refusal(Refused.path("no route"))


def _refusal(refusal: Refused) -> Response:
    return _plain(json.dumps(refusal.information.serialise(), separators=(",", ":")).encode(), refusal.status)


def _plain(body: bytes, status: int) -> Response:
    """An answer without a content type, as a Trustee's errors are."""
    return Response(body, status)


def _json(value: Any) -> Response:
    return Response(json.dumps(value, separators=(",", ":")), media_type="application/json")


async def read_body(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The whole body, or `BodyRefused`."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limit:
        raise BodyRefused(413)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise BodyRefused(413)
    except (TimeoutError, ClientDisconnect) as error:
        raise BodyRefused(408) from error
    return bytes(body)


def bearer_of(request: Request) -> str | None:
    """The token of an ``Authorization: Bearer`` header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" and token else None


class _Face:
    def __init__(self, broker: Broker, pace: Pace) -> None:
        self._broker = broker
        self._pace = pace

    def guarded(self, handler: Handler) -> Handler:
        """Slow down who asks too often, turn refusals into answers, and surprises into a refusal without detail."""

        async def handle(request: Request) -> Response:
            try:
                if not self._pace.admits(request.client.host if request.client else ""):
                    raise BodyRefused(429)
                return await handler(request)
            except Refused as refusal:
                log.info("%s %s refused: %s", request.method, request.url.path, refusal)
                return _refusal(refusal)
            except BodyRefused as refused:
                answer = _plain(b"", refused.status)
                if refused.status == 429:
                    answer.headers["retry-after"] = "1"
                return answer
            except MalformedInput as error:
                return _refusal(Refused.plugin(str(error)))
            except StrongroomError as error:
                log.error("%s %s failed: %s", request.method, request.url.path, error)
                return _refusal(Refused.unable(str(error)))
            except Exception:
                # The peer learns nothing; the traceback is ours. It holds no key: keys have no repr.
                log.exception("%s %s failed unexpectedly", request.method, request.url.path)
                return _refusal(Refused.unable("an error of ours"))

        return handle

    # -- the protocol ----------------------------------------------------------------

    async def auth(self, request: Request) -> Response:
        session = await run_in_threadpool(self._broker.handshakes.auth, await read_body(request))
        return self._with_cookie(_json(session.challenge.serialise()), session)

    async def attest(self, request: Request) -> Response:
        body = await read_body(request)
        session = await run_in_threadpool(self._broker.handshakes.attest, request.cookies.get(SESSION_COOKIE), body)
        return self._with_cookie(_json({"token": session.token}), session)

    def _with_cookie(self, response: Response, session: Session) -> Response:
        left = session.expires - self._broker.sessions.now()
        expires = formatdate(self._broker.clock() + left, usegmt=True)
        response.headers["set-cookie"] = f"{SESSION_COOKIE}={session.id}; Expires={expires}"
        return response

    async def resource(self, request: Request) -> Response:
        name = Resource(*(request.path_params[each] for each in ("repository", "type", "tag")))
        cookie = request.cookies.get(SESSION_COOKIE)
        jwe = await run_in_threadpool(self._broker.resource, cookie, bearer_of(request), name)
        return _json(jwe.serialise())

    async def epoch(self, request: Request) -> Response:
        name = Resource(*(request.path_params[each] for each in ("repository", "type", "tag")))
        cookie, query = request.cookies.get(SESSION_COOKIE), dict(request.query_params)
        jwe = await run_in_threadpool(self._broker.epoch, cookie, bearer_of(request), name, query)
        return _json(jwe.serialise())

    async def unknown_plugin(self, request: Request) -> Response:
        raise Refused.unknown_plugin(str(request.path_params["plugin"])[:64])

    # -- administration ----------------------------------------------------------------

    def administrate(self, what: str) -> Handler:
        """A handler that runs `desk.<what>` for an authenticated administrator."""
        act = getattr(desk, what)

        async def handle(request: Request) -> Response:
            who = await run_in_threadpool(self._who, request)
            body = await read_body(request)
            query = dict(request.query_params)
            answer = await run_in_threadpool(act, self._broker, who, dict(request.path_params), query, body)
            if answer is None:
                return Response(b"")
            if isinstance(answer, bytes):
                return Response(answer, media_type="application/octet-stream")
            return Response(canonical_json(answer), media_type="application/json")

        return handle

    def _who(self, request: Request) -> Administrator:
        broker = self._broker
        return authenticate(broker.store, broker.id, request.headers.get("authorization"), now=broker.clock())

    async def reference_value(self, request: Request) -> Response:
        await run_in_threadpool(self._who, request)
        raise Refused("RvpsError", "RVPS error", "reference values stand in the appraisal policy of this broker")

    # -- operations ----------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """Empty 200 while decisions can be recorded; 503 with a sentence otherwise, and the cause in our log alone."""
        trouble = await run_in_threadpool(self._broker.journal.trouble)
        return Response(UNHEALTHY, 503, media_type="text/plain") if trouble else Response("")

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        text = await run_in_threadpool(exposition, self._broker)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
