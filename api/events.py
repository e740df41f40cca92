"""Events as server-sent streams and over WebSockets, in commit order, resumable."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Query, Request, Response, WebSocket
from sqlalchemy import select
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection

from api.authentication import authenticate, may
from api.bells import Bells, wait_for
from api.caller import Caller
from api.errors import RESPONSES, also
from api.event_hub import BATCH, LOOK_SECONDS, QUIET_SECONDS, Hub, SlowConsumer, Wanted
from api.http import StreamBroken
from api.open_streams import Held, OpenStreams
from api.sockets import AGAIN_LATER, accept, close, ignored, relay, told
from api.streamed import Bounded, within_patience
from model.errors import CairnError, NotFound, Unauthenticated, ValidationFailed
from model.events import (
    BEGINNING,
    LAST,
    NEWEST_SETTLED,
    Position,
    TypePattern,
    as_json,
    event_order,
    id_of,
    is_settled,
    parse_id,
    position_of,
)
from model.instances import Instance
from model.workflows import TERMINAL, Event, EventHorizon, Workflow

router = APIRouter(tags=["events"], responses=RESPONSES)
log = structlog.get_logger()
#: Whoever follows a workflow of which nothing is heard looks by itself this often at last.
MOST_SECONDS = 4.0

LastEventId = Annotated[
    str | None, Query(description="Only what came after the event of this id (`0-0-0`: from the beginning)")
]


def _wanted(
    resource_type: Annotated[
        str | None, Query(max_length=63, pattern="^[a-z][a-z0-9_]*$", description="Only events of such resources")
    ] = None,
    resource_id: Annotated[UUID | None, Query(description="Only events of this resource")] = None,
    type: Annotated[
        list[TypePattern] | None,
        Query(max_length=50, description="Only events of these types; `instance.`: all that begin so"),
    ] = None,
) -> Wanted:
    return Wanted(resource_type, resource_id, tuple(type or ()))


Filters = Annotated[Wanted, Depends(_wanted)]


@router.get("/v1/events", response_class=Response, responses=also(429))
async def stream(request: Request, caller: Annotated[Caller, may("events:read")], wanted: Filters) -> Response:
    """The project's events as server-sent events, from now on, or from after `Last-Event-ID`.

    Where some of those after it are not kept any more, `event: gap` comes first: read again what you follow.
    A client that is too slow for what comes is cut with `event: cut`; it resumes as after any lost connection.
    """
    end = await _end(caller)
    # One beyond the end is of a database that is no more: the stream goes on from here, and not never.
    asked = _last_event_id(request)
    purged_until = await gap_after(caller, asked)
    position = min(asked or end, end)
    await caller.commit()
    held = _hold(request, caller)
    frames = _frames(request, caller, wanted, position, end, held, purged_until)
    return Bounded(frames, "text/event-stream", held.close)


@router.get("/v1/instances/{instance_id}/events", response_class=Response, responses=also(429))
async def of_instance(request: Request, instance_id: UUID, caller: Annotated[Caller, may("events:read")]) -> Response:
    """An instance's events from its beginning (or from after `Last-Event-ID`), and as they come."""
    mine = (Instance.project_id == caller.project_id) & (Instance.id == instance_id)
    if (await caller.execute(select(Instance.id).where(mine))).one_or_none() is None:
        raise NotFound(f"there is no instance {instance_id}")
    end = await _end(caller)
    asked = _last_event_id(request)
    purged_until = await gap_after(caller, asked)
    position = min(asked or BEGINNING, end)
    await caller.commit()
    held = _hold(request, caller)
    frames = _frames(request, caller, Wanted("instance", instance_id), position, end, held, purged_until)
    return Bounded(frames, "text/event-stream", held.close)


@router.get("/v1/workflows/{workflow_id}/events", response_class=Response, responses=also(429))
async def of_workflow(request: Request, workflow_id: UUID, caller: Annotated[Caller, may("events:read")]) -> Response:
    """A workflow's events from its beginning (or from after `Last-Event-ID`), until it has ended."""
    mine = (Workflow.project_id == caller.project_id) & (Workflow.id == workflow_id)
    if (await caller.execute(select(Workflow.id).where(mine))).one_or_none() is None:
        raise NotFound(f"there is no workflow {workflow_id}")
    asked = _last_event_id(request)
    purged_until = await gap_after(caller, asked)
    await caller.commit()
    held = _hold(request, caller)
    frames = _until_ended(request, caller, workflow_id, asked or BEGINNING, held, purged_until)
    return Bounded(frames, "text/event-stream", held.close)


@router.websocket("/v1/ws/events")
async def follow(socket: WebSocket, wanted: Filters, last_event_id: LastEventId = None) -> None:
    """The project's events, each as JSON in a text message. The answer's `Last-Event-ID` is where it begins.

    Where some of those after `last_event_id` are not kept any more, a message of the type `gap` comes first.
    One that is too slow for what comes is closed with the code 1013: open it again with `last_event_id`.
    """
    async with told(socket):
        caller = await authenticate(socket, "events:read")
        try:
            end = await _end(caller)
            asked = _last_event_id(socket, last_event_id)
            purged_until = await gap_after(caller, asked)
            socket.state.held = _hold(socket, caller)
        finally:
            await caller.connection.close()
        position = min(asked or end, end)
        await accept(socket, last_event_id=id_of(position))
        if purged_until:
            await socket.send_json({"type": "gap", "purged_until": purged_until})

        async def send() -> None:
            hub: Hub = socket.app.state.events
            async with aclosing(hub.follow(caller.project_id, wanted, position, end)) as events:
                async for _, items in events:
                    for item in items:
                        await within_patience(socket.scope, socket.send_text(item.data.decode()))

        try:
            await relay(socket, send(), ignored(socket))
        except SlowConsumer as slow:
            await close(socket, AGAIN_LATER, slow)
        except StreamBroken as broken:
            log.warning("events.cut", error=str(broken))


async def _frames(
    request: Request,
    caller: Caller,
    wanted: Wanted,
    position: Position,
    end: Position,
    held: Held,
    purged_until: str | None,
) -> AsyncIterator[bytes]:
    hub: Hub = request.app.state.events
    yield _head(position, purged_until)
    try:
        async with aclosing(hub.follow(caller.project_id, wanted, position, end, held.revoked)) as events:
            async for read, items in events:
                if items:
                    yield b"".join(item.frame for item in items)
                elif read is not None:
                    # Nothing of what was read was wanted: the client need not read it again when it resumes.
                    yield b": still here\nid: %s\n\n" % id_of(max(read, position)).encode()
                else:
                    yield b": still here\n\n"
    except (SlowConsumer, Unauthenticated) as why:
        yield _cut(why)


def _head(position: Position, purged_until: str | None) -> bytes:
    # An id without data: a client that loses the connection before its first event resumes from here.
    head = b"retry: 1000\nid: %s\n\n" % id_of(position).encode()
    return head + (b'event: gap\ndata: {"purged_until": "%s"}\n\n' % purged_until.encode() if purged_until else b"")


def _cut(why: CairnError) -> bytes:
    log.info("events.cut", error=why.message)
    return b'event: cut\ndata: {"code": "%s", "message": "%s"}\n\n' % (why.code.encode(), why.message.encode())


def _hold(connection: Request | WebSocket, caller: Caller) -> Held:
    streams: OpenStreams = connection.app.state.open_streams
    return streams.hold(caller, "events:read", events=True)


async def _until_ended(
    request: Request, caller: Caller, workflow_id: UUID, position: Position, held: Held, purged_until: str | None
) -> AsyncIterator[bytes]:
    """A workflow is short, and few follow one: each reads for itself, ever less often where no bell rings."""
    bells: Bells = request.app.state.bells
    which = (Event.project_id == caller.project_id) & (Event.workflow_id == workflow_id)
    query = select(Event.__table__).where(which, is_settled).order_by(*event_order).limit(BATCH)
    quiet, pause = 0.0, LOOK_SECONDS
    yield _head(position, purged_until)
    with bells.listening(str(workflow_id)) as bell:
        while not request.app.state.stopping.is_set():
            if held.revoked.is_set():
                yield _cut(Unauthenticated("the API key was revoked"))
                return
            ended = False
            try:
                async with caller.again() as connection:
                    state = select(Workflow.state).where(Workflow.id == workflow_id)
                    ended = (await connection.execute(state)).scalar_one() in TERMINAL
                    rows = (await connection.execute(query.where(event_order > position))).all()
                    if ended and not rows:
                        # Its last event may be there and not settled yet, behind an older transaction.
                        unsettled = select(Event.id).where(which, event_order > position).limit(1)
                        ended = (await connection.execute(unsettled)).one_or_none() is None
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.info("events.database_away", error=str(error).partition("\n")[0])
                rows, ended = [], False
            for row in rows:
                position = position_of(row)
                told = (id_of(position).encode(), row.type.encode(), as_json(row))
                yield b"id: %s\nevent: %s\ndata: %s\n\n" % told
            if rows:
                quiet = 0.0
                continue
            if ended:
                yield b"event: end\ndata: {}\n\n"
                return
            rung = await wait_for(bell, pause)
            quiet += pause
            pause = LOOK_SECONDS if rung else min(2 * pause, MOST_SECONDS)
            if quiet >= QUIET_SECONDS:
                quiet = 0.0
                yield b": still here\n\n"


async def gap_after(caller: Caller, position: Position | None) -> str | None:
    """The newest event that was purged, where it comes after this position; else None.

    Who begins at `0-0-0` asks for what is kept, and misses nothing.
    """
    if position is None or position == BEGINNING:
        return None
    horizon = (await caller.execute(select(EventHorizon.__table__))).one_or_none()
    if horizon is None or (horizon.epoch, horizon.xid, horizon.event_id) <= position:
        return None
    return id_of((horizon.epoch, horizon.xid, horizon.event_id))


async def _end(caller: Caller) -> Position:
    """Just before the first event that is not settled yet, so that nothing in flight is missed."""
    found: CursorResult[int, int] = await caller.execute(NEWEST_SETTLED)
    epoch, settled = found.one()
    return (epoch, settled, LAST)


def _last_event_id(connection: HTTPConnection, asked: str | None = None) -> Position | None:
    asked = asked or connection.headers.get("last-event-id")
    if not asked:
        return None
    found = parse_id(asked)
    if found is None:
        raise ValidationFailed(
            "Last-Event-ID: not one of ours", fields=[{"field": "Last-Event-ID", "message": "expected an event's id"}]
        )
    return found
