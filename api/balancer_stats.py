"""What load balancers do: agents tell it, users read it."""

from __future__ import annotations

import datetime as dt
from itertools import groupby
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, text

from api.agent_credentials import Authenticated, MemberRoute
from api.authentication import may
from api.balancer_rows import mine
from api.balancer_schemas import BalancerSampleView
from api.caller import ENTER, Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import Text
from api.resources import one
from api.samples import Bytes, Time, check_time
from model.balancers import MOST_TARGETS, SAMPLE_SECONDS, SAMPLES_KEPT, BalancerSample, LoadBalancer, TargetHealth

router = APIRouter(prefix="/v1", responses=RESPONSES)
members = APIRouter(prefix="/v1/hosts", tags=["agents"], responses=RESPONSES, route_class=MemberRoute)
#: Balancers of one request; samples of one answer.
MOST_BALANCERS, MOST_SAMPLES = 50, 500


class Figures(BaseModel):
    """Of the interval; sessions at its end."""

    model_config = ConfigDict(extra="forbid")

    sessions: Annotated[int, Field(ge=0, le=2**31 - 1)]
    requests: Bytes
    bytes_in: Bytes
    bytes_out: Bytes
    errors: Bytes


class ToldTarget(Figures):
    instance_id: UUID
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)]
    health: TargetHealth
    check: Annotated[Text, Field(max_length=200)] | None = None


class ToldBalancer(Figures):
    """``id``: of the balancer's instance."""

    id: UUID
    project_id: UUID
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)]
    targets: Annotated[list[ToldTarget], Field(max_length=MOST_TARGETS)] = []


_ID = "0199b3f0-0000-7000-8000-000000000001"
_FIGURES: dict[str, Any] = {"sessions": 1, "requests": 20, "bytes_in": 4000, "bytes_out": 90000, "errors": 0}
_EXAMPLE = {"id": _ID, "project_id": _ID, "generation": 1, **_FIGURES}


class ToldBalancers(BaseModel):
    """``POST /v1/hosts/balancers``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"at": "2026-01-02T03:04:00Z", "balancers": [_EXAMPLE]}]},
    )

    #: The ten seconds from then on, whose sums these are; none: only how the targets are.
    at: Time | None = None
    balancers: Annotated[list[ToldBalancer], Field(min_length=1, max_length=MOST_BALANCERS)]


class BalancersKept(BaseModel):
    #: Of how many targets the health is another than before.
    changed: int


# Only of what runs in this generation on a host of the agent. What a step holds is passed over, and told again.
_HEALTH = text(
    """
    WITH told AS (
        SELECT b.id AS balancer, t.* FROM jsonb_to_recordset(cast(:balancers AS jsonb)) AS p(
            id uuid, generation int, targets jsonb
        )
        JOIN instances i ON i.id = p.id AND i.generation = p.generation AND i.project_id = :project
        JOIN hosts h ON h.id = i.host_id AND h.credential = :credential
        JOIN load_balancers b ON b.id = i.balancer_id
        CROSS JOIN LATERAL jsonb_to_recordset(p.targets) AS t(
            instance_id uuid, generation int, health text, "check" text
        )
    ), changed AS (
        SELECT t.balancer_id, t.instance_id, t.health AS before, told.health, told."check", i.name, b.name AS balancer
        FROM told
        JOIN lb_targets t ON t.balancer_id = told.balancer AND t.instance_id = told.instance_id
        JOIN instances i ON i.id = t.instance_id AND i.generation = told.generation
        JOIN load_balancers b ON b.id = t.balancer_id
        WHERE t.health IS DISTINCT FROM told.health
        ORDER BY t.balancer_id, t.instance_id FOR UPDATE OF t SKIP LOCKED
    )
    UPDATE lb_targets t SET health = changed.health, health_at = now(), "check" = changed."check" FROM changed
    WHERE t.balancer_id = changed.balancer_id AND t.instance_id = changed.instance_id
    RETURNING t.balancer_id, t.instance_id, changed.name, changed.balancer, changed.before, changed.health, t."check"
    """
)
_RECORD = text(
    """
    INSERT INTO events (project_id, type, resource_type, resource_id, data)
    VALUES (:project, :type, 'load_balancer', :id, cast(:data AS jsonb))
    """
)
_RING = text("SELECT pg_notify('cairn', '')")
_WRITE = text(
    """
    INSERT INTO lb_samples (balancer_id, at, project_id, sessions, requests, bytes_in, bytes_out, errors, targets)
    SELECT i.balancer_id, :at, i.project_id, p.sessions, p.requests, p.bytes_in, p.bytes_out, p.errors, p.targets
    FROM jsonb_to_recordset(cast(:balancers AS jsonb)) AS p(
        id uuid, generation int, sessions int, requests int8, bytes_in int8, bytes_out int8, errors int8, targets jsonb
    )
    JOIN instances i ON i.id = p.id AND i.generation = p.generation AND i.project_id = :project
    JOIN hosts h ON h.id = i.host_id AND h.credential = :credential
    WHERE i.balancer_id IS NOT NULL
    ORDER BY i.balancer_id ON CONFLICT DO NOTHING
    RETURNING balancer_id
    """
)
_FORGET = text("DELETE FROM lb_samples WHERE balancer_id = ANY(:balancers) AND at < now() - cast(:kept AS interval)")


@members.post("/balancers", operation_id="report_balancers", response_model=Envelope[BalancersKept])
async def tell(request: Request, body: ToldBalancers, agent: Authenticated) -> Response:
    """How the targets of the agent's load balancers are, and what those did in the ten seconds from `at` on.

    Of an interval the first that is told counts."""
    at = None if body.at is None else check_time(body.at, SAMPLE_SECONDS)
    changed = 0
    balancers = sorted({one.id: one for one in body.balancers}.values(), key=lambda one: one.project_id)
    for project_id, told in groupby(balancers, lambda one: one.project_id):
        await agent.connection.execute(ENTER, {"project": str(project_id)})
        written = orjson.dumps([one.model_dump(mode="json") for one in told]).decode()
        mine = {"balancers": written, "project": project_id, "credential": agent.credential}
        rows = (await agent.connection.execute(_HEALTH, mine)).all()
        changed += len(rows)
        for row in rows:
            data = {"name": row.balancer, "target": row.name, "instance_id": str(row.instance_id)}
            data |= {"from": row.before, "to": row.health, "check": row.check}
            event = {"project": project_id, "type": f"lb.target_{row.health}", "id": row.balancer_id}
            await agent.connection.execute(_RECORD, event | {"data": orjson.dumps(data).decode()})
        if at is None:
            continue
        new = (await agent.connection.execute(_WRITE, mine | {"at": at})).scalars().all()
        if new:
            await agent.connection.execute(_FORGET, {"balancers": list(new), "kept": SAMPLES_KEPT})
    if changed:
        await agent.connection.execute(_RING)
    return answer(request, {"changed": changed})


@router.get("/lb/{balancer_id}/stats", response_model=Envelope[list[BalancerSampleView]], tags=["load-balancers"])
async def stats(
    request: Request,
    balancer_id: UUID,
    caller: Annotated[Caller, may("lb:read")],
    since: Annotated[Time | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_SAMPLES)] = MOST_SAMPLES,
) -> Response:
    """What the load balancer did from `since` (default: ten minutes ago) on, ten seconds each, newest last; kept for
    three hours."""
    await one(caller, select(LoadBalancer.id).where(mine(caller, balancer_id)), "load balancer", balancer_id)
    since = since or dt.datetime.now(dt.UTC) - dt.timedelta(minutes=10)
    query = select(BalancerSample.__table__).where(
        BalancerSample.project_id == caller.project_id,
        BalancerSample.balancer_id == balancer_id,
        BalancerSample.at >= since,
    )
    rows = (await caller.execute(query.order_by(BalancerSample.at).limit(limit))).all()
    return answer(request, [_view(row) for row in rows])


def _view(row: Any) -> dict[str, Any]:
    shown = ("instance_id", *Figures.model_fields)
    return {
        "at": row.at,
        "seconds": SAMPLE_SECONDS,
        "requests_per_second": round(row.requests / SAMPLE_SECONDS, 2),
        "requests": row.requests,
        "sessions": row.sessions,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "errors": row.errors,
        "targets": [{name: target[name] for name in shown} for target in row.targets],
    }
