"""Events as server-sent streams, in commit order, resumable."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import orjson
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import ColumnElement, Integer, Row, func, literal_column, select, text, tuple_
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import SQLAlchemyError

from api.bells import Bells, wait_for
from api.caller import Authenticated, Caller
from api.errors import RESPONSES
from model.errors import NotFound, ValidationFailed
from model.workflows import TERMINAL, Event, EventHorizon, Workflow

router = APIRouter(tags=["events"], responses=RESPONSES)
log = structlog.get_logger()

#: A stream looks by itself this often: an event may wait for an older transaction to end.
LOOK_SECONDS = 0.5
COMMENT_SECONDS = 15
BATCH = 500
_ID = re.compile(r"(\d{1,9})-(\d{1,19})-(\d{1,19})")
Position = tuple[int, int, int]

_order = tuple_(Event.epoch, Event.xid, Event.id)
#: Below the oldest transaction that still runs nothing can appear any more; an older epoch is complete.
_settled = (Event.xid < literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")) | (
    Event.epoch < func.current_epoch(type_=Integer)
)


@router.get("/v1/events", response_class=StreamingResponse)
async def stream(request: Request, caller: Authenticated) -> StreamingResponse:
    """The project's events, from now on, or from after `Last-Event-ID`.

    Where some of those after it are not kept any more, `event: gap` comes first: read again what you follow.
    """
    end = await _end(caller)
    # One beyond the end is of a database that is no more: the stream goes on from here, and not never.
    asked = _last_event_id(request)
    gap = await gap_after(caller, asked)
    position = min(asked or end, end)
    await caller.commit()
    return _respond(_events(request, caller, Event.project_id == caller.project_id, position, gap=gap))


@router.get("/v1/workflows/{workflow_id}/events", response_class=StreamingResponse)
async def of_workflow(request: Request, workflow_id: UUID, caller: Authenticated) -> StreamingResponse:
    """A workflow's events from its beginning (or from after `Last-Event-ID`), until it has ended."""
    mine = (Workflow.project_id == caller.project_id) & (Workflow.id == workflow_id)
    if (await caller.execute(select(Workflow.id).where(mine))).one_or_none() is None:
        raise NotFound(f"there is no workflow {workflow_id}")
    await caller.commit()
    which = (Event.project_id == caller.project_id) & (Event.workflow_id == workflow_id)
    return _respond(_events(request, caller, which, _last_event_id(request) or (0, 0, 0), workflow_id))


def _respond(events: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(
    request: Request,
    caller: Caller,
    which: ColumnElement[bool],
    position: Position,
    until: UUID | None = None,
    gap: bytes = b"",
) -> AsyncIterator[bytes]:
    bells: Bells = request.app.state.bells
    query = select(Event.__table__).where(which, _settled).order_by(*_order).limit(BATCH)
    quiet = 0.0
    # An id without data: a client that loses the connection before its first event resumes from here.
    yield b"retry: 1000\nid: %d-%d-%d\n\n" % position + gap
    with bells.listening(str(until) if until else "") as bell:
        while not request.app.state.stopping.is_set():
            ended = False
            try:
                async with caller.again() as connection:
                    if until is not None:
                        state = select(Workflow.state).where(Workflow.id == until)
                        ended = (await connection.execute(state)).scalar_one() in TERMINAL
                    rows = (await connection.execute(query.where(_order > position))).all()
                    if ended and not rows:
                        # Its last event may be there and not settled yet, behind an older transaction.
                        unsettled = select(Event.id).where(which, _order > position).limit(1)
                        ended = (await connection.execute(unsettled)).one_or_none() is None
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.info("events.database_away", error=str(error).partition("\n")[0])
                rows, ended = [], False
            for row in rows:
                position = (row.epoch, row.xid, row.id)
                yield _frame(row)
            if rows:
                quiet = 0.0
                continue
            if ended:
                yield b"event: end\ndata: {}\n\n"
                return
            await wait_for(bell, LOOK_SECONDS)
            quiet += LOOK_SECONDS
            if quiet >= COMMENT_SECONDS:
                quiet = 0.0
                yield b": still here\n\n"


async def gap_after(caller: Caller, position: Position | None) -> bytes:
    """The frame that says that events after this position have been purged; none where all are there.

    Who begins at `0-0-0` asks for what is kept, and misses nothing.
    """
    if position is None or position == (0, 0, 0):
        return b""
    horizon = (await caller.execute(select(EventHorizon.__table__))).one_or_none()
    if horizon is None or (horizon.epoch, horizon.xid, horizon.event_id) <= position:
        return b""
    purged_until = f"{horizon.epoch}-{horizon.xid}-{horizon.event_id}"
    return b"event: gap\ndata: %s\n\n" % orjson.dumps({"purged_until": purged_until})


async def _end(caller: Caller) -> Position:
    """Just before the first event that is not settled yet, so that nothing in flight is missed."""
    found: CursorResult[int, int] = await caller.execute(
        text("SELECT current_epoch(), pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1")
    )
    epoch, newest_settled = found.one()
    return (epoch, newest_settled, 2**62)


def _last_event_id(request: Request) -> Position | None:
    asked = request.headers.get("last-event-id")
    if not asked:
        return None
    found = _ID.fullmatch(asked)
    if not found:
        raise ValidationFailed(
            "Last-Event-ID: not one of ours", fields=[{"field": "Last-Event-ID", "message": "expected an event's id"}]
        )
    epoch, xid, number = (int(part) for part in found.groups())
    if max(xid, number) >= 2**63:
        raise ValidationFailed(
            "Last-Event-ID: out of range", fields=[{"field": "Last-Event-ID", "message": "out of range"}]
        )
    return (epoch, xid, number)


def _frame(row: Row[Any]) -> bytes:
    data = {
        "id": f"{row.epoch}-{row.xid}-{row.id}",
        "type": row.type,
        "resource_type": row.resource_type,
        "resource_id": row.resource_id,
        "workflow_id": row.workflow_id,
        "project_id": row.project_id,
        "data": row.data,
        "created_at": row.created_at,
    }
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(data["id"]).encode(), row.type.encode(), orjson.dumps(data))
