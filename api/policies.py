"""Policies of groups: how many members there should be by what is measured, or pushed."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy import Row, delete, func, insert, select, update

from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.group_rows import check_live, find, lock
from api.instance_schemas import Name
from api.paging import Paging, page_of
from api.resources import one, unique_name
from model.base import new_id
from model.errors import QuotaExceeded, ValidationFailed
from model.groups import MOST_MEMBERS
from model.policies import LEAST_TARGET, MEASURED, MOST, REQUESTS, Policy

router = APIRouter(prefix="/v1/autoscaling", tags=["groups"], responses=RESPONSES)
Metric = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Step = Annotated[int, Field(strict=True, ge=1, le=MOST_MEMBERS)]
Value = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
_table = Policy.__table__


class PolicyCreate(BaseModel):
    """``POST /v1/autoscaling/groups/{id}/policies``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "cpu", "metric_type": "cpu", "target_value": 60}]},
    )

    name: Name
    #: `cpu` or `memory`, in percent of what members have; `requests`, per second at the group's load balancer; or what
    #: a metric is called that is pushed.
    metric_type: Metric
    #: Of the mean of all members.
    target_value: Annotated[float, Field(ge=LEAST_TARGET, le=1e15, allow_inf_nan=False)]
    #: Both, or none: then as many as bring the metric to its target.
    scale_out_step: Step | None = None
    scale_in_step: Step | None = None
    cooldown_sec: Annotated[int, Field(strict=True, ge=0, le=86400)] = 60

    @model_validator(mode="after")
    def _both(self) -> PolicyCreate:
        if (self.scale_out_step is None) != (self.scale_in_step is None):
            raise ValueError("scale_out_step and scale_in_step are given both, or none")
        return self


class PolicyView(BaseModel):
    id: str
    group_id: str
    name: str
    metric_type: str
    target_value: float
    scale_out_step: int | None
    scale_in_step: int | None
    cooldown_sec: int
    pushed_value: float | None
    pushed_at: dt.datetime | None
    #: When it changed the group last.
    acted_at: dt.datetime | None
    created_at: dt.datetime


class Pushed(BaseModel):
    """``POST /v1/autoscaling/groups/{id}/metrics``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"metric_type": "queue_length", "value": 17}]}
    )

    metric_type: Metric
    #: The mean of all members.
    value: Value


class Taken(BaseModel):
    #: How many policies go by it.
    policies: int


@router.post("/groups/{group_id}/policies", status_code=201, response_model=Envelope[PolicyView])
async def create(
    request: Request, group_id: UUID, body: PolicyCreate, caller: Annotated[Caller, may("groups:write")]
) -> Response:
    """Give a group a policy. Of several the one that wants most decides, and all must want fewer."""
    policy_id = new_id()
    group = await lock(caller, "group", group_id)
    acceptance = Acceptance(request, caller)
    if answered := await acceptance.answered_before(policy_id, body.model_dump(mode="json", exclude_unset=True)):
        return answer(request, _view(await _find(caller, answered.resource_id)), 201)
    check_live(group)
    if body.metric_type == REQUESTS and group.load_balancer_id is None:
        said = f"group {group.name} has no load balancer that counts requests: give it one, or name another metric"
        raise ValidationFailed(f"metric_type: {said}", fields=[{"field": "metric_type", "message": said}])
    mine = select(func.count()).where(_table.c.group_id == group_id)
    if (await caller.execute(mine)).scalar_one() >= MOST:
        raise QuotaExceeded(f"a group may have {MOST} policies: delete one first", limit=MOST)
    values = {"id": policy_id, "project_id": caller.project_id, "group_id": group.id} | body.model_dump()
    with unique_name("a policy of the group", body.name):
        row = (await caller.execute(insert(Policy).values(**values).returning(*_table.c))).one()
    caller.changed("policy", policy_id, after=body.model_dump())
    return answer(request, _view(row), 201)


@router.get("/groups/{group_id}/policies", response_model=Envelope[list[PolicyView]])
async def index(
    request: Request, group_id: UUID, caller: Annotated[Caller, may("groups:read")], page: Paging
) -> Response:
    """A group's policies, newest first."""
    await find(caller, "group", group_id)
    query = select(*_table.c).where(_table.c.project_id == caller.project_id, _table.c.group_id == group_id)
    return await page_of(request, caller, query, _table.c.id, page, _view)


@router.post("/groups/{group_id}/metrics", operation_id="push_group_metric", response_model=Envelope[Taken])
async def push(
    request: Request, group_id: UUID, body: Pushed, caller: Annotated[Caller, may("groups:scale")]
) -> Response:
    """Say what a metric of one's own is now, as the mean of all members. It is of use for two minutes."""
    if body.metric_type in MEASURED:
        said = "it is measured by Cairn itself: call what you push otherwise, here and in its policy"
        raise ValidationFailed(f"metric_type: {said}", fields=[{"field": "metric_type", "message": said}])
    check_live(await find(caller, "group", group_id))
    named = (_table.c.group_id == group_id) & (_table.c.metric_type == body.metric_type)
    values = {"pushed_value": body.value, "pushed_at": func.now()}
    taken = (await caller.execute(update(Policy).where(named).values(**values))).rowcount
    caller.changed("group", group_id, after=body.model_dump())
    return answer(request, {"policies": taken})


@router.delete("/policies/{policy_id}", status_code=204)
async def remove(policy_id: UUID, caller: Annotated[Caller, may("groups:write")]) -> Response:
    """Delete a policy. The group stays as it is."""
    row = await _find(caller, policy_id)
    caller.changed("policy", policy_id, {"name": row.name, "group_id": str(row.group_id)})
    await caller.execute(delete(Policy).where(_table.c.id == policy_id))
    return Response(status_code=204)


async def _find(caller: Caller, policy_id: UUID) -> Row[Any]:
    query = select(*_table.c).where(_table.c.project_id == caller.project_id, _table.c.id == policy_id)
    return await one(caller, query, "policy", policy_id)


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in PolicyView.model_fields}
