"""Runs that the platform itself asks for: their rows, as the API writes them for a user.

Written in the transaction that found out that they are needed; the sweeper starts them.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, text, update
from sqlalchemy.orm import Session

from activities.database import once_committed, use_project
from activities.runs import record
from model import metrics
from model.balancers import LoadBalancer
from model.base import new_id
from model.cache_volumes import CacheVolume
from model.groups import Group
from model.images import Image
from model.instances import STABLE, VERBS, Instance, Status
from model.sessions import WorkSession
from model.workflows import NEVER_STARTED, Order, State, Workflow
from model.workspaces import Workspace

ACTOR = "system"
_CALL_SWEEPER = text("SELECT pg_notify('cairn_sweep', '')")


def change(
    session: Session,
    instance: Instance,
    kind: str,
    *,
    because: str,
    deadline_seconds: float,
    parent_id: UUID | None = None,
    **more: Any,
) -> Order:
    """Order a change of an instance that is at rest, whose row the caller has locked; leaves its project in use.

    A delete may be ordered in any state, once those in its way are called off.
    """
    verb = VERBS[kind]
    if instance.status not in STABLE and verb.done is not Status.DELETED:
        raise RuntimeError(f"{kind} of an instance that is {instance.status}: somebody works on it")
    order = Order(
        workflow_id=new_id(),
        project_id=instance.project_id,
        kind=kind,
        resource_type="instance",
        resource_id=instance.id,
        name=instance.name,
        request_id=because,
        deadline_seconds=deadline_seconds,
        fixed_ports=[port["host_port"] for port in instance.wanted_ports if port["host_port"]],
        **more,
    )
    use_project(session, instance.project_id)
    prior = instance.status
    write(session, order, prior_status=prior, parent_id=parent_id)
    instance.status = verb.during
    instance.workflow_id = order.workflow_id
    instance.version += 1
    instance.updated_at = func.now()
    session.flush()
    data = {"name": instance.name, "from": prior, "to": Status(verb.during), "because": because}
    record(session, order, (f"instance.{verb.during}", data))
    return order


def call_off_others(
    session: Session, instance: Instance | Image | Group | LoadBalancer | WorkSession | Workspace | CacheVolume
) -> None:
    """Ask every unfinished run of the resource, whose row the caller has locked, to end, as a user's delete does.

    One that has not started ends here; the sweeper delivers the other cancels. Leaves its project in use.
    """
    use_project(session, instance.project_id)
    mine = (Workflow.project_id == instance.project_id) & (Workflow.resource_id == instance.id)
    now = func.now()
    ended = session.execute(
        update(Workflow)
        .where(mine, Workflow.state == State.ACCEPTED)
        .values(state=State.CANCELLED, error=NEVER_STARTED.model_dump(), finished_at=now, cancel_requested_at=now)
        .returning(Workflow.order, Workflow.created_at, Workflow.finished_at)
    )
    for told, accepted_at, ended_at in ended.all():
        order = Order.model_validate(told)
        count = partial(metrics.ended, order.kind, State.CANCELLED, accepted_at, ended_at)
        once_committed(session, count)
        record(session, order, ("workflow.cancelled", {"kind": order.kind, "error": NEVER_STARTED.model_dump()}))
    running = update(Workflow).where(mine, Workflow.state == State.RUNNING)
    session.execute(running.values(cancel_requested_at=func.coalesce(Workflow.cancel_requested_at, now)))


def write(session: Session, order: Order, *, prior_status: str | None = None, parent_id: UUID | None = None) -> None:
    """The row of a run; with ``parent_id``, one that only its parent starts."""
    session.execute(
        insert(Workflow).values(
            id=order.workflow_id,
            project_id=order.project_id,
            kind=order.kind,
            resource_type=order.resource_type,
            resource_id=order.resource_id,
            actor=ACTOR,
            order=order.written(),
            prior_status=prior_status,
            parent_id=parent_id,
        )
    )
    once_committed(session, lambda: metrics.ACCEPTED.labels(order.kind).inc())
    if parent_id is None:
        session.execute(_CALL_SWEEPER)
