"""What every request passes before it is routed: a request id, a limit for its body, one log line."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import guard
from api.addresses import Networks
from model import tracing
from model.base import new_id
from model.metrics import ACCEPTANCE_SECONDS, REQUEST_SECONDS, REQUESTS

MAX_BODY = 1024 * 1024
_UPLOAD = re.compile(r"POST (/v1/images/[^/]+/upload)|PUT (/v1/sessions/[^/]+/(files/.*|archive))", re.DOTALL)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: What a path is counted as that no route has: anybody may ask for any.
UNKNOWN = "unknown"
ACCEPTED, LAST_STATUS, SERVER_ERROR, BROKEN = 202, 599, 500, 1011
log = structlog.get_logger()


class StreamBroken(Exception):
    """The source of an answer that has begun failed."""


class Http:
    """Plain ASGI middleware: the request path is too hot for more."""

    def __init__(
        self,
        app: ASGIApp,
        bug: Callable[[Request, Exception], Awaitable[Response]],
        leaving: asyncio.Event,
        trusted: Networks = (),
    ) -> None:
        self._app = app
        self._trusted = trusted
        self._bug = bug
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with tracing.serve(_method_of(scope), headers) as span:
            await self._answer(scope, receive, send, headers, span)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers, span: tracing.Span) -> None:
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else str(new_id())
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, **_traced())
        began = time.perf_counter()
        status = 0
        answered_at = 0.0
        waited = False
        received = 0
        unlimited = _UPLOAD.fullmatch(f"{scope.get('method')} {scope['path']}")  # limits itself

        async def count(message: Message) -> None:
            nonlocal status, answered_at, waited
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                    answered_at = time.perf_counter()
                    waited = self._mark(message, request_id, scope)
                case "websocket.accept":
                    status = 101
                    answered_at = time.perf_counter()
                    message.setdefault("headers", [])
                    self._mark(message, request_id, scope)
                case "websocket.close":
                    status = message["code"]
            await send(message)

        async def limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY and not unlimited:
                raise HTTPException(413)
            return message

        try:
            await self._app(scope, limit, count)
        except StreamBroken as broken:  # the connection is cut: so its end cannot be taken for the stream's
            log.warning("http.stream_broken", error=str(broken))
        except Exception as error:  # an error of ours: answered, and logged whole
            if status:
                raise
            await (await self._bug(Request({**scope, "type": "http"}), error))(scope, receive, count)
        finally:
            route = route_of(scope)
            _count(scope, route, status, answered_at - began if answered_at else None, waited=waited)
            span.rename(f"{_method_of(scope)} {route}")
            span.note(http_route=route, http_response_status_code=status, request_id=request_id)
            if _is_failure(status):
                span.failed(str(status))
            log.info(
                f"{scope['type']}.request",
                method=scope.get("method", "GET"),
                path=scope["path"],
                status=status,
                milliseconds=round((time.perf_counter() - began) * 1000, 1),
            )

    def _mark(self, message: Message, request_id: str, scope: Scope) -> bool:
        """Give an answer its request's id, its trace, and what every answer tells; whether it was waited for."""
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = request_id
        if scope["type"] == "http" and self._leaving.is_set():
            # Who kept the connection for its next request would send that while it is being closed.
            headers["connection"] = "close"
        if (traceparent := tracing.traceparent()) is not None:
            headers["traceparent"] = traceparent
        guard.mark(message, scope, self._trusted)
        return "preference-applied" in headers


def _traced() -> dict[str, str]:
    trace_id = tracing.trace_id()
    return {} if trace_id is None else {"trace_id": trace_id}


def _method_of(scope: Scope) -> str:
    """Of all that a client may say, what is told apart."""
    if scope["type"] == "websocket":
        return "WEBSOCKET"
    return scope["method"] if scope["method"] in _METHODS else "OTHER"


def _is_failure(status: int) -> bool:
    """Of a request's status, or the code with which its WebSocket closed (RFC 6455: 1000 is well, 1011 an error of
    ours)."""
    return not status or SERVER_ERROR <= status <= LAST_STATUS or status == BROKEN


def route_of(scope: Scope) -> str:
    """The template of a request's path; UNKNOWN where no route has it."""
    path: str = getattr(scope.get("route"), "path", UNKNOWN)
    return UNKNOWN if path == "/{path:path}" else path


def _count(scope: Scope, route: str, status: int, seconds: float | None, *, waited: bool) -> None:
    method = _method_of(scope)
    # Beyond: the codes with which WebSockets close; 0: the caller went before there was an answer.
    kind = f"{status // 100}xx" if 0 < status <= LAST_STATUS else "closed" if status else "none"
    REQUESTS.labels(method, route, kind).inc()
    if seconds is not None:
        REQUEST_SECONDS.labels(method, route).observe(seconds)
        if status == ACCEPTED and not waited:
            ACCEPTANCE_SECONDS.observe(seconds)
