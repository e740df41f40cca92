"""The steps of a project's end: all that is in it is deleted, a few at a time, and then the project."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities import group_orders, orders, rounds, session_orders
from activities.balancer_ends import settle_balancer
from activities.cache_volume_ends import settle_cache_volume
from activities.database import transaction
from activities.fleet import Limits
from activities.groups import settle_group
from activities.images import settle_image
from activities.instance_ends import settle_instance
from activities.rounds import NAMED, Emptying
from activities.runs import Histories, claim, end, record
from activities.session_ends import settle_session
from activities.workspace_ends import settle_workspace
from model.balancers import DEPROVISION, LoadBalancer
from model.base import Frozen, new_id
from model.cache_volumes import DEPROVISION as DEPROVISION_CACHE
from model.cache_volumes import CacheVolume
from model.cron import CronJob
from model.groups import DELETE, Group
from model.images import Image, ImageStatus
from model.instances import Instance, Status
from model.projects import Project
from model.sessions import DEPROVISION as REMOVE
from model.sessions import WorkSession
from model.workflows import Failure, Order, Outcome, ResourceType, Step
from model.workspaces import DEPROVISION as DEPROVISION_WORKSPACE
from model.workspaces import Workspace

#: Deletions of one project at a time.
AT_ONCE = 8
GONE, GOING = (Status.DELETED, "removed"), (Status.DELETING, "removing")
_CALL = text("SELECT pg_notify('cairn', 'cron')")
_FORGET = text("SELECT forget_project(:project)")
R = TypeVar("R", Group, LoadBalancer, WorkSession, Instance, Workspace, CacheVolume, Image)
#: Of what has no module that orders its delete: noun, workflow, and what its events are called after.
_DELETES: dict[type, tuple[ResourceType, str, str]] = {
    LoadBalancer: ("load_balancer", DEPROVISION, "lb"),
    Workspace: ("workspace", DEPROVISION_WORKSPACE, "workspace"),
    CacheVolume: ("cache_volume", DEPROVISION_CACHE, "cache_volume"),
    Image: ("image", "DeleteImage", "image"),
}
_SETTLE: dict[str, Callable[..., None]] = {
    "instance": settle_instance,
    "image": settle_image,
    "group": settle_group,
    "deployment": settle_group,
    "pool": settle_group,
    "load_balancer": settle_balancer,
    "session": settle_session,
    "workspace": settle_workspace,
    "cache_volume": settle_cache_volume,
}


class ProjectEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None


class ProjectEnds:
    """Runs on the control queue."""

    def __init__(self, engine: Engine, histories: Histories, limits: Limits) -> None:
        self._engine = engine
        self._histories = histories
        self._limits = limits

    @activity.defn(name="project.next")
    def next(self, order: Order) -> Emptying:
        """Claim the run; order the next deletions. Those that it ordered and that have not begun come again."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            _end_cron_jobs(session, order.project_id)
            # Groups before instances, which they would replace, and before the balancers that they name; balancers
            # and sessions before instances too, as they have some; cache volumes after sessions, which have them;
            # images after instances, which are made of them.
            found = self._next(session, order, Group)
            if found == Emptying():
                found = self._next(session, order, LoadBalancer)
            if found == Emptying():
                found = self._next(session, order, WorkSession)
            if found == Emptying():
                found = self._next(session, order, Instance)
            if found == Emptying():
                found = self._next(session, order, Workspace)
            if found == Emptying():
                found = self._next(session, order, CacheVolume)
            return self._next(session, order, Image) if found == Emptying() else found

    def _next(self, session: Session, order: Order, kind: type[R]) -> Emptying:
        deletions = rounds.waiting(session, order)
        ours = [child.resource_id for child in deletions]
        failed = list(rounds.failed(session, order))
        live = (kind.project_id == order.project_id) & kind.status.not_in(GONE)
        to_delete = select(kind).where(live, kind.status.not_in(GOING), kind.id.not_in(failed)).order_by(kind.id)
        room = max(0, AT_ONCE - len(deletions))
        for resource in session.scalars(to_delete.limit(room).with_for_update()).all():
            deletions.append(self._delete(session, order, resource))
            ours.append(resource.id)
        stuck = list(
            session.scalars(
                select(kind.name).where(live, kind.id.in_(failed), kind.status.not_in(GOING)).order_by(kind.name)
            )
        )
        busy = session.scalar(
            select(func.count()).select_from(kind).where(live, kind.id.not_in(ours), kind.name.not_in(stuck))
        )
        return Emptying(deletions=deletions, busy=busy or 0, stuck=stuck[:NAMED], left=len(stuck))

    def _delete(
        self,
        session: Session,
        order: Order,
        resource: Group | LoadBalancer | WorkSession | Instance | Workspace | CacheVolume | Image,
    ) -> Order:
        """As a user's delete: whatever works on it is called off."""
        orders.call_off_others(session, resource)
        because = f"project deleted: {order.name}"
        if isinstance(resource, Group):
            return group_orders.begin(session, resource, DELETE, "delete", because, parent_id=order.workflow_id)
        if isinstance(resource, WorkSession):
            return session_orders.begin(session, resource, REMOVE, because, self._limits, order.workflow_id)
        if isinstance(resource, Instance):
            return orders.change(
                session,
                resource,
                "DeprovisionInstance",
                because=because,
                deadline_seconds=self._limits.deadline_delete,
                grace_seconds=self._limits.stop_grace,
                parent_id=order.workflow_id,
            )
        noun, kind, event = _DELETES[type(resource)]
        child = Order(
            workflow_id=new_id(),
            project_id=resource.project_id,
            kind=kind,
            resource_type=noun,
            resource_id=resource.id,
            name=resource.name,
            request_id=because,
            deadline_seconds=self._limits.deadline_delete,
        )
        orders.write(session, child, prior_status=resource.status, parent_id=order.workflow_id)
        before, resource.status = resource.status, ImageStatus.DELETING
        resource.workflow_id = child.workflow_id
        resource.version += 1
        resource.updated_at = func.now()
        session.flush()
        data = {"name": resource.name, "from": before, "to": ImageStatus.DELETING, "because": because}
        record(session, child, (f"{event}.deleting", data))
        return child

    @activity.defn(name="project.forget")
    def forget(self, order: Order) -> bool:
        """Delete the project itself, with its people and keys; False where something is in it again. Repeated, True."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            return bool(session.scalar(_FORGET, {"project": order.project_id}))

    @activity.defn(name="project.settle")
    def settle(self, ended: ProjectEnd) -> None:
        """End the run: the project is gone, or open again with what is left in it."""
        steps = self._histories.steps(ended.order.workflow_id)
        with transaction(self._engine, ended.order.project_id) as session:
            settle_project(session, ended.order, ended.outcome, ended.failure, steps)


def _end_cron_jobs(session: Session, project_id: UUID) -> None:
    """They make nothing in it any more; who looks after Temporal's schedules takes those away."""
    live = (CronJob.project_id == project_id) & CronJob.deleted_at.is_(None)
    gone = {"deleted_at": func.now(), "version": CronJob.version + 1, "updated_at": func.now()}
    if session.execute(update(CronJob).where(live).values(**gone).returning(CronJob.id)).first() is not None:
        session.execute(_CALL)


def settle_project(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End the run, and its deletions that have not begun. Once: a row that ended is left alone."""
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    rounds.call_off(session, order, _SETTLE)
    data = {"name": order.name}
    events = [("project.deleted" if _is_gone(session, order.project_id) else "project.kept", data)]
    session.execute(update(Project).where(Project.id == order.project_id).values(deleting_at=None))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _is_gone(session: Session, project_id: UUID) -> bool:
    return session.scalar(select(Project.deleted_at).where(Project.id == project_id)) is not None
