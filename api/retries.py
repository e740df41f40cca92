"""``POST /v1/workflows/{id}/retry``: what failed or was called off, once more, as a new workflow."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy import Row, func, select, update

from api.accept import Acceptance, Show
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing
from api.errors import RESPONSES
from api.instance_rows import check_unmanaged
from api.quotas import reserve
from api.workflows import WorkflowView, find, view
from model.errors import InvalidState
from model.hosts import Host, HostState
from model.instances import STABLE, VERBS, Instance, Status
from model.settings import Settings
from model.workflows import Order as WorkflowOrder
from model.workflows import State, Workflow

router = APIRouter(prefix="/v1/workflows", tags=["workflows"], responses=RESPONSES)

LAUNCH = "ProvisionInstance"
#: Of instances: those whose order says all that was asked for.
_REPEATABLE = {
    *(LAUNCH, "StartInstance", "StopInstance", "RestartInstance", "PauseInstance", "ResumeInstance"),
    "DeprovisionInstance",
}
#: Who tries something again may also ask for it.
_PERMISSIONS = dict.fromkeys(_REPEATABLE, "instances:operate") | {
    LAUNCH: "instances:create",
    "DeprovisionInstance": "instances:delete",
    "DrainHost": "hosts:manage",
}
_ENDED_BADLY = (State.FAILED, State.CANCELLED)


@router.post("/{workflow_id}/retry", status_code=202, response_model=Envelope[WorkflowView])
async def retry(
    request: Request, workflow_id: UUID, caller: Annotated[Caller, may("workflows:retry")], body: Nothing | None = None
) -> Response:
    """Try a failed or cancelled workflow again: a new one of the same kind and order, whose `retry_of` names it.

    409 `invalid_state` where the resource is not in a state from which it can begin, where it was retried already
    (`workflow_id` names that one), and for the platform's own work, which it does again by itself. A launch holds its
    quota anew: 429 `quota_exceeded`. Each workflow is retried once; what fails again is retried by its own id.
    Who retries something may also ask for it: else 403.
    """
    acceptance = Acceptance(request, caller)
    row = await find(caller, workflow_id)
    if row.kind in _PERMISSIONS:
        caller.require(_PERMISSIONS[row.kind])
    # The resource first: of two at once, the second sees what the first has done.
    resource = await _lock(caller, row)
    if answered := await acceptance.answered_before(row.resource_id, None):
        return await acceptance.answer(_showing(request, answered.workflow_id), answered)
    await _check(caller, row)
    if row.resource_type == "instance":
        await check_unmanaged(caller, resource)
    order = WorkflowOrder.model_validate(row.order).model_copy(
        update={"workflow_id": acceptance.workflow_id, "request_id": request.state.request_id}
    )
    if row.kind == "DrainHost":
        await _drain_again(caller, acceptance, order, resource, row)
    else:
        await _change_again(caller, acceptance, order, resource, row)
    return await acceptance.answer(_showing(request, order.workflow_id))


async def _lock(caller: Caller, row: Row[Any]) -> Row[Any]:
    table: type[Host] | type[Instance] | None = {"instance": Instance, "host": Host}.get(row.resource_type)  # type: ignore[assignment]
    if table is None:
        if row.kind == "ImportImage":
            name, path = row.order["name"], f"/v1/images/{row.resource_id}"
            raise _refused(row, f"delete image {name} (DELETE {path}), then import it anew")
        raise _refused(row, f"{row.kind} is not of the kinds that can be: ask for it anew")
    query = select(table.__table__).where(table.id == row.resource_id).with_for_update()
    found = (await caller.execute(query)).one_or_none()
    if found is None:
        raise _refused(row, f"its {row.resource_type} is deleted")
    return found


async def _check(caller: Caller, row: Row[Any]) -> None:
    """Raises InvalidState where this is not a run to try again."""
    if row.state not in _ENDED_BADLY:
        raise _refused(row, f"it is {row.state}: only what failed or was cancelled is tried again")
    newer = (await caller.execute(select(Workflow.id).where(Workflow.retry_of == row.id))).scalar_one_or_none()
    if newer is not None:
        raise _refused(row, f"it was retried already, by workflow {newer}", workflow_id=str(newer))
    if row.kind not in _REPEATABLE | {"DrainHost"}:
        if row.parent_id is not None or row.actor == "system":
            raise _refused(row, f"{row.kind} is work of the platform, which it does again where it is needed")
        raise _refused(row, f"{row.kind} is not retried, as its parts may be out of date: ask for it anew")


async def _change_again(
    caller: Caller, acceptance: Acceptance, order: WorkflowOrder, instance: Row[Any], row: Row[Any]
) -> None:
    verb, launch = VERBS[row.kind], row.kind == LAUNCH
    allowed = frozenset({Status.ERROR}) if launch else verb.allowed & STABLE
    if instance.status not in allowed:
        names = " or ".join(sorted(allowed))
        raise InvalidState(
            f"instance {instance.name} is {instance.status}: this can be tried again while it is {names}",
            state=instance.status,
            **({} if instance.status in STABLE else {"workflow_id": str(instance.workflow_id)}),
        )
    if launch and instance.workflow_id != row.id:
        # A delete that failed, say: something of the instance may still be there.
        raise InvalidState(
            f"workflow {instance.workflow_id} has worked on instance {instance.name} since: delete the instance",
            state=instance.status,
            workflow_id=str(instance.workflow_id),
        )
    if launch and (instance.secrets or (instance.registry_secret and instance.image_id is None)):
        caller.require("secrets:use")
    values: dict[str, Any] = {"quota": "reserved", "error": None} if launch else {}
    await caller.execute(
        update(Instance)
        .where(Instance.id == instance.id)
        .values(
            status=verb.during,
            workflow_id=order.workflow_id,
            version=Instance.version + 1,
            updated_at=func.now(),
            **values,
        )
    )
    data = {"name": instance.name, "from": instance.status, "to": verb.during, "retry_of": str(row.id)}
    await acceptance.write(
        order, f"instance.{verb.during}", data, prior_status=None if launch else instance.status, retry_of=row.id
    )
    if launch:
        await reserve(caller, instances=1, vcpus=instance.vcpus, memory_mb=instance.memory_mb)


async def _drain_again(
    caller: Caller, acceptance: Acceptance, order: WorkflowOrder, host: Row[Any], row: Row[Any]
) -> None:
    if host.state == HostState.DRAINING:
        raise InvalidState(f"host {host.name} is being drained already", state=host.state)
    await caller.execute(update(Host).where(Host.id == host.id).values(state=HostState.DRAINING))
    data = {"name": host.name, "from": host.state, "to": HostState.DRAINING, "retry_of": str(row.id)}
    await acceptance.write(order, "host.draining", data, prior_status=host.state, retry_of=row.id)


def _refused(row: Row[Any], why: str, **details: Any) -> InvalidState:
    return InvalidState(f"workflow {row.id} is not retried: {why}", **({"state": row.state} | details))


def _showing(request: Request, workflow_id: UUID) -> Show:
    """The workflow, where others show its resource."""
    settings: Settings = request.app.state.settings

    async def show(caller: Caller, _resource_id: UUID) -> dict[str, Any]:
        return view(await find(caller, workflow_id), settings)

    return show
