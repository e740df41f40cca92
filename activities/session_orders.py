"""Runs on work sessions that the platform orders by itself."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from activities import orders
from activities.database import use_project
from activities.fleet import Limits
from activities.runs import record
from model.base import new_id
from model.instances import Instance
from model.lifetimes import AGAIN
from model.sessions import DEPROVISION, STOP, UP, SessionStatus, WorkSession
from model.workflows import TERMINAL, Order, Workflow


def due(session: Session, sandbox: Instance, kind: str, because: str, limits: Limits) -> Order | None:
    """Order the stop or the delete of the session whose sandbox is due for it; None: it is being worked on, or that
    failed a moment ago."""
    mine = (WorkSession.project_id == sandbox.project_id) & (WorkSession.id == sandbox.session_id)
    # Whoever has it locks the sandbox next, which is locked here.
    work = session.scalars(select(WorkSession).where(mine).with_for_update(skip_locked=True)).one_or_none()
    if work is None or work.status in (SessionStatus.REMOVING, SessionStatus.REMOVED):
        return None
    if kind == STOP and work.status not in UP:
        return None
    lately = Workflow.finished_at > func.now() - AGAIN
    busy = Workflow.state.not_in(TERMINAL) if kind == STOP else (Workflow.kind == kind) & Workflow.finished_at.is_(None)
    its = (Workflow.project_id == work.project_id) & (Workflow.resource_id == work.id)
    if session.scalars(select(Workflow.id).where(its, busy | (lately & (Workflow.kind == kind))).limit(1)).first():
        return None
    return begin(session, work, kind, because, limits)


def begin(
    session: Session, work: WorkSession, kind: str, because: str, limits: Limits, parent_id: UUID | None = None
) -> Order:
    """Order it, as a user would, whose row the caller has locked; leaves its project in use."""
    if kind == DEPROVISION:
        orders.call_off_others(session, work)
    order = Order(
        workflow_id=new_id(),
        project_id=work.project_id,
        kind=kind,
        resource_type="session",
        resource_id=work.id,
        name=work.name,
        request_id=because,
        deadline_seconds=limits.deadline_delete + limits.deadline_stop if kind == DEPROVISION else limits.deadline_stop,
        grace_seconds=limits.stop_grace,
    )
    use_project(session, work.project_id)
    prior = work.status
    orders.write(session, order, prior_status=prior, parent_id=parent_id)
    if kind == DEPROVISION:
        work.status = SessionStatus.REMOVING
    work.workflow_id = order.workflow_id
    work.version += 1
    work.updated_at = func.now()
    session.flush()
    data = {"name": work.name, "from": prior, "to": work.status, "because": because}
    record(session, order, (f"session.{'removing' if kind == DEPROVISION else 'stopping'}", data))
    return order
