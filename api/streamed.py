"""An answer that is a stream, whose source is closed however it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

#: Pings keep an idle WebSocket alive on its way. A client that reads slowly answers late: it is not gone yet.
PING_SECONDS, PONG_SECONDS = 20, 300
#: A connection whose other end has gone without a word is found dead after a minute, however quiet it is.
IDLE_SECONDS, PROBE_SECONDS, PROBES = 30, 10, 3


class Streamed(StreamingResponse):
    """Nothing on the way may collect or keep it."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, ended: Callable[[], None]) -> None:
        super().__init__(content, media_type=media_type)
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def keep_alive(sock: socket.socket) -> socket.socket:
    """Watch this connection, or those that this listener accepts."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    return sock


async def first_of(*works: Any) -> None:
    """Until one of them ends; the others are cancelled. Raises what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
