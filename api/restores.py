"""``/v1/operations/restore``: what differs since the platform was restored from a backup, and what is done about it."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row, select, update

from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES, also
from api.instance_schemas import Text
from model.errors import InvalidState, NotFound
from model.restores import Difference, Restore, RestoreDifference
from model.workflows import Order

router = APIRouter(prefix="/v1/operations", tags=["operations"], responses=RESPONSES)
#: A decision looks at one host; the end of a restore at all of Temporal's open runs.
DECISION_SECONDS, FINISH_SECONDS = 60.0, 300.0


class RestoreView(BaseModel):
    #: never: no backup was ever restored here. restored: differences are to be decided about.
    state: Literal["never", "restored", "finished"]
    id: UUID | None = None
    backup_at: dt.datetime | None = None
    restored_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    #: When the differences were last looked for; null: not yet.
    looked_at: dt.datetime | None = None
    #: What the operator leaves as it is.
    left_alone: list[str] = []
    differences: list[Difference] = []


class Decided(BaseModel):
    id: UUID
    name: str


class Finish(BaseModel):
    """``POST /v1/operations/restore/finish``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"leave": ["rack-7"]}]})

    #: Ids of machines, instances and workflows, and names of hosts, that stay as they are.
    leave: list[Annotated[Text, Field(max_length=100)]] = Field(default=[], max_length=10_000)


@router.get("/restore", summary="Get the restore", response_model=Envelope[RestoreView])
async def show(request: Request, caller: Annotated[Caller, may("operations:manage")]) -> Response:
    """Whether the platform was restored from a backup, and what differs since, by name. Changes nothing."""
    restore = await _last(caller)
    if restore is None:
        return answer(request, RestoreView(state="never").model_dump())
    rows = await caller.execute(select(RestoreDifference.difference).order_by(RestoreDifference.number))
    times = ("backup_at", "restored_at", "finished_at", "looked_at")
    view = {
        "state": "finished" if restore.finished_at else "restored",
        **{name: getattr(restore, name) for name in ("id", *times, "left_alone")},
        # As a worker wrote them, which may be of another version.
        "differences": list(rows.scalars()),
    }
    return answer(request, view)


@router.post(
    "/restore/finish",
    status_code=202,
    summary="Finish the restore",
    operation_id="finish_restore",
    responses=also(409),
    response_model=Envelope[Decided],
)
async def finish(
    request: Request, caller: Annotated[Caller, may("operations:manage")], body: Finish | None = None
) -> Response:
    """The platform works as before, where nothing is undecided; else the workflow fails with `unresolved`.

    What `leave` names stays as it is, for ever: machines without a row are not removed.
    """
    leave = (body or Finish()).leave
    restore = await _open(caller)
    # They can be named in several attempts.
    named = list(dict.fromkeys([*restore.left_alone, *leave]))
    await caller.execute(update(Restore).where(Restore.id == restore.id).values(left_alone=named))
    return await _accept(request, caller, "FinishRestore", restore.id, "restore", FINISH_SECONDS, {"leave": leave})


@router.post(
    "/restore/{resource_id}/adopt",
    status_code=202,
    summary="Adopt a machine",
    operation_id="adopt_machine",
    responses=also(409),
    response_model=Envelope[Decided],
)
async def adopt(
    request: Request,
    resource_id: UUID,
    caller: Annotated[Caller, may("operations:manage")],
    body: Nothing | None = None,
) -> Response:
    """Make the instance's row what its machine is: its project, host, generation, size, ports and state."""
    return await _decide(request, caller, "AdoptInstance", resource_id)


@router.post(
    "/restore/{resource_id}/discard",
    status_code=202,
    summary="Discard a machine",
    operation_id="discard_machine",
    responses=also(409),
    response_model=Envelope[Decided],
)
async def discard(
    request: Request,
    resource_id: UUID,
    caller: Annotated[Caller, may("operations:manage")],
    body: Nothing | None = None,
) -> Response:
    """Remove a machine from its engine. There is no way back."""
    return await _decide(request, caller, "DiscardMachine", resource_id)


@router.post(
    "/restore/{resource_id}/forget",
    status_code=202,
    summary="Forget what is no more",
    operation_id="forget_difference",
    responses=also(409),
    response_model=Envelope[Decided],
)
async def forget(
    request: Request,
    resource_id: UUID,
    caller: Annotated[Caller, may("operations:manage")],
    body: Nothing | None = None,
) -> Response:
    """End an instance whose machine is gone, a workflow whose run has ended, or a run that no row knows."""
    return await _decide(request, caller, "ForgetDifference", resource_id)


async def _last(caller: Caller) -> Row[Any] | None:
    found = await caller.execute(select(Restore.__table__).order_by(Restore.restored_at.desc()).limit(1))
    return found.one_or_none()


async def _open(caller: Caller) -> Row[Any]:
    restore = await _last(caller)
    if restore is None or restore.finished_at is not None:
        raise InvalidState("the platform is not restored, or that was finished", state="finished")
    return restore


async def _decide(request: Request, caller: Caller, kind: str, resource_id: UUID) -> Response:
    await _open(caller)
    found = await caller.execute(
        select(RestoreDifference.name).where(RestoreDifference.resource_id == resource_id).limit(1)
    )
    return await _accept(request, caller, kind, resource_id, found.scalar_one_or_none(), DECISION_SECONDS, None)


async def _accept(
    request: Request, caller: Caller, kind: str, resource_id: UUID, name: str | None, seconds: float, body: Any
) -> Response:
    acceptance = Acceptance(request, caller)

    async def view(_caller: Caller, _id: UUID) -> dict[str, Any]:
        return {"id": resource_id, "name": name or str(resource_id)}

    if answered := await acceptance.answered_before(resource_id, body):
        return await acceptance.answer(view, answered)
    if name is None:
        raise NotFound(f"no difference has the id {resource_id}: see GET /v1/operations/restore")
    order = Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind=kind,
        resource_type="restore",
        resource_id=resource_id,
        name=name,
        request_id=request.state.request_id,
        deadline_seconds=seconds,
    )
    await acceptance.write(order, "workflow.accepted", {"kind": kind, "name": name})
    return await acceptance.answer(view)
