"""``/v1/workflows``: what was asked for, how far it is, and calling it off."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import Row, func, select, update
from sqlalchemy.orm import Session
from temporalio.service import RPCError

from activities.database import write_all
from activities.runs import summarise
from activities.settling import settle
from api.accept import wait_for_end
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_schemas import ErrorView
from api.paging import Paging, page_of
from api.samples import Time
from model import cache_volumes, groups, metrics, sessions, workspaces
from model.balancers import LoadBalancer
from model.cache_volumes import CacheVolume, CacheVolumeStatus
from model.errors import InvalidState, NotFound
from model.groups import Group
from model.images import RESTING, Image
from model.instances import STABLE, Instance
from model.sessions import SessionStatus, WorkSession
from model.settings import Settings
from model.workflows import (
    NEVER_STARTED,
    TERMINAL,
    Failure,
    Kind,
    Order,
    ResourceType,
    State,
    Step,
    Workflow,
)
from model.workspaces import Workspace, WorkspaceStatus

router = APIRouter(prefix="/v1/workflows", tags=["workflows"], responses=RESPONSES)
log = structlog.get_logger()
_query = select(Workflow.__table__)
#: How long Temporal may take to say how far the steps are; they are left out then.
STEPS_SECONDS = 3
#: Deletes, and the states from which one calls nothing else off.
_AT_REST = {
    "DeprovisionInstance": STABLE,
    "DeleteImage": RESTING,
    groups.DELETE: groups.RESTING,
    sessions.DEPROVISION: {
        SessionStatus.READY,
        SessionStatus.RUNNING,
        SessionStatus.STOPPED,
        SessionStatus.ERROR,
    },
    workspaces.DEPROVISION: {WorkspaceStatus.READY, WorkspaceStatus.ERROR},
    cache_volumes.DEPROVISION: {CacheVolumeStatus.READY, CacheVolumeStatus.ERROR},
}


class WorkflowView(BaseModel):
    id: str
    kind: str
    state: State
    resource_type: str
    resource_id: str
    #: What the resource was called when it was asked for.
    resource_name: str | None
    project_id: str
    actor: str
    cancel_requested_at: dt.datetime | None
    created_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    retry_of: str | None
    #: The workflow that started it, of which it is a part.
    parent_id: str | None
    error: ErrorView | None
    temporal_url: str
    steps: list[Step] | None = None


@router.get("", response_model=Envelope[list[WorkflowView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("workflows:read")],
    page: Paging,
    state: Annotated[State | None, Query()] = None,
    kind: Kind | None = None,
    resource_type: ResourceType | None = None,
    resource_id: UUID | None = None,
    parent_id: UUID | None = None,
    created_after: Annotated[Time | None, Query()] = None,
    created_before: Annotated[Time | None, Query()] = None,
) -> Response:
    """Workflows, newest first: `created_after` inclusive, `created_before` exclusive. `parent_id`: those that are
    parts of another, as the moves of a drain."""
    wanted = {
        "state": state,
        "kind": kind,
        "resource_type": resource_type,
        "resource_id": resource_id,
        "parent_id": parent_id,
    }
    query = _query.where(Workflow.project_id == caller.project_id)
    for name, value in wanted.items():
        if value is not None:
            query = query.where(Workflow.__table__.c[name] == value)
    if created_after is not None:
        query = query.where(Workflow.created_at >= created_after)
    if created_before is not None:
        query = query.where(Workflow.created_at < created_before)
    settings: Settings = request.app.state.settings
    return await page_of(request, caller, query, Workflow.__table__.c.id, page, lambda row: view(row, settings))


@router.get("/{workflow_id}", response_model=Envelope[WorkflowView])
async def show(
    request: Request, workflow_id: UUID, caller: Annotated[Caller, may("workflows:read")], steps: bool = False
) -> Response:
    """One workflow; with `steps=true` how far each step is. `steps` is null while Temporal cannot tell."""
    row = await find(caller, workflow_id)
    return answer(request, await _view(request, caller, row, steps=steps))


@router.get("/{workflow_id}/wait", operation_id="wait_for_workflow", response_model=Envelope[WorkflowView])
async def wait(
    request: Request,
    workflow_id: UUID,
    caller: Annotated[Caller, may("workflows:read")],
    timeout: Annotated[float, Query(ge=0, le=300)] = 30,  # noqa: ASYNC109 - the contract's name
    steps: bool = False,
) -> Response:
    """Answer when the workflow has ended, or as it is after `timeout` seconds."""
    await find(caller, workflow_id)
    await caller.commit()
    row = await wait_for_end(request, caller, workflow_id, timeout)
    return answer(request, await _view(request, caller, row, steps=steps))


@router.post("/{workflow_id}/cancel", status_code=202, response_model=Envelope[WorkflowView])
async def cancel(
    request: Request, workflow_id: UUID, caller: Annotated[Caller, may("workflows:cancel")], body: Nothing | None = None
) -> Response:
    """Call a workflow off: what it did is undone. One that has not started yet ends at once.

    A delete that has begun runs to its end: what is half removed has no way back.
    """
    row = await find(caller, workflow_id)
    # The resource before its workflow: the order in which everybody locks.
    await caller.execute(select(Instance.id).where(Instance.id == row.resource_id).with_for_update())
    await caller.execute(select(Image.id).where(Image.id == row.resource_id).with_for_update())
    await caller.execute(select(Group.id).where(Group.id == row.resource_id).with_for_update())
    await caller.execute(select(LoadBalancer.id).where(LoadBalancer.id == row.resource_id).with_for_update())
    await caller.execute(select(WorkSession.id).where(WorkSession.id == row.resource_id).with_for_update())
    await caller.execute(select(Workspace.id).where(Workspace.id == row.resource_id).with_for_update())
    await caller.execute(select(CacheVolume.id).where(CacheVolume.id == row.resource_id).with_for_update())
    row = (await caller.execute(_query.where(Workflow.id == workflow_id).with_for_update())).one()
    if row.state in TERMINAL and row.cancel_requested_at is None:
        raise InvalidState(f"workflow {workflow_id} has ended: {row.state}", state=row.state)
    told = {"kind": row.kind, "resource_type": row.resource_type, "resource_id": row.resource_id}
    caller.changed("workflow", workflow_id, {"state": row.state}, told, workflow_id=workflow_id)
    if row.state not in TERMINAL:  # else: this cancel again, whose answer was lost
        row = await ask_to_end(request, caller, row)
    headers = {"Location": f"/v1/workflows/{workflow_id}"}
    settings: Settings = request.app.state.settings
    return answer(request, view(row, settings), 202, headers=headers, workflow_id=str(workflow_id))


async def ask_to_end(request: Request, caller: Caller, row: Row[Any]) -> Row[Any]:
    """Write the wish down, and hand it over. What nobody ever ran is settled here."""
    # A delete may have called off another run, which then has to be seen to its end; and a session that has claimed a
    # sandbox has to remove it. A row that waits again, because Temporal lost its run, may have left something too.
    at_rest = _AT_REST.get(row.kind)
    begun = at_rest is not None and row.prior_status not in at_rest
    if row.kind == sessions.INIT:
        claimed = await caller.execute(select(WorkSession.start == "warm").where(WorkSession.id == row.resource_id))
        begun = claimed.scalar_one()
    at_once = row.state == State.ACCEPTED and row.started_at is None and not begun
    if at_once:
        order = Order.model_validate(row.order)
        await caller.connection.run_sync(lambda connection: _settle(Session(bind=connection), order, NEVER_STARTED))
    await caller.execute(
        update(Workflow)
        .where(Workflow.id == row.id)
        .values(cancel_requested_at=func.coalesce(Workflow.cancel_requested_at, func.now()))
    )
    row = await find(caller, row.id)
    await caller.commit()
    if at_once:
        metrics.ended(row.kind, row.state, row.created_at, row.finished_at)
    else:
        request.app.state.dispatcher.cancel(row.id)
    request.app.state.bells.ring(str(row.id))
    return row


def _settle(session: Session, order: Order, failure: Failure) -> None:
    settle(session, order, "cancelled", failure, [])
    write_all(session)


async def find(caller: Caller, workflow_id: UUID) -> Row[Any]:
    """Raises NotFound."""
    found = await caller.execute(_query.where(Workflow.project_id == caller.project_id, Workflow.id == workflow_id))
    row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no workflow {workflow_id}")
    return row


async def _view(request: Request, caller: Caller, row: Row[Any], *, steps: bool) -> dict[str, Any]:
    data = view(row, request.app.state.settings)
    if not steps:
        return data
    if row.state in TERMINAL:
        return data | {"steps": row.steps or []}
    if not caller.connection.closed:
        await caller.commit()
    found = await _steps(request, row.id)
    if found is None:
        return data | {"steps": [] if row.state == State.ACCEPTED else None}
    return data | {"steps": [step.model_dump() for step in found]}


async def _steps(request: Request, workflow_id: UUID) -> list[Step] | None:
    """As Temporal tells them now; None: not started yet, or Temporal is away."""
    handle = request.app.state.temporal.get_workflow_handle(str(workflow_id))
    try:
        return await asyncio.wait_for(summarise(handle, running=True), STEPS_SECONDS)
    except (RPCError, RuntimeError, TimeoutError) as error:
        log.info("workflow.steps_unknown", workflow_id=str(workflow_id), error=str(error))
        return None


async def is_at(request: Request, caller: Caller, workflow_id: UUID, step: str) -> bool:
    """Whether a run is at this step now, as far as Temporal tells. The caller's transaction ends before."""
    await caller.commit()
    return any(one.name == step and one.finished_at is None for one in await _steps(request, workflow_id) or [])


async def progress_of(request: Request, caller: Caller, workflow_id: UUID) -> str | None:
    """What the step that a run is at said last. The caller's transaction ends before: Temporal may take its time."""
    if not caller.connection.closed:
        await caller.commit()
    said = [step.progress for step in await _steps(request, workflow_id) or [] if step.progress]
    return said[-1] if said else None


def view(row: Row[Any], settings: Settings) -> dict[str, Any]:
    """The JSON of a workflow's row."""
    return {
        "id": row.id,
        "kind": row.kind,
        "state": row.state,
        "resource_type": row.resource_type,
        "resource_id": row.resource_id,
        "resource_name": row.order.get("name"),
        "project_id": row.project_id,
        "actor": row.actor,
        "cancel_requested_at": row.cancel_requested_at,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "retry_of": row.retry_of,
        "parent_id": row.parent_id,
        "error": row.error,
        "temporal_url": f"{settings.temporal_ui_url}/namespaces/{settings.temporal_namespace}/workflows/{row.id}",
    }
