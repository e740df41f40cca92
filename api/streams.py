"""Streams of instances, through the agents of their hosts: logs, usage, commands, terminals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import closing
from typing import Annotated, Any
from uuid import UUID

import aiohttp
from fastapi import APIRouter, Query, Request, Response, WebSocket
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import select

from api import activity
from api.agent_client import BROKEN, Agents, Opened, Target, said
from api.authentication import authenticate, may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.http import StreamBroken
from api.instance_rows import MINE, check_unmanaged
from api.instance_schemas import split_words
from api.open_streams import Held, OpenStreams
from api.resources import one
from api.sockets import accept, ignored, relay, told
from api.streamed import Streamed, first_of
from api.work_session_rows import mine
from model.errors import HostUnreachable, InvalidState, NotFound
from model.hosts import Host, is_reachable
from model.instances import Instance, Status
from model.sessions import WorkSession
from model.settings import Settings
from model.streams import Run, Tail

router = APIRouter(tags=["streams"], responses=RESPONSES)

#: Of each of a command's outputs, bytes.
OUTPUT_LIMIT = 1 << 20
MOST_WORDS = 1000
#: Of a command, characters that the audit log shows.
AUDITED_COMMAND = 256
_QUERY = (
    select(
        *(Instance.id, Instance.name, Instance.status, Instance.host_id, Instance.workflow_id, Instance.balancer_id),
        *(Instance.session_id, Instance.warm, Instance.group_id),
        *(Host.name.label("host"), Host.last_seen_at, Host.agent_url, Host.fingerprint),
    )
    .outerjoin(Host, Host.id == Instance.host_id)
    .where(MINE)
)
TailQuery = Annotated[Tail | None, Query(description="Only the last so many lines (default: all that is kept)")]


class Exec(BaseModel):
    """`POST /v1/instances/{id}/exec`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"cmd": ["uname", "-a"], "timeout": 10}]})

    #: A list, or a string that is split into words: no shell runs it.
    cmd: Annotated[
        list[Annotated[str, Field(max_length=65536, pattern=r"^[^\x00]*$")]],
        BeforeValidator(split_words, json_schema_input_type=str | list[str]),
        Field(min_length=1, max_length=MOST_WORDS),
    ]
    #: Seconds, after which the command is ended.
    timeout: Annotated[float, Field(gt=0, le=600, strict=True)] = 30


class ExecResult(BaseModel):
    """What the command did. ``truncated``: more than 1 MiB of one of its outputs is not shown."""

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool


@router.get("/v1/instances/{instance_id}/logs", response_class=PlainTextResponse, responses=also(409, 502))
async def logs(
    request: Request,
    instance_id: UUID,
    caller: Annotated[Caller, may("instances:read")],
    tail: TailQuery = None,
    follow: bool = False,
) -> Response:
    """What the instance's program writes, stdout and stderr as they come. With `follow=true` until it ends."""
    target = await _target(caller, instance_id)
    held = _hold(request, caller, "instances:read")
    try:
        await caller.commit()
        opened = await agents(request).open(target, "logs", _logs_query(tail, follow))
    except BaseException:
        held.close()
        raise

    def end() -> None:
        opened.close()
        held.close()

    body = until_stopping(request.app.state.stopping, held.revoked, opened)
    return Streamed(body, "text/plain; charset=utf-8", end)


@router.post("/v1/instances/{instance_id}/exec", response_model=Envelope[ExecResult], responses=also(502, 504))
async def exec_(
    request: Request, instance_id: UUID, caller: Annotated[Caller, may("instances:exec")], body: Exec
) -> Response:
    """Run a command inside a running instance. It is ended at its time-out (504), and where the caller goes."""
    target = await _target(caller, instance_id, running=True, entered=True)
    with closing(_hold(request, caller, "instances:exec")) as held:
        _told(request, caller, target, " ".join(body.cmd))
        await caller.commit()
        run = Run(argv=body.cmd, timeout=body.timeout, limit=OUTPUT_LIMIT)
        async with activity.going_on(caller, instance_id):
            running = asyncio.ensure_future(agents(request).run(target, run))
            ends = (_gone(request), request.app.state.stopping.wait(), held.revoked.wait())
            await first_of(asyncio.shield(running), *ends)
        if not running.done():
            running.cancel()
            raise target.unknown("it was ended, because its caller went, its key was revoked or this API stops")
        outcome = running.result()
    data = {
        "exit_code": outcome.end.exit_code,
        **said(outcome.stdout, outcome.stderr),
        "truncated": outcome.end.truncated,
    }
    return answer(request, data)


@router.websocket("/v1/ws/logs/{instance_id}")
async def follow_logs(socket: WebSocket, instance_id: UUID, tail: TailQuery = None) -> None:
    """The logs and what comes, as binary messages."""
    async with told(socket):
        target = await enter(socket, instance_id, "instances:read")
        opened = await agents(socket).open(target, "logs", _logs_query(tail, True))
        try:
            await accept(socket)
            await relay(socket, _each(opened, opened.it.content.iter_any(), socket.send_bytes), ignored(socket))
        finally:
            opened.close()


@router.websocket("/v1/ws/stats/{instance_id}")
async def follow_stats(socket: WebSocket, instance_id: UUID) -> None:
    """What the instance uses, about once a second: a JSON object in each text message."""
    async with told(socket):
        target = await enter(socket, instance_id, "instances:read", running=True)
        opened = await agents(socket).open(target, "stats", {})

        async def send(line: bytes) -> None:
            await socket.send_text(line.decode(errors="replace").strip())

        try:
            await accept(socket)
            await relay(socket, _each(opened, aiter(opened.it.content), send), ignored(socket))
        finally:
            opened.close()


async def nowhere(socket: WebSocket) -> None:
    """Any other WebSocket: as any other path."""
    async with told(socket):
        caller = await authenticate(socket)
        await caller.connection.close()
        raise NotFound(f"there is no WebSocket {socket.url.path}")


async def _target(caller: Caller, instance_id: UUID, *, running: bool = False, entered: bool = False) -> Target:
    """``entered``: to run something in it. Raises NotFound, Managed, InvalidState, HostUnreachable."""
    found = await caller.execute(_QUERY, {"project_id": caller.project_id, "instance_id": instance_id})
    row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no instance {instance_id}")
    if entered:
        if row.session_id is None:
            await check_unmanaged(caller, row)
        else:  # whoever may work in the session
            caller.require("sessions:use")
    if row.host_id is None or (running and row.status != Status.RUNNING):
        wanted = "not running" if running else "on no host"
        failed = row.status == Status.ERROR
        said = ", and its error tells why, with what it wrote last, where it wrote anything" if failed else ""
        raise InvalidState(
            f"instance {row.name} is {wanted}: its state is {row.status}{said}",
            state=row.status,
            workflow_id=str(row.workflow_id),
        )
    unreachable = HostUnreachable(
        f"host {row.host} cannot be reached: its agent has not renewed its lease; try again", host=row.host
    )
    if not is_reachable(row.last_seen_at):
        raise unreachable
    if row.agent_url is None or row.fingerprint is None:
        raise HostUnreachable(f"host {row.host} cannot be reached: its agent serves no streams", host=row.host)
    return Target(row.id, row.name, row.host_id, row.host, row.agent_url, row.fingerprint, caller.project_id)


async def enter(
    socket: WebSocket,
    instance_id: UUID,
    permission: str,
    *,
    running: bool = False,
    command: str = "",
    of_session: bool = False,
) -> Target:
    """``of_session``: the id is that of a work session, whose sandbox is meant."""
    caller = socket.state.caller = await authenticate(socket, permission)
    try:
        if of_session:
            caller.require("sessions:use")
            sandbox = select(WorkSession.instance_id).where(mine(caller, instance_id))
            instance_id = (await one(caller, sandbox, "session", instance_id)).instance_id
        target = await _target(caller, instance_id, running=running, entered=permission == "instances:exec")
        socket.state.held = _hold(socket, caller, permission)
        if permission == "instances:exec":
            caller.record.wanted = True
            _told(socket, caller, target, command)
            await caller.commit()
        return target
    finally:
        await caller.connection.close()


def _told(connection: Request | WebSocket, caller: Caller, target: Target, command: str) -> None:
    """Who ran something where is audited before it runs. What it was may hold secrets: only where a setting says so."""
    settings: Settings = connection.app.state.settings
    said = {"command": command[:AUDITED_COMMAND]} if settings.audit_commands and command else {}
    caller.changed("instance", target.instance, after={"name": target.name, "host": target.host} | said)


def _hold(connection: Request | WebSocket, caller: Caller, permission: str) -> Held:
    streams: OpenStreams = connection.app.state.open_streams
    return streams.hold(caller, permission)


def agents(connection: Request | WebSocket) -> Agents:
    agents: Agents = connection.app.state.agents
    return agents


def _logs_query(tail: int | None, follow: bool) -> dict[str, str]:
    return {"follow": "true" if follow else "false"} | ({} if tail is None else {"tail": str(tail)})


async def until_stopping(
    stopping: asyncio.Event, revoked: asyncio.Event, opened: Opened[aiohttp.ClientResponse]
) -> AsyncIterator[bytes]:
    """The body of an answer. Where the API stops it ends there; where the agent breaks off, or the key is revoked, it
    is cut."""
    watching = asyncio.ensure_future(first_of(stopping.wait(), revoked.wait()))
    watching.add_done_callback(lambda _: opened.close())
    try:
        async for data in opened.it.content.iter_any():
            yield data
    except BROKEN as error:
        if not stopping.is_set():
            raise StreamBroken(f"host {opened.target.host}: {error or type(error).__name__}") from error
    finally:
        watching.cancel()


async def _each(
    opened: Opened[aiohttp.ClientResponse],
    items: AsyncIterator[bytes],
    send: Callable[[bytes], Coroutine[Any, Any, None]],
) -> None:
    while True:
        try:
            item = await anext(items, None)
        except BROKEN as error:
            raise opened.target.lost("its agent broke off") from error
        if item is None:
            return
        await send(item)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
