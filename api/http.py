"""What every request passes before it is routed: a request id, a limit for its body, one log line."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.base import new_id

MAX_BODY = 1024 * 1024
_UPLOAD = re.compile(r"/v1/images/[^/]+/upload")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
log = structlog.get_logger()


class StreamBroken(Exception):
    """The source of an answer that has begun failed."""


class Http:
    """Plain ASGI middleware: the request path is too hot for more."""

    def __init__(self, app: ASGIApp, bug: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._bug = bug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else str(new_id())
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        status = 0
        received = 0
        unlimited = scope.get("method") == "POST" and _UPLOAD.fullmatch(scope["path"])  # limits itself

        async def count(message: Message) -> None:
            nonlocal status
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message)["x-request-id"] = request_id
                case "websocket.accept":
                    status = 101
                    message.setdefault("headers", [])
                    MutableHeaders(scope=message)["x-request-id"] = request_id
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
            log.info(
                f"{scope['type']}.request",
                method=scope.get("method", "GET"),
                path=scope["path"],
                status=status,
                milliseconds=round((time.perf_counter() - began) * 1000, 1),
            )
