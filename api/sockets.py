"""WebSockets: who may open one, how it ends, and what its client is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from api import denials
from api.authentication import SUBPROTOCOL
from api.open_streams import Held
from api.streamed import first_of
from model.errors import CairnError, Unauthenticated

#: A close code of ours is this and the status that the same error has over HTTP.
CLOSE_CODES = 4000
ENDED, STOPPING, AGAIN_LATER = 1000, 1012, 1013
#: A close frame has room for no more.
REASON_BYTES = 123


async def accept(socket: WebSocket, **headers: str) -> None:
    """Open it; ``headers`` (with ``_`` for ``-``) go with the answer."""
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await socket.accept(SUBPROTOCOL if _is_browser(socket) else None, told)


@asynccontextmanager
async def told(socket: WebSocket) -> AsyncIterator[None]:
    """Errors as the client can see them: an HTTP answer, or a close code where it has none, or does not see it."""
    try:
        yield
    except WebSocketDisconnect:
        pass
    except CairnError as error:
        if socket.application_state is WebSocketState.CONNECTING:
            if not _is_browser(socket):
                raise
            denials.note(socket, error)
            await accept(socket)
        await close(socket, CLOSE_CODES + error.status, error)
    finally:
        if held := getattr(socket.state, "held", None):
            held.close()


async def close(socket: WebSocket, code: int, error: CairnError) -> None:
    reason = f"{error.code}: {error.message}".encode()[:REASON_BYTES].decode(errors="ignore")
    with contextlib.suppress(WebSocketDisconnect):
        await socket.close(code, reason)


async def relay(socket: WebSocket, out: Coroutine[Any, Any, None], back: Coroutine[Any, Any, None]) -> None:
    """Both ways, until the stream has ended, the client has gone, its key is revoked or the API stops."""
    stopping: asyncio.Event = socket.app.state.stopping
    held: Held | None = getattr(socket.state, "held", None)
    revoked = held.revoked if held is not None else asyncio.Event()
    await first_of(out, back, stopping.wait(), revoked.wait())
    if revoked.is_set():
        raise Unauthenticated("the API key was revoked")
    await socket.close(STOPPING if stopping.is_set() else ENDED)


async def ignored(socket: WebSocket) -> None:
    """Until the client goes; what it says is not for us."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
    raise WebSocketDisconnect


def _is_browser(socket: WebSocket) -> bool:
    return SUBPROTOCOL in socket.scope["subprotocols"]
