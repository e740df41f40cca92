"""``/v1/dashboard/summary``: the project and the fleet at a glance."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import ColumnElement, bindparam, case, func, literal, select, union_all

from activities.placement import Capacity
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.hosts import Size
from model.balancers import BalancerStatus, LoadBalancer
from model.cache_volumes import CacheVolume, CacheVolumeStatus
from model.cron import CronJob
from model.groups import Group, GroupStatus
from model.hosts import LEASE, Host
from model.images import Image, ImageStatus
from model.instances import Instance, Status
from model.sessions import SessionStatus, WorkSession
from model.webhooks import Webhook
from model.workflows import State, Workflow
from model.workspaces import Workspace, WorkspaceStatus

router = APIRouter(prefix="/v1/dashboard", tags=["dashboard"], responses=RESPONSES)

FAILED_WITHIN = dt.timedelta(hours=24)
#: Workflows under way that are named.
NAMED = 10


class Counted(NamedTuple):
    """A kind of resource: the column that says its state, its project, and which rows count."""

    state: Any
    project: Any
    where: ColumnElement[bool]


_switched = case((Webhook.disabled_reason.is_not(None), "disabled"), (Webhook.active, "active"), else_="inactive")
_paused = case((CronJob.paused, "paused"), else_="active")


def _is_group(kind: str) -> ColumnElement[bool]:
    return (Group.kind == kind) & (Group.status != GroupStatus.DELETED)


#: What is counted, by state.
RESOURCES = {
    "instances": Counted(Instance.status, Instance.project_id, Instance.status != Status.DELETED),
    "groups": Counted(Group.status, Group.project_id, _is_group("group")),
    "deployments": Counted(Group.status, Group.project_id, _is_group("deployment")),
    "load_balancers": Counted(
        LoadBalancer.status, LoadBalancer.project_id, LoadBalancer.status != BalancerStatus.DELETED
    ),
    "pools": Counted(Group.status, Group.project_id, _is_group("pool")),
    "workspaces": Counted(Workspace.status, Workspace.project_id, Workspace.status != WorkspaceStatus.DELETED),
    "cache_volumes": Counted(
        CacheVolume.status, CacheVolume.project_id, CacheVolume.status != CacheVolumeStatus.DELETED
    ),
    "sessions": Counted(WorkSession.status, WorkSession.project_id, WorkSession.status != SessionStatus.REMOVED),
    "images": Counted(Image.status, Image.project_id, Image.status != ImageStatus.DELETED),
    "cron_jobs": Counted(_paused, CronJob.project_id, CronJob.deleted_at.is_(None)),
    "webhooks": Counted(_switched, Webhook.project_id, literal(True)),
}


class Counts(BaseModel):
    total: int
    by_state: dict[str, int]


class HostCounts(Counts):
    reachable: int


class RunningWorkflow(BaseModel):
    id: str
    kind: str
    state: State
    resource_type: str
    resource_id: str
    name: str
    created_at: dt.datetime


class WorkflowCounts(BaseModel):
    accepted: int
    running: int
    failed_24h: int


class Summary(BaseModel):
    """Resources and workflows are the project's; hosts, capacity and what is allocated of it are the fleet's."""

    resources: dict[str, Counts]
    workflows: WorkflowCounts
    #: Those accepted last, at most 10.
    running_workflows: list[RunningWorkflow]
    hosts: HostCounts
    capacity: Size
    #: What may be given to instances: the capacity, times what the platform over-commits.
    allocatable: Size
    allocated: Size


def _counting(name: str, counted: Counted) -> Any:
    of = (counted.project == bindparam("project_id")) & counted.where
    state = counted.state.label("state")
    return select(literal(name).label("name"), state, func.count().label("number")).where(of).group_by(state)


# Built once: building them costs as much as running them.
_under_way = Workflow.state.in_([State.ACCEPTED, State.RUNNING])
_recently = (Workflow.state == State.FAILED) & (Workflow.finished_at > func.now() - FAILED_WITHIN)
_COUNTS = union_all(
    *(_counting(name, counted) for name, counted in RESOURCES.items()),
    _counting("workflows", Counted(Workflow.state, Workflow.project_id, _under_way)),
    _counting("workflows", Counted(Workflow.state, Workflow.project_id, _recently)),
)
_NAMED = (
    select(
        *(Workflow.id, Workflow.kind, Workflow.state, Workflow.resource_type, Workflow.resource_id),
        *(Workflow.order["name"].astext.label("name"), Workflow.created_at),
    )
    .where(Workflow.project_id == bindparam("project_id"), _under_way)
    .order_by(Workflow.id.desc())
    .limit(NAMED)
)
_HOSTS = select(
    Host.state,
    func.count().label("number"),
    func.count().filter(Host.last_seen_at > func.now() - LEASE).label("reachable"),
    *(func.sum(column).label(column.key) for column in (Host.cpus, Host.memory_mb)),
    *(func.sum(column).label(column.key) for column in (Host.allocated_vcpus, Host.allocated_memory_mb)),
).group_by(Host.state)


@router.get("/summary", response_model=Envelope[Summary])
async def summary(request: Request, caller: Annotated[Caller, may("project:read")]) -> Response:
    """Counts by resource and state, workflows under way, and what hosts have and hold."""
    mine = {"project_id": caller.project_id}
    counts: dict[str, dict[str, int]] = {name: {} for name in (*RESOURCES, "workflows")}
    for row in await caller.execute(_COUNTS, mine):
        counts[row.name][row.state] = row.number
    named = (await caller.execute(_NAMED, mine)).all()
    hosts = (await caller.execute(_HOSTS)).all()
    workflows = counts.pop("workflows")
    over: Capacity = request.app.state.capacity
    data = {
        "resources": {name: _total(states) for name, states in counts.items()},
        "workflows": {
            "accepted": workflows.get(State.ACCEPTED, 0),
            "running": workflows.get(State.RUNNING, 0),
            "failed_24h": workflows.get(State.FAILED, 0),
        },
        "running_workflows": [dict(row._mapping) for row in named],
        "hosts": _total({row.state: row.number for row in hosts}) | {"reachable": sum(row.reachable for row in hosts)},
        "capacity": {
            "vcpus": sum(row.cpus for row in hosts),
            "memory_mb": sum(row.memory_mb for row in hosts),
        },
        "allocatable": {
            "vcpus": sum(row.cpus for row in hosts) * over.overcommit_cpu,
            "memory_mb": int(sum(row.memory_mb for row in hosts) * over.overcommit_memory),
        },
        "allocated": {
            "vcpus": sum(row.allocated_vcpus for row in hosts),
            "memory_mb": sum(row.allocated_memory_mb for row in hosts),
        },
    }
    return answer(request, data)


def _total(states: dict[str, int]) -> dict[str, Any]:
    return {"total": sum(states.values()), "by_state": states}
