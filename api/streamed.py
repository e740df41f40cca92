"""An answer that is a stream, whose source is closed however it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.http import StreamBroken

#: Pings keep an idle WebSocket alive on its way. A client that reads slowly answers late: it is not gone yet.
PING_SECONDS, PONG_SECONDS = 20, 300
#: A connection whose other end has gone without a word is found dead after a minute, however quiet it is.
IDLE_SECONDS, PROBE_SECONDS, PROBES = 30, 10, 3


#: A client that takes nothing for so long is cut off.
WRITE_SECONDS = 30.0


class Streamed(StreamingResponse):
    """Nothing on the way may collect or keep it."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, ended: Callable[[], None]) -> None:
        super().__init__(content, media_type=media_type)
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._ended = ended

    def let_go(self) -> None:
        """Of what is not answered after all."""
        self._ended()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


class Bounded(StreamingResponse):
    """A stream that goes on for ever, and whose client may come again: one that takes nothing is cut off."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, ended: Callable[[], None]) -> None:
        super().__init__(content, media_type=media_type)
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bounded(message: Message) -> None:
            await within_patience(scope, send(message))

        try:
            async with aclosing(self.body_iterator):  # type: ignore[type-var]  # it is a generator
                await super().__call__(scope, receive, bounded)
        finally:
            self._ended()


async def within_patience(scope: Scope, sending: Awaitable[None]) -> None:
    """Send, or cut the connection off: a goodbye would wait behind what is not taken. Raises StreamBroken."""
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await sending
    except TimeoutError:
        if abort := scope["state"].get("abort"):
            abort()
        raise StreamBroken(f"its client took nothing for {WRITE_SECONDS:g} s") from None


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
