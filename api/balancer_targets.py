"""``/v1/lb/{id}/targets``: the instances that a load balancer sends requests to."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy import Row, func, insert, select, update

from activities.balancer_configs import published_port
from api.accept import Acceptance, Show
from api.authentication import may
from api.balancer_rows import lock, mine, target_view, targets_query
from api.balancer_schemas import TargetCreate, TargetPatch, TargetView
from api.balancers import balancer_order, begin, check_open
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.resources import one
from model.balancers import (
    MOST_TARGETS,
    UPDATE,
    BalancerSettings,
    BalancerStatus,
    BalancerTarget,
    LoadBalancer,
    TargetState,
)
from model.errors import InvalidState, Managed, NotFound, QuotaExceeded, UnreachableTarget, ValidationFailed
from model.groups import Group, GroupStatus
from model.instances import Instance, Status

router = APIRouter(prefix="/v1/lb/{balancer_id}/targets", tags=["load-balancers"], responses=RESPONSES)
#: Of what was one: the run that took it out has deleted its row.
REMOVED = "removed"


@router.get("", response_model=Envelope[list[TargetView]])
async def index(request: Request, balancer_id: UUID, caller: Annotated[Caller, may("lb:read")]) -> Response:
    """All of its targets, oldest first, at most 200, with what its own checks say of each."""
    await one(caller, select(LoadBalancer.id).where(mine(caller, balancer_id)), "load balancer", balancer_id)
    query = targets_query.where(*_of(caller, balancer_id)).order_by(
        BalancerTarget.created_at, BalancerTarget.instance_id
    )
    return answer(request, [target_view(row) for row in (await caller.execute(query)).all()])


@router.post("", status_code=202, response_model=Envelope[TargetView])
async def add(
    request: Request, balancer_id: UUID, body: TargetCreate, caller: Annotated[Caller, may("lb:update")]
) -> Response:
    """Send requests to an instance too. It takes them as soon as the balancer's check of it has passed.

    On the balancer's own host it is reached at its address; on another host `port` has to be published there: 422
    `unreachable_target`. As long as it does not run it is no target, and it is one again when it does.
    """
    acceptance = Acceptance(request, caller)
    balancer = await lock(caller, balancer_id)
    showing = _showing(balancer_id, body.instance_id)
    if answered := await acceptance.answered_before(balancer_id, body.model_dump(mode="json")):
        return await acceptance.answer(showing, answered)
    check_open(balancer)
    await _check_reachable(caller, balancer, body)
    target = await _find(caller, balancer_id, body.instance_id)
    if target is not None:
        raise InvalidState(
            f"instance {target.name} is a target of {balancer.name} already: PATCH changes its weight",
            state=target.state,
            **({"workflow_id": str(target.workflow_id)} if target.workflow_id else {}),
        )
    there = select(func.count()).select_from(BalancerTarget).where(*_of(caller, balancer_id))
    if (await caller.execute(there)).scalar_one() >= MOST_TARGETS:
        raise QuotaExceeded(f"a load balancer has at most {MOST_TARGETS} targets", limit=MOST_TARGETS)
    order = _order(request, caller, acceptance, balancer)
    await caller.execute(
        insert(BalancerTarget).values(
            balancer_id=balancer_id,
            instance_id=body.instance_id,
            project_id=caller.project_id,
            port=body.port,
            weight=body.weight,
            state=TargetState.ADDING,
            workflow_id=order.workflow_id,
        )
    )
    caller.changed("load_balancer", balancer_id, after={"target": body.model_dump(mode="json")})
    await begin(caller, acceptance, balancer, order, BalancerStatus.UPDATING)
    return await acceptance.answer(showing)


@router.patch("/{instance_id}", status_code=202, response_model=Envelope[TargetView])
async def weigh(
    request: Request,
    balancer_id: UUID,
    instance_id: UUID,
    body: TargetPatch,
    caller: Annotated[Caller, may("lb:update")],
) -> Response:
    """Give a target another share of the requests; with weight 0 it takes no new users."""
    acceptance = Acceptance(request, caller)
    balancer = await lock(caller, balancer_id)
    check_open(balancer)
    target = await _idle(caller, balancer, instance_id)
    order = _order(request, caller, acceptance, balancer)
    await _change(caller, target, weight=body.weight, prior_weight=target.weight, workflow_id=order.workflow_id)
    told = {"target": str(instance_id), "weight": body.weight}
    caller.changed("load_balancer", balancer_id, told | {"weight": target.weight}, told)
    await begin(caller, acceptance, balancer, order, BalancerStatus.UPDATING)
    return await acceptance.answer(_showing(balancer_id, instance_id))


@router.delete("/{instance_id}", status_code=202, response_model=Envelope[TargetView])
async def remove(
    request: Request, balancer_id: UUID, instance_id: UUID, caller: Annotated[Caller, may("lb:update")]
) -> Response:
    """Send no requests to an instance any more. It takes nothing new at once, and is out when what it had begun has
    ended, or after the balancer's `drain_seconds`. A member of a group that names the balancer is the group's: 409
    `managed`."""
    acceptance = Acceptance(request, caller)
    balancer = await lock(caller, balancer_id)
    check_open(balancer)
    target = await _idle(caller, balancer, instance_id)
    await _check_unmanaged(caller, balancer, target)
    order = _order(request, caller, acceptance, balancer)
    await _change(caller, target, state=TargetState.DRAINING, workflow_id=order.workflow_id)
    caller.changed("load_balancer", balancer_id, {"target": str(instance_id)}, {})
    await begin(caller, acceptance, balancer, order, BalancerStatus.UPDATING)
    return await acceptance.answer(_showing(balancer_id, instance_id, target_view(target) | {"state": REMOVED}))


def _of(caller: Caller, balancer_id: UUID) -> tuple[Any, ...]:
    return BalancerTarget.project_id == caller.project_id, BalancerTarget.balancer_id == balancer_id


async def _find(caller: Caller, balancer_id: UUID, instance_id: UUID) -> Row[Any] | None:
    mine = targets_query.where(*_of(caller, balancer_id), BalancerTarget.instance_id == instance_id)
    return (await caller.execute(mine)).one_or_none()


async def _idle(caller: Caller, balancer: Row[Any], instance_id: UUID) -> Row[Any]:
    """A target that no run is changing. Raises NotFound, InvalidState."""
    target = await _find(caller, balancer.id, instance_id)
    if target is None:
        known = select(Instance.name).where(Instance.project_id == caller.project_id, Instance.id == instance_id)
        name = (await caller.execute(known)).scalar_one_or_none()
        raise NotFound(f"load balancer {balancer.name} has no target {name or instance_id}")
    if target.workflow_id is not None:
        raise InvalidState(
            f"target {target.name} is being changed by workflow {target.workflow_id}: wait for that, or cancel it",
            state=target.state,
            workflow_id=str(target.workflow_id),
        )
    return target


async def _check_unmanaged(caller: Caller, balancer: Row[Any], target: Row[Any]) -> None:
    """That no group puts it back at once. Raises Managed."""
    naming = (Group.load_balancer_id == balancer.id) & Group.status.not_in((GroupStatus.DELETING, GroupStatus.DELETED))
    query = select(Group.id, Group.name, Group.kind).join(Instance, Instance.group_id == Group.id)
    group = (await caller.execute(query.where(Instance.id == target.instance_id, naming))).one_or_none()
    if group is not None:
        raise Managed(
            f"instance {target.name} is a member of {group.kind} {group.name}, which names load balancer"
            f" {balancer.name}: scale or change that, or delete the instance",
            managed_by={"type": group.kind, "id": str(group.id), "name": group.name},
        )


async def _change(caller: Caller, target: Row[Any], **values: Any) -> None:
    which = (BalancerTarget.balancer_id == target.balancer_id) & (BalancerTarget.instance_id == target.instance_id)
    await caller.execute(update(BalancerTarget).where(which).values(**values, updated_at=func.now()))


async def _check_reachable(caller: Caller, balancer: Row[Any], body: TargetCreate) -> None:
    """Raises ValidationFailed, UnreachableTarget."""
    mine = (Instance.project_id == caller.project_id) & (Instance.status != Status.DELETED)
    columns = (*(Instance.id, Instance.name, Instance.host_id, Instance.ports), Instance.balancer_id, Instance.network)
    query = select(*columns).where(mine, Instance.id.in_((body.instance_id, balancer.instance_id)))
    found = {row.id: row for row in (await caller.execute(query)).all()}
    target, proxy = found.get(body.instance_id), found.get(balancer.instance_id)
    if target is None or target.balancer_id is not None:
        said = f"there is no instance {body.instance_id}" if target is None else "it is a load balancer's own"
        raise ValidationFailed(f"instance_id: {said}", fields=[{"field": "instance_id", "message": said}])
    if target.network["mode"] != "open":
        raise UnreachableTarget(
            f"nothing reaches instance {target.name}, whose network is {target.network['mode']}: launch it with "
            "an open one",
            instance_id=str(target.id),
            port=body.port,
        )
    if target.host_id is None or proxy is None or proxy.host_id in (None, target.host_id):
        return  # what is not placed yet may be placed where it is reached
    if published_port(target.ports, body.port) is None:
        raise UnreachableTarget(
            f"instance {target.name} is on another host than load balancer {balancer.name}, and does not publish its "
            f"port {body.port}/tcp there: launch it with that port in its ports, or on the balancer's host",
            instance_id=str(target.id),
            port=body.port,
        )


def _order(request: Request, caller: Caller, acceptance: Acceptance, balancer: Row[Any]) -> Any:
    drain = BalancerSettings.model_validate(balancer.settings).drain_seconds
    return balancer_order(request, caller, acceptance, UPDATE, balancer.id, balancer.name, drain)


def _showing(balancer_id: UUID, instance_id: UUID, gone: dict[str, Any] | None = None) -> Show:
    """The target, where others show its balancer; what is not there any more is ``gone``, or was never added."""

    async def show(caller: Caller, _resource_id: UUID) -> dict[str, Any]:
        row = await _find(caller, balancer_id, instance_id)
        if row is not None:
            return target_view(row)
        if gone is not None:
            return gone
        return {"load_balancer_id": str(balancer_id), "instance_id": str(instance_id), "state": REMOVED}

    return show
