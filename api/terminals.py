"""Terminals of instances, and connections into sandboxes, through the agents of their hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

import aiohttp
import orjson
from fastapi import APIRouter, Query, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from api import activity
from api.agent_client import Opened, Socket, exit_code
from api.instance_schemas import split_words
from api.sockets import ENDED, accept, relay, told
from api.streams import agents, enter
from model.errors import ValidationFailed
from model.streams import SHUT, ListenPort, Resize, Size, TerminalName

router = APIRouter(tags=["streams"])

#: A terminal's: characters, and bytes on the way to its agent, where it is part of one line.
MOST_COMMAND, MOST_COMMAND_BYTES = 2000, 7000
#: A terminal's agent hangs up sooner, and says why.
WRITE_SECONDS = 75.0
OfTerminal = Annotated[
    TerminalName | None,
    Query(description="Of one that goes on without its client: it is opened, or what it has shown comes first"),
]


@router.websocket("/v1/ws/terminal/{instance_id}")
async def terminal(
    socket: WebSocket,
    instance_id: UUID,
    command: Annotated[str | None, Query(max_length=MOST_COMMAND, pattern=r"^[^\x00]*$")] = None,
    columns: Size = 80,
    rows: Size = 24,
    name: OfTerminal = None,
) -> None:
    """A terminal in the instance: bytes as binary messages; sizes, and how it ended, as JSON in text messages."""
    await _terminal(socket, instance_id, command, columns, rows, name)


@router.websocket("/v1/sessions/{session_id}/terminal")
async def session_terminal(
    socket: WebSocket,
    session_id: UUID,
    command: Annotated[str | None, Query(max_length=MOST_COMMAND, pattern=r"^[^\x00]*$")] = None,
    columns: Size = 80,
    rows: Size = 24,
    name: OfTerminal = None,
) -> None:
    """The same in the sandbox of a work session, where its files are."""
    await _terminal(socket, session_id, command, columns, rows, name, of_session=True)


@router.websocket("/v1/sessions/{session_id}/forward/{port}")
async def forward(socket: WebSocket, session_id: UUID, port: ListenPort) -> None:
    """A connection to what listens at this port of the sandbox's loopback: bytes as binary messages, both ways, and
    `{"end": true}` as text from who sends no more."""
    async with told(socket), AsyncExitStack() as open_:
        target = await enter(socket, session_id, "instances:exec", running=True, of_session=True)
        await open_.enter_async_context(activity.going_on(socket.state.caller, target.instance))
        opened = await agents(socket).connect(target, "forward", {"port": str(port)})
        try:
            await accept(socket)
            await relay(socket, _received(opened, socket), _sent(opened, socket, _shut))
        finally:
            opened.close()


async def _received(opened: Opened[Socket], socket: WebSocket) -> None:
    """Until the agent closes it: then both sides have said all, or one has broken off."""
    async for message in opened.it:
        if message.type is aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            if message.data != SHUT:
                # How it was broken off.
                exit_code(opened.target, message.data)
            await socket.send_text(SHUT)


async def _terminal(
    socket: WebSocket,
    id: UUID,
    command: str | None,
    columns: int,
    rows: int,
    name: str | None,
    *,
    of_session: bool = False,
) -> None:
    async with told(socket), AsyncExitStack() as open_:
        said = command or ""
        target = await enter(socket, id, "instances:exec", running=True, command=said, of_session=of_session)
        await open_.enter_async_context(activity.going_on(socket.state.caller, target.instance))
        query = {"columns": str(columns), "rows": str(rows)}
        if command:
            query["command"] = _words(command)
        if name is not None:
            query["name"] = name
        opened = await agents(socket).connect(target, "terminal", query)
        try:
            await accept(socket)
            await relay(socket, _shown(opened, socket), _sent(opened, socket, _resized))
        finally:
            opened.close()


async def _shown(opened: Opened[Socket], socket: WebSocket) -> None:
    async for message in opened.it:
        if message.type is aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            await socket.send_json({"exit_code": exit_code(opened.target, message.data)})
            return
    raise opened.target.lost("its agent broke off")


async def _sent(opened: Opened[Socket], socket: WebSocket, text_of: Callable[[str], str]) -> None:
    """What the client sends, until it goes. ``text_of``: a text message, as the agent is told it."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", ENDED))
        try:
            # While it waits, it does not see the client go.
            async with asyncio.timeout(WRITE_SECONDS):
                if message.get("bytes"):
                    await opened.it.send_bytes(message["bytes"])
                elif message.get("text"):
                    await opened.it.send_str(text_of(message["text"]))
        except TimeoutError:
            raise opened.target.lost("its agent takes no more") from None
        except ConnectionError:
            pass  # what comes back yet is read to its end


def _shut(text: str) -> str:
    if text != SHUT:
        problem = f"expected {SHUT} in a text message, and bytes in binary ones"
        raise ValidationFailed(problem, fields=[{"field": "end", "message": problem}])
    return SHUT


def _resized(text: str) -> str:
    try:
        return Resize.model_validate_json(text).model_dump_json()
    except ValidationError:
        problem = 'expected {"resize": {"columns": …, "rows": …}} in a text message, and what is typed in binary ones'
        raise ValidationFailed(problem, fields=[{"field": "resize", "message": problem}]) from None


def _words(command: str) -> str:
    """As an agent is told them: a JSON list."""
    problem = "expected a command"
    try:
        if words := split_words(command):
            told: str = orjson.dumps(words).decode()
            if len(quote(told)) <= MOST_COMMAND_BYTES:
                return told
            problem = "it is too long"
    except ValueError as error:
        problem = str(error)
    raise ValidationFailed(f"command: {problem}", fields=[{"field": "command", "message": problem}])
