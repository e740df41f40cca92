"""HTTP and TLS of an agent's streams, open to strangers: who shows no ticket gets little time and little room."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.streamed import first_of
from worker.identity import Keys
from worker.websocket import OPTIONS, TOO_LONG, is_too_long

#: From a connection's start to the end of its request's head; TLS has as long before that.
HEAD_SECONDS = 10.0
LINGER_SECONDS = 1.0
#: Of a request, bytes.
MOST_HEAD = 16384
#: Connections whose request has not come. One more, and the oldest of them is cut.
SILENT = 256
STOP_SECONDS = 2


class Protocol(H11Protocol):
    """One connection, for one request. (Its parser, unlike the faster one, keeps to a limit of the head.)"""

    def __init__(self, config: uvicorn.Config, state: ServerState, silent: dict[Protocol, None]) -> None:
        super().__init__(config, state, {})
        self._silent = silent

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_SECONDS, self._cut)
        self._silent[self] = None
        if len(self._silent) > SILENT:
            next(iter(self._silent))._cut()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.headers is not None:
            self._heard()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if is_too_long(event.target, event.headers):
            self.send_400_response(TOO_LONG)
        else:
            super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:  # closed now, it would lose an answer that came before its body
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def _heard(self) -> None:
        self._late.cancel()
        self._silent.pop(self, None)

    def _cut(self) -> None:
        self._heard()
        self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn on a listener and a certificate of ours, that leaves the process's signals alone."""

    def __init__(self, app: Any, keys: Keys, listener: socket.socket) -> None:
        context = tls(keys)
        super().__init__(
            uvicorn.Config(
                app,
                ssl_context_factory=lambda config, default: context,
                h11_max_incomplete_event_size=MOST_HEAD,
                **OPTIONS,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._listener = listener
        self.servers = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        silent: dict[Protocol, None] = {}
        server = await asyncio.get_running_loop().create_server(
            lambda: Protocol(self.config, self.server_state, silent),
            sock=self._listener,
            ssl=self.config.ssl,
            ssl_handshake_timeout=HEAD_SECONDS,
            backlog=self.config.backlog,
        )
        self.servers = [server]
        self.started = True

    async def run_until(self, stopping: asyncio.Event, end_streams: Callable[[], Awaitable[None]]) -> None:
        serving = asyncio.create_task(self.serve())
        await first_of(stopping.wait(), asyncio.shield(serving))
        for server in self.servers:
            server.close()
        self._listener.close()
        # Cut, before the streams end: so nobody takes that end for the program's own.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await end_streams()
        self.should_exit = True
        await serving
        if tasks := set(self.server_state.tasks):  # uvicorn has cancelled them, and does not wait
            await asyncio.wait(tasks, timeout=STOP_SECONDS)


def tls(keys: Keys) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # OpenSSL reads them from a file only: one for us alone, for a moment.
    with tempfile.NamedTemporaryFile() as file:
        file.write(f"{keys.certificate}\n{keys.certificate_key}".encode())
        file.flush()
        context.load_cert_chain(file.name)
    return context
