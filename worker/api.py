"""The API process. Program ``cairn-api``."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from api.app import create_app
from api.streamed import keep_alive
from model import logs, metrics
from model.settings import Settings, of_process
from worker import blob_store, tracing
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
    """uvicorn, whose first signal also ends the event streams, so that it need not wait for them."""

    stopping: asyncio.Event

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stopping.set()
        super().handle_exit(sig, frame)


def main() -> None:
    settings = of_process()
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
    server = Server(config)
    server.stopping = app.state.stopping
    with keep_alive(config.bind_socket()) as listener:
        await server.serve(sockets=[listener])
    await engine.dispose()


if __name__ == "__main__":
    main()
