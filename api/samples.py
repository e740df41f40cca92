"""What instances use: agents tell it, users read it."""

from __future__ import annotations

import datetime as dt
from itertools import groupby
from typing import Annotated, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import select, text

from api import activity
from api.agent_credentials import Authenticated as AuthenticatedAgent
from api.agent_credentials import MemberRoute
from api.authentication import may
from api.caller import ENTER, Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_rows import readable
from model.errors import NotFound, ValidationFailed
from model.instances import Instance
from model.samples import EARLY, FINEST, KEPT, LATE, Sample

router = APIRouter(prefix="/v1", responses=RESPONSES)
members = APIRouter(prefix="/v1/hosts", tags=["agents"], responses=RESPONSES, route_class=MemberRoute)
#: Machines of one request; samples of one answer.
MOST_MACHINES, MOST_SAMPLES = 200, 500
#: Who asks for the last hour means what is there, though it took a moment to ask.
MOMENT = dt.timedelta(minutes=1)
FIRST, LAST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC), dt.datetime(9000, 1, 1, tzinfo=dt.UTC)

Bytes = Annotated[int, Field(ge=0, le=2**63 - 1)]
#: Bounded, so that no time zone leads out of the calendar.
Time = Annotated[AwareDatetime, Field(ge=FIRST, le=LAST)]


class Usage(BaseModel):
    """What one machine used."""

    model_config = ConfigDict(extra="forbid")

    id: UUID
    project_id: UUID
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)]
    cpu_percent: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
    memory_bytes: Bytes
    pids: Annotated[int, Field(ge=0, le=2**31 - 1)]
    rx_bytes: Bytes
    tx_bytes: Bytes
    read_bytes: Bytes
    written_bytes: Bytes


_ID = "0199b3f0-0000-7000-8000-000000000001"
_ZERO: dict[str, JsonValue] = dict.fromkeys(("rx_bytes", "tx_bytes", "read_bytes", "written_bytes"), 0)
_USAGE: dict[str, JsonValue] = {"generation": 1, "cpu_percent": 3.5, "memory_bytes": 7340032, "pids": 2}
_EXAMPLES: list[JsonValue] = [
    {"at": "2026-01-02T03:04:00Z", "machines": [{"id": _ID, "project_id": _ID} | _USAGE | _ZERO]},
]


class Told(BaseModel):
    """``POST /v1/hosts/samples``: the ten seconds from ``at`` on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _EXAMPLES})

    at: Time
    machines: Annotated[list[Usage], Field(min_length=1, max_length=MOST_MACHINES)]


class Kept(BaseModel):
    #: How many of them are new, and of instances that are on a host of the agent.
    written: int


class SampleView(BaseModel):
    """The mean over ``seconds`` from ``at`` on; CPU in percent of one, byte counters since the instance's start."""

    at: str
    seconds: int
    cpu_percent: float
    memory_bytes: int
    pids: int
    rx_bytes: int
    tx_bytes: int
    read_bytes: int
    written_bytes: int


# What an agent says of a machine counts only where the database has that generation of it, in that project, on a
# host of the agent. In order, so that two agents never wait for each other.
_WRITE = text(
    """
    INSERT INTO samples (project_id, instance_id, seconds, at, cpu_percent, memory_bytes, pids,
                         rx_bytes, tx_bytes, read_bytes, written_bytes)
    SELECT i.project_id, i.id, :seconds, :at, t.cpu_percent, t.memory_bytes, t.pids,
           t.rx_bytes, t.tx_bytes, t.read_bytes, t.written_bytes
    FROM jsonb_to_recordset(cast(:machines AS jsonb)) AS t(
        id uuid, generation int, cpu_percent float8, memory_bytes int8, pids int,
        rx_bytes int8, tx_bytes int8, read_bytes int8, written_bytes int8
    )
    JOIN instances i ON i.id = t.id AND i.generation = t.generation AND i.project_id = :project
    JOIN hosts h ON h.id = i.host_id AND h.credential = :credential
    ORDER BY i.id
    ON CONFLICT DO NOTHING
    """
)
_FIGURES = tuple(SampleView.model_fields)
_columns = [Sample.__table__.c[name] for name in _FIGURES]


@members.post("/samples", operation_id="report_samples", response_model=Envelope[Kept])
async def tell(request: Request, body: Told, agent: AuthenticatedAgent) -> Response:
    """What the agent's machines used in the ten seconds from `at` on. The first that is told of them counts."""
    at = check_time(body.at, FINEST)
    written = 0
    machines = sorted(body.machines, key=lambda usage: usage.project_id)
    for project_id, usages in groupby(machines, lambda usage: usage.project_id):
        await agent.connection.execute(ENTER, {"project": str(project_id)})
        told = {
            "seconds": FINEST,
            "at": at,
            "machines": orjson.dumps([usage.model_dump(mode="json") for usage in usages]).decode(),
            "project": project_id,
            "credential": agent.credential,
        }
        result = await agent.connection.execute(_WRITE, told)
        await activity.note(agent.connection, told)
        written += result.rowcount
    return answer(request, {"written": written})


def check_time(at: dt.datetime, seconds: int) -> dt.datetime:
    """When the interval of so many seconds began that an agent tells of. Raises ValidationFailed unless it is now."""
    now = dt.datetime.now(dt.UTC)
    if not now - LATE < at < now + EARLY:
        said = f"expected within {LATE.total_seconds():g} s before {now.isoformat()}: is the host's clock right?"
        raise ValidationFailed(f"at: {said}", fields=[{"field": "at", "message": said}])
    return dt.datetime.fromtimestamp(at.timestamp() // seconds * seconds, dt.UTC)


@router.get("/instances/{instance_id}/stats", response_model=Envelope[list[SampleView]], tags=["instances"])
async def stats(
    request: Request,
    instance_id: UUID,
    caller: Annotated[Caller, may("instances:read")],
    since: Annotated[Time | None, Query()] = None,
    until: Annotated[Time | None, Query()] = None,
    seconds: Annotated[Literal["10", "60", "3600"] | None, Query()] = None,
    cursor: Annotated[Time | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_SAMPLES)] = MOST_SAMPLES,
) -> Response:
    """What the instance used from `since` (default: an hour ago) until `until` (now), newest last.

    Without `seconds`, the finest resolution that is still kept at `since`: 10 for an hour, 60 for a day, 3600 for
    30 days. Where there are more than `limit`, `meta.next_cursor` goes into `?cursor=`.
    """
    mine = (Instance.project_id == caller.project_id) & (Instance.id == instance_id) & readable
    if (await caller.execute(select(Instance.id).where(mine))).one_or_none() is None:
        raise NotFound(f"there is no instance {instance_id}")
    now = dt.datetime.now(dt.UTC)
    since = since or (until or now) - KEPT[FINEST]
    if until is not None and until < since:
        raise ValidationFailed(
            "until: it is before since", fields=[{"field": "until", "message": "expected a time after since"}]
        )
    query = select(*_columns).where(
        Sample.project_id == caller.project_id,
        Sample.instance_id == instance_id,
        Sample.seconds == (int(seconds) if seconds else finest(now - since)),
        Sample.at >= since,
    )
    if until is not None:
        query = query.where(Sample.at < until)
    if cursor is not None:
        query = query.where(Sample.at > cursor)
    rows = (await caller.execute(query.order_by(Sample.at).limit(limit + 1))).all()
    next_cursor = rows[limit - 1].at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if len(rows) > limit else None
    data = [dict(zip(_FIGURES, row, strict=True)) for row in rows[:limit]]
    return answer(request, data, next_cursor=next_cursor)


def finest(age: dt.timedelta) -> int:
    """The finest resolution in seconds of which samples of this age are kept; the coarsest where none is."""
    return next((seconds for seconds, kept in KEPT.items() if age < kept + MOMENT), max(KEPT))
