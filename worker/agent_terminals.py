"""What an agent serves of terminals; see ``model.streams``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.streamed import first_of
from drivers.streams import Streams, Terminal
from model.errors import CairnError, CommandTimeout, ValidationFailed
from model.streams import Failure, Resize, Size, TerminalName
from model.tickets import Ticket, Verb
from worker.kept_terminals import KeptTerminals, Key, exit_code_of
from worker.open_streams import OpenStreams
from worker.places import Places

#: A terminal's program that reads nothing for so long is hung up: until then its client's going is not seen.
WRITE_SECONDS = 60.0
T = TypeVar("T")
_SIZE, _COMMAND, _NAME = TypeAdapter(Size), TypeAdapter(list[str]), TypeAdapter(TerminalName)


class TerminalRoutes:
    """``places``: those of all streams."""

    def __init__(self, streams: OpenStreams, places: Places) -> None:
        self._streams = streams
        self._places = places
        self._kept = KeptTerminals(streams)

    def routes(
        self,
        let_in: Callable[[HTTPConnection, Verb], tuple[Streams, Ticket]],
        variables: Callable[[HTTPConnection, UUID], Mapping[str, str]],
    ) -> list[WebSocketRoute]:
        """``let_in``: raises Unauthenticated where the ticket is for something else; ``variables``: what commands get
        beside what their machine has."""

        async def terminal(socket: WebSocket) -> None:
            streams, ticket = let_in(socket, "terminal")
            machine = ticket.instance
            asked = socket.query_params
            columns, rows = (checked(_SIZE, name, asked.get(name, "")) for name in ("columns", "rows"))
            argv = checked(_COMMAND, "command", orjson.loads(asked["command"])) if "command" in asked else None
            name = checked(_NAME, "name", asked["name"]) if "name" in asked else None

            def open_() -> Terminal:
                return streams.terminal(machine, argv, columns=columns, rows=rows, env=variables(socket, machine))

            async with answered(socket):
                with self._places.one(ticket):
                    if name is None:
                        await self._alone(socket, open_)
                    else:
                        await self._with_others(socket, ticket, name, open_, Resize.of(columns, rows))

        return [WebSocketRoute("/hosts/{host:uuid}/instances/{instance:uuid}/terminal", terminal)]

    async def _alone(self, socket: WebSocket, open_: Callable[[], Terminal]) -> None:
        """One that ends with its client."""
        terminal = await self._streams.open(open_)
        try:
            await socket.send_json({"open": True})

            async def write(data: bytes) -> None:
                await self._streams.blocking(terminal.write, data)

            await first_of(self._show(socket, terminal), self._type_in(socket, terminal, write))
        finally:
            self._streams.let_go(terminal)

    async def _show(self, socket: WebSocket, terminal: Terminal) -> None:
        while data := await self._streams.blocking(terminal.read):
            await socket.send_bytes(data)
        await socket.send_json({"exit_code": await exit_code_of(self._streams, terminal)})
        await socket.close()

    async def _with_others(
        self, socket: WebSocket, ticket: Ticket, name: str, open_: Callable[[], Terminal], size: Resize
    ) -> None:
        """One with a name: a client's going is nothing to it."""
        key = Key(ticket.instance, name)
        async with self._kept.viewed(key, open_, partial(self._places.take, ticket)) as (kept, viewer):
            await socket.send_json({"open": True})

            async def show() -> None:
                async for data in kept.seen_by(viewer):
                    await socket.send_bytes(data)
                await socket.send_json({"exit_code": kept.exit_code})
                viewer.has_seen_end = True
                await socket.close()

            if not kept.ended:
                # Who comes last has it in its size; a program draws itself anew then.
                await self._streams.blocking(kept.terminal.resize, size.resize.columns, size.resize.rows)
            try:
                await first_of(show(), self._type_in(socket, kept.terminal, partial(kept.type_in, self._streams)))
            except CommandTimeout:
                self._streams.let_go(kept.terminal)
                raise

    async def _type_in(self, socket: WebSocket, terminal: Terminal, write: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("bytes"):
                await _typed(write, message["bytes"])
            elif message.get("text"):
                with contextlib.suppress(ValidationError):  # the API lets no such pass
                    size = Resize.model_validate_json(message["text"]).resize
                    await self._streams.blocking(terminal.resize, size.columns, size.rows)


async def _typed(write: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await write(data)
    except TimeoutError:
        problem = f"the program read nothing of what was typed for {WRITE_SECONDS:g} s: the terminal was closed"
        raise CommandTimeout(problem, timeout=WRITE_SECONDS) from None


@contextlib.asynccontextmanager
async def answered(socket: WebSocket) -> AsyncIterator[None]:
    """Open it, and tell the API what goes wrong."""
    await socket.accept()
    try:
        yield
    except CairnError as error:
        failure = Failure(code=error.code, message=error.message, details=error.details)
        with contextlib.suppress(WebSocketDisconnect):
            await socket.send_text(f'{{"error": {failure.model_dump_json()}}}')
            await socket.close()
    except WebSocketDisconnect:
        pass


def checked(kind: TypeAdapter[T], name: str, value: Any) -> T:
    """Raises ValidationFailed."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise ValidationFailed(f"{name}: {error.errors()[0]['msg']}", fields=[]) from None
