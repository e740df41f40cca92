"""Events as they are shown, wherever they are read: their ids, their JSON, and which of them somebody wants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import orjson
from pydantic import Field
from sqlalchemy import ColumnElement, Integer, and_, false, func, literal_column, or_, text, tuple_

from model.workflows import Event

#: Where a reader is: epoch, transaction id and number of the last event that it has read.
Position = tuple[int, int, int]
BEGINNING: Position = (0, 0, 0)
#: Behind every event of a transaction.
LAST = 2**62
_ID = re.compile(r"(\d{1,9})-(\d{1,19})-(\d{1,19})")

#: A type such as ``instance.running``, all that begin with a prefix such as ``instance.``, or ``*``, all.
EVERY = "*"
TYPE_PATTERN = r"^(\*|[a-z][a-z0-9_]*\.([a-z0-9_]+(\.[a-z0-9_]+)*\.?)?)$"
TypePattern = Annotated[str, Field(max_length=100, pattern=TYPE_PATTERN)]

event_order = tuple_(Event.epoch, Event.xid, Event.id)
#: Below the oldest transaction that still runs nothing can appear any more; an older epoch is complete.
is_settled = (Event.xid < literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")) | (
    Event.epoch < func.current_epoch(type_=Integer)
)
#: Just before the first event that is not settled yet.
NEWEST_SETTLED = text("SELECT current_epoch(), pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1")


class EventRow(Protocol):
    """A row of the table, or its mapped object."""

    epoch: Any
    xid: Any
    id: Any
    type: Any
    resource_type: Any
    resource_id: Any
    workflow_id: Any
    project_id: Any
    data: Any
    created_at: Any


def position_of(row: EventRow) -> Position:
    return (row.epoch, row.xid, row.id)


def id_of(position: Position) -> str:
    return "{}-{}-{}".format(*position)


def parse_id(value: str) -> Position | None:
    """The position of an event's id; None where it is none."""
    found = _ID.fullmatch(value)
    if not found:
        return None
    epoch, xid, number = (int(part) for part in found.groups())
    return (epoch, xid, number) if max(xid, number) < 2**63 else None


def as_json(row: EventRow) -> bytes:
    """The one form that events have on every way out."""
    return orjson.dumps(
        {
            "id": id_of(position_of(row)),
            "type": row.type,
            "resource_type": row.resource_type,
            "resource_id": row.resource_id,
            "workflow_id": row.workflow_id,
            "project_id": row.project_id,
            "data": row.data,
            "created_at": row.created_at,
        }
    )


def covers(patterns: Sequence[str], type: str) -> bool:
    """Whether an event of this type is one of those named; none named: every one."""
    return not patterns or any(
        pattern in (EVERY, type) or (pattern.endswith(".") and type.startswith(pattern)) for pattern in patterns
    )


def is_covered(patterns: Sequence[str]) -> ColumnElement[bool]:
    """The same, as a condition on the table."""
    if not patterns or EVERY in patterns:
        return and_(True)
    return or_(
        false(),
        *(Event.type.startswith(p, autoescape=True) if p.endswith(".") else Event.type == p for p in patterns),
    )
