"""The API process. Program ``cairn-api``."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from api.anonymous import LOOPBACK
from api.app import create_app
from api.streamed import keep_alive
from model import logs, metrics
from model.settings import Settings, of_process
from worker import blob_store, chats, cron_acts, tracing
from worker.database import connect_async
from worker.temporal_client import connect
from worker.websocket import OPTIONS, TOO_LONG, is_too_long

CONNECTIONS = 20
#: Of a request's head, bytes beyond its first piece.
MOST_HEAD = 64 * 1024


class Protocol(HttpToolsProtocol):
    """The fast parser, which knows no limit of a head and takes ever longer with its size, with one."""

    _in_head = False
    _head = 0

    def on_message_begin(self) -> None:
        self._in_head, self._head = True, 0
        super().on_message_begin()
        self.scope["state"]["abort"] = self.transport.abort

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        goes_on = self._in_head
        super().data_received(data)
        if goes_on and self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > MOST_HEAD:
                self.send_400_response("The request's head is too large.")

    def handle_websocket_upgrade(self) -> None:
        if is_too_long(self.url, self.headers):
            self.send_400_response(TOO_LONG)
        else:
            super().handle_websocket_upgrade()


class Sockets(WebSocketsSansIOProtocol):
    """WebSockets whose connection can be cut off, as that of a request."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["state"]["abort"] = self.transport.abort


class Server(uvicorn.Server):
    """uvicorn, whose end also ends the event streams, so that it need not wait for them.

    With SIGTERM it says for a while that it is not ready before it ends, so that whatever hands out requests gives it
    no more: one that is sent while its connection is being closed has no answer.
    """

    def __init__(self, config: uvicorn.Config, *, leaving: asyncio.Event, stopping: asyncio.Event, seconds: float):
        super().__init__(config)
        self._leaving = leaving
        self._stopping = stopping
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self._leaving.is_set()
        # Of a signal's handler: the loop may be asleep.
        self._loop.call_soon_threadsafe(self._leaving.set)
        if sig == signal.SIGTERM and self._seconds and not again:
            self._loop.call_soon_threadsafe(self._loop.call_later, self._seconds, self._end, sig)
        else:
            self._end(sig)

    def _end(self, sig: int) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        super().handle_exit(sig, None)


def main() -> None:
    settings = of_process()
    if settings.auth == "anonymous" and settings.api_host not in LOOPBACK:
        raise SystemExit(
            f"CAIRN_AUTH=anonymous lets everybody in who reaches CAIRN_API_HOST={settings.api_host}: "
            "let the API listen on 127.0.0.1 alone"
        )
    logs.configure(settings.log_level, settings.log_format, "api", settings.log_limit)
    tracing.start(settings, "api")
    metrics.name_process("api")
    try:
        uvloop.run(serve(settings))
    finally:
        tracing.stop()


async def serve(settings: Settings) -> None:
    engine = connect_async(settings.database, CONNECTIONS)
    blobs = blob_store.connect(settings)
    blobs.sweep()
    app = create_app(settings, engine, await connect(settings, lazy=True), blobs)
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # api/addresses.py reads them, of those that are trusted
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,
        http=Protocol,
        **OPTIONS | {"ws": Sockets},
    )
    state = app.state
    server = Server(config, leaving=state.leaving, stopping=state.stopping, seconds=settings.api_leave_seconds)
    taking_up = [
        asyncio.create_task(cron_acts.act(app, settings)),
        asyncio.create_task(chats.take_up(app, settings)),
    ]
    with keep_alive(config.bind_socket()) as listener:
        await server.serve(sockets=[listener])
    for task in taking_up:
        task.cancel()
    await asyncio.gather(*taking_up, return_exceptions=True)
    await engine.dispose()


if __name__ == "__main__":
    main()
