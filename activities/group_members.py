"""Members of a group: found, launched, deleted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, insert, select
from sqlalchemy.orm import Session, aliased

from activities import group_balancing, orders, pool_members
from activities.database import use_project
from activities.fleet import Limits
from activities.reserving import RESERVE
from activities.runs import record
from model.balancers import BalancerTarget
from model.base import new_id
from model.errors import ImageNotFound, NotReady, QuotaExceeded
from model.groups import SUFFIX, Group, GroupStatus, Template
from model.images import Image, ImageStatus
from model.instances import Instance, Status
from model.projects import QUOTAS, Project, ProjectQuota
from model.scaling import Member, Wish, condition, steps
from model.workflows import Failure, Order, State, Workflow

#: Launches of one group at a time, and as many deletions. Some end before more are ordered, so mostly a few fewer are
#: under way.
AT_ONCE = 20
#: What is done with an instance that a run of its group asked for.
LAUNCH, REMOVE = "ProvisionInstance", "DeprovisionInstance"
_SEEN = (
    *(Instance.id, Instance.name, Instance.group_revision, Instance.host_id, Instance.status, Instance.container_id),
    *(Instance.drift, Instance.health, Instance.health_at, Instance.health_check, Instance.updated_at),
    *(Instance.created_at, Instance.workflow_id, Instance.error, Instance.image_digest, Instance.ports),
    # As the group's balancer has it.
    *(BalancerTarget.state.label("target"), BalancerTarget.health.label("found")),
    *(BalancerTarget.health_at.label("found_at"), BalancerTarget.check.label("checked")),
)
_INSERT = insert(Instance.__table__)  # type: ignore[arg-type]  # a Table, typed as FromClause


def rows(session: Session, group: Group) -> Sequence[Row[Any]]:
    """What is not deleted, oldest first."""
    mine = (Instance.group_id == group.id) & (Instance.status != Status.DELETED)
    at = (BalancerTarget.instance_id == Instance.id) & (BalancerTarget.balancer_id == group.load_balancer_id)
    return session.execute(select(*_SEEN).outerjoin(BalancerTarget, at).where(mine).order_by(Instance.id)).all()


def wish_of(group: Group, *, gates: bool = False) -> Wish:
    """What the group should be."""
    surge, unavailable = steps(group.max_surge, group.max_unavailable, group.desired_count)
    return Wish(
        desired=group.desired_count,
        revision=group.revision,
        rolls=not group.paused,
        gates=gates and not group.paused,
        surge=surge,
        unavailable=unavailable,
        nothing=group.status == GroupStatus.DELETING,
    )


def members(session: Session, group: Group, found: Sequence[Row[Any]]) -> list[Member]:
    """As the rules of scaling see them."""
    known = select(func.now().label("now"), Project.drift_policy).where(Project.id == group.project_id)
    now, policy = session.execute(known).one()
    stale = pool_members.stale(found, now) if group.kind == "pool" else frozenset()
    plain = [
        Member(
            row.id,
            pool_members.OUTDATED if row.id in stale else row.group_revision,
            condition(
                status=row.status,
                container_id=row.container_id,
                drift=row.drift,
                health=row.health,
                health_at=row.health_at,
                health_check=row.health_check,
                updated_at=row.updated_at,
                heals=policy == "heal",
                min_ready=dt.timedelta(seconds=group.min_ready_seconds),
                now=now,
            ),
            row.host_id,
        )
        for row in found
    ]
    return group_balancing.seen(session, group, plain, found, now)


def cause(row: Row[Any]) -> Failure:
    """Why a member is replaced."""
    if row.error and row.status == Status.ERROR:
        known = Failure.model_validate(row.error)
        return known.model_copy(update={"message": f"{row.name}: {known.message}"})
    if row.drift is not None and row.drift["kind"] in ("missing", "stopped"):
        return Failure(code="instance_exited", message=f"{row.name}: its machine is {row.drift['kind']}")
    if row.found == "down" and row.health in (None, "healthy"):
        said = f": {row.checked}" if row.checked else ""
        return Failure(code="unhealthy", message=f"{row.name}: the load balancer's checks find it down{said}")
    return Failure(code="unhealthy", message=f"{row.name} is {row.health or row.status}")


def not_begun(session: Session, order: Order, found: Sequence[Row[Any]]) -> tuple[list[Order], list[Order]]:
    """Launches and deletions that this run, or an earlier one of the group, ordered, and that wait to be started."""
    busy = [row.workflow_id for row in found if row.status in (Status.PENDING, Status.DELETING)]
    parent = aliased(Workflow)
    waiting = session.scalars(
        select(Workflow.order)
        .join(parent, parent.id == Workflow.parent_id)
        .where(Workflow.id.in_(busy), Workflow.state == State.ACCEPTED, parent.resource_id == order.resource_id)
        .order_by(Workflow.id)
    )
    both = [Order.model_validate(told) for told in waiting] if busy else []
    return [one for one in both if one.kind == LAUNCH], [one for one in both if one.kind == REMOVE]


def not_deleted(session: Session, order: Order) -> Collection[UUID]:
    """Members whose deletion this run ordered, and which failed."""
    return set(
        session.scalars(
            select(Workflow.resource_id).where(
                Workflow.parent_id == order.workflow_id,
                Workflow.kind == REMOVE,
                Workflow.state.in_((State.FAILED, State.CANCELLED)),
            )
        )
    )


def image_is_gone(session: Session, template: Template) -> Failure | None:
    """Whether the project's image that the template names is there no more. Else it stays until the commit."""
    if template.image_id is None:
        return None
    there = (Image.id == template.image_id) & (Image.status == ImageStatus.AVAILABLE)
    if session.scalar(select(Image.id).where(there).with_for_update(read=True)) is not None:
        return None
    return Failure(code=ImageNotFound.code, message=f"image {template.image} was deleted")


def launch(
    session: Session, group: Group, order: Order, template: Template, number: int, limits: Limits
) -> list[Order]:
    """Order so many launches, or as many as the quota allows. Raises QuotaExceeded where that is none, NotReady where
    others were quicker. Last in a transaction."""
    size = {"instances": 1, "vcpus": template.vcpus, "memory_mb": template.memory_mb}
    number = min(number, _fitting(session, group, size))
    if number < 1:
        raise QuotaExceeded("the project's quota allows no more members; see GET /v1/projects/{id}/quotas", **size)
    fixed = [port.host_port for port in template.wanted_ports if port.host_port]
    launches = [_launch_of(group, order, fixed, limits) for _ in range(number)]
    # The row of each, all at once; who writes the workflows' comes after, as they name each other.
    columns = template.columns()
    now: dt.datetime = session.execute(select(func.now())).scalar_one()
    ttl = template.ttl_seconds
    columns["expires_at"] = now + dt.timedelta(seconds=ttl) if ttl is not None else None
    own = [
        {
            "id": one.resource_id,
            "name": one.name,
            "project_id": group.project_id,
            "status": Status.PENDING,
            "workflow_id": one.workflow_id,
            "group_id": group.id,
            "group_revision": group.revision,
            "warm": group.kind == "pool",
        }
        for one in launches
    ]
    session.flush()
    session.execute(_INSERT, [columns | its for its in own])
    for one in launches:
        orders.write(session, one, parent_id=order.workflow_id)
        data = {"name": one.name, "from": None, "to": Status.PENDING, "because": one.request_id}
        record(session, one, ("instance.pending", data))
    held = {what: number * part for what, part in size.items()}
    session.flush()
    if session.execute(RESERVE, {"project": group.project_id, **held}).rowcount == 0:  # type: ignore[attr-defined]
        raise NotReady("others took what was left of the project's quota meanwhile")
    return launches


def _launch_of(group: Group, order: Order, fixed: list[int], limits: Limits) -> Order:
    id = new_id()
    return Order(
        workflow_id=new_id(),
        project_id=group.project_id,
        kind=LAUNCH,
        resource_type="instance",
        resource_id=id,
        name=f"{group.name}-{id.hex[1 - SUFFIX :]}",
        request_id=f"{group.kind} {group.name}",
        deadline_seconds=limits.deadline_launch,
        grace_seconds=limits.stop_grace,
        fixed_ports=fixed,
        traceparent=order.traceparent,
    )


def _fitting(session: Session, group: Group, size: dict[str, float]) -> int:
    """How many more of this size the project's quota allows, as far as one can see."""
    quota = session.execute(select(ProjectQuota.__table__).where(ProjectQuota.project_id == group.project_id)).one()
    left = [
        int((limit - getattr(quota, f"{what}_used") - getattr(quota, f"{what}_reserved")) // size[what])
        for what in QUOTAS
        if (limit := getattr(quota, f"{what}_limit")) is not None
    ]
    return max(0, min([*left, 2**31]))


def remove(session: Session, group: Group, order: Order, id: UUID, because: str, limits: Limits) -> Order:
    """Order the deletion of a member, as a user's delete would: whatever works on it is called off."""
    instance = session.scalars(select(Instance).where(Instance.id == id).with_for_update()).one()
    if instance.status in (Status.DELETING, Status.DELETED) or instance.group_id != group.id:  # somebody was quicker
        raise NotReady(f"instance {instance.name} is {instance.status}, or was claimed")
    orders.call_off_others(session, instance)
    made = orders.change(
        session,
        instance,
        REMOVE,
        because=because,
        deadline_seconds=limits.deadline_delete,
        grace_seconds=limits.stop_grace,
        parent_id=order.workflow_id,
    )
    use_project(session, group.project_id)
    return made
