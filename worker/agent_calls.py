"""What an agent serves of what listens in sandboxes: requests to the agents of work sessions, and connections to any
port; see ``model.streams``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.streamed import first_of
from drivers.calls import Answer, Calls
from model.errors import CommandTimeout, NotFound, PortClosed, ValidationFailed
from model.streams import SHUT, Call, ListenPort
from model.tickets import Ticket
from worker.agent_terminals import WRITE_SECONDS, answered, checked
from worker.open_streams import OpenStreams
from worker.places import Places

#: Connections at once: of the agent, of one project, and into one instance. They need no threads.
FORWARDS, OF_PROJECT, OF_ONE = 512, 256, 64
PIECE = 64 * 1024
_PORT = TypeAdapter(ListenPort)

Pull = Callable[[Any], AsyncIterator[Any]]
#: Opens a stream of a thing, and answers with what is pulled from it.
Stream = Callable[[Ticket, Callable[[], Any], Pull], Awaitable[Response]]


class CallRoutes:
    """``calls``: by host."""

    def __init__(self, calls: Mapping[UUID, Calls], streams: OpenStreams) -> None:
        self._calls = calls
        self._streams = streams
        self._forwarded = Places(FORWARDS, OF_PROJECT, OF_ONE)

    def routes(
        self,
        check: Callable[[HTTPConnection, Ticket], Ticket],
        read: Callable[[Request], Awaitable[bytes]],
        streamed: Stream,
        pulled: Pull,
    ) -> list[BaseRoute]:
        """``check``: raises Unauthenticated where the request's ticket is for something else."""

        async def call(request: Request) -> Response:
            machine: UUID = request.path_params["instance"]
            ticket = check(request, Ticket(instance=machine, verb="call"))
            calls = self._of(request)
            try:
                asked = Call.model_validate_json(await read(request))
            except ValidationError as error:
                raise ValidationFailed(f"body: {error.errors()[0]['msg']}", fields=[]) from None
            opened: list[Answer] = []

            def start() -> Answer:
                opened.append(calls.call(machine, asked))
                return opened[0]

            answer = await streamed(ticket, start, pulled)
            answer.headers["x-call-status"] = str(opened[0].status)
            return answer

        async def forward(socket: WebSocket) -> None:
            machine: UUID = socket.path_params["instance"]
            ticket = check(socket, Ticket(instance=machine, verb="forward"))
            calls, port = self._of(socket), checked(_PORT, "port", socket.query_params.get("port", ""))
            async with answered(socket):
                with self._forwarded.one(ticket):
                    await self._forward(socket, port, lambda: calls.connect(machine, port))

        path = "/hosts/{host:uuid}/instances/{instance:uuid}"
        return [Route(f"{path}/call", call, methods=["POST"]), WebSocketRoute(f"{path}/forward", forward)]

    def _of(self, connection: HTTPConnection) -> Calls:
        host = connection.path_params["host"]
        if host not in self._calls:
            raise NotFound("this agent does not serve this host")
        return self._calls[host]

    async def _forward(self, socket: WebSocket, port: int, connect: Callable[[], Any]) -> None:
        opened = await self._streams.open(connect)
        try:
            # A file of its own, which the event loop closes.
            reader, writer = await asyncio.open_connection(sock=opened.dup(), limit=PIECE)
        finally:
            self._streams.let_go(opened)
        # What is drained has left this process, however the connection ends.
        writer.transport.set_write_buffer_limits(0)
        shut = asyncio.Event()

        async def out() -> None:
            await socket.send_json({"open": True})
            while data := await reader.read(PIECE):
                await socket.send_bytes(data)
            await socket.send_text(SHUT)
            # Who has said all may still be told something.
            await shut.wait()

        async def back() -> None:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect
                if shut.is_set():
                    continue
                if message.get("bytes"):
                    writer.write(message["bytes"])
                    # While it waits, it does not see the client go.
                    async with asyncio.timeout(WRITE_SECONDS):
                        await writer.drain()
                elif message.get("text"):
                    writer.write_eof()
                    shut.set()

        try:
            await first_of(out(), back())
            await socket.close()
        except TimeoutError:
            problem = f"the program read nothing of what was sent for {WRITE_SECONDS:g} s: the connection was closed"
            raise CommandTimeout(problem, timeout=WRITE_SECONDS) from None
        except ConnectionError as error:
            raise PortClosed(f"the program at port {port} broke the connection off", port=port) from error
        finally:
            writer.transport.abort()
