"""The steps of a project's end: all that is in it is deleted, a few at a time, and then the project."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, func, select, text, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities import orders
from activities.database import transaction
from activities.fleet import Limits
from activities.images import settle_image
from activities.instance_ends import settle_instance
from activities.runs import Histories, claim, end, record
from model.base import Frozen, new_id
from model.images import Image, ImageStatus
from model.instances import Instance, Status
from model.projects import Project
from model.workflows import NEVER_STARTED, Failure, Order, Outcome, State, Step, Workflow

#: Deletions of one project at a time.
AT_ONCE = 8
#: Of what could not be deleted, so many are named.
NAMED = 10
_FORGET = text("SELECT forget_project(:project)")
R = TypeVar("R", Instance, Image)


class Emptying(Frozen):
    """What is deleted next, how many others work on, and what could not be deleted; ``left``: how many of these."""

    deletions: list[Order] = []
    busy: int = 0
    stuck: list[str] = []
    left: int = 0


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
            found = self._next(session, order, Instance)
            # Images after instances, which are made of them.
            return self._next(session, order, Image) if found == Emptying() else found

    def _next(self, session: Session, order: Order, kind: type[R]) -> Emptying:
        children = select(Workflow).where(Workflow.parent_id == order.workflow_id)
        waiting = session.scalars(children.where(Workflow.state == State.ACCEPTED)).all()
        deletions = [Order.model_validate(row.order) for row in waiting]
        ours = [row.resource_id for row in waiting]
        failed = list(session.scalars(select(Workflow.resource_id).where(*_failed(order))))
        live = (kind.project_id == order.project_id) & (kind.status != Status.DELETED)
        to_delete = select(kind).where(live, kind.status != Status.DELETING, kind.id.not_in(failed)).order_by(kind.id)
        room = max(0, AT_ONCE - len(deletions))
        for resource in session.scalars(to_delete.limit(room).with_for_update()).all():
            deletions.append(self._delete(session, order, resource))
            ours.append(resource.id)
        stuck = list(
            session.scalars(
                select(kind.name).where(live, kind.id.in_(failed), kind.status != Status.DELETING).order_by(kind.name)
            )
        )
        busy = session.scalar(
            select(func.count()).select_from(kind).where(live, kind.id.not_in(ours), kind.name.not_in(stuck))
        )
        return Emptying(deletions=deletions, busy=busy or 0, stuck=stuck[:NAMED], left=len(stuck))

    def _delete(self, session: Session, order: Order, resource: Instance | Image) -> Order:
        """As a user's delete: whatever works on it is called off."""
        orders.call_off_others(session, resource)
        because = f"project deleted: {order.name}"
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
        child = Order(
            workflow_id=new_id(),
            project_id=resource.project_id,
            kind="DeleteImage",
            resource_type="image",
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
        record(session, child, ("image.deleting", data))
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


def _failed(order: Order) -> tuple[ColumnElement[bool], ...]:
    ended_badly = Workflow.state.in_((State.FAILED, State.CANCELLED))
    return Workflow.parent_id == order.workflow_id, ended_badly


def settle_project(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End the run, and its deletions that have not begun. Once: a row that ended is left alone."""
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    for child in session.scalars(
        select(Workflow).where(Workflow.parent_id == order.workflow_id, Workflow.state == State.ACCEPTED)
    ).all():
        settle = settle_instance if child.resource_type == "instance" else settle_image
        settle(session, Order.model_validate(child.order), "cancelled", NEVER_STARTED, [])
        session.flush()
    data = {"name": order.name}
    events = [("project.deleted" if _is_gone(session, order.project_id) else "project.kept", data)]
    session.execute(update(Project).where(Project.id == order.project_id).values(deleting_at=None))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _is_gone(session: Session, project_id: UUID) -> bool:
    return session.scalar(select(Project.deleted_at).where(Project.id == project_id)) is not None
