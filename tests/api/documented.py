"""Whether answers are what the OpenAPI document says of their route: its statuses, and their types."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.app import create_app
from api.http import route_of
from model.settings import Settings

#: A bug, which tests have a route do that has none; another method than the route's.
BESIDE = {405, 500}


@cache
def answers() -> dict[tuple[str, str], dict[int, set[str]]]:
    """Method and path → status → types."""
    document: Any = create_app(Settings(), None, None, None).openapi()  # type: ignore[arg-type]
    shared = document["components"]["responses"]
    found = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            found[method.upper(), path] = {
                int(status): set(shared.get(said.get("$ref", "").rpartition("/")[2], said).get("content", {}))
                for status, said in operation["responses"].items()
            }
    return found


class Documented:
    """An application that notes what it answers beside its document."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.strays: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._look(scope, message)
            await send(message)

        await self._app(scope, receive, noting)

    def _look(self, scope: Scope, message: Message) -> None:
        status = message["status"]
        template = re.sub(r":\w+}", "}", route_of(scope))
        known = answers().get((scope["method"], template))
        if known is None or status in BESIDE:
            return
        where = f"{scope['method']} {template}: {status}"
        types = [value.decode().partition(";")[0] for name, value in message["headers"] if name == b"content-type"]
        if status not in known:
            self.strays.add(where)
        elif not set(types) <= known[status]:
            self.strays.add(f"{where} {types[0]}")
