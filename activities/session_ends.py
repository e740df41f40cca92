"""How runs on work sessions end: the state that they leave behind."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from activities import rounds
from activities.instance_ends import settle_instance
from activities.runs import RunEnded, end, record
from model.base import Frozen
from model.instances import Instance, Status
from model.sessions import DEPROVISION, INIT, SessionStatus, WorkSession
from model.workflows import Failure, Order, Outcome, Step, Workflow

#: What a session is whose sandbox is at rest.
_AS_SANDBOX = {Status.RUNNING: SessionStatus.RUNNING, Status.STOPPED: SessionStatus.STOPPED}
#: In which nothing is under way.
_AT_REST = (SessionStatus.READY, SessionStatus.RUNNING, SessionStatus.STOPPED)


class SessionEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None


def lock_session(session: Session, order: Order) -> WorkSession:
    """The row of the order's session, which nobody else changes until the commit."""
    mine = (WorkSession.project_id == order.project_id) & (WorkSession.id == order.resource_id)
    found = session.scalars(select(WorkSession).where(mine).with_for_update()).one_or_none()
    if found is None:  # the database was restored, and is older than the run
        raise RunEnded(f"there is no session {order.resource_id}")
    return found


def settle_session(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End a run on a session, and its parts that have not begun. Once: a row that ended is left alone."""
    work = lock_session(session, order)
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    rounds.call_off(session, order, {"instance": settle_instance})
    events = []
    if work.workflow_id == order.workflow_id:  # else a newer one owns it now
        sandbox = session.get_one(Instance, work.instance_id)
        events.append(move_session(work, _leads_to(row, outcome, Status(sandbox.status))))
        work.error = failure.model_dump() if failure else None
        if work.status == SessionStatus.REMOVED:
            work.deleted_at = func.now()
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _leads_to(row: Workflow, outcome: Outcome, sandbox: Status) -> SessionStatus:
    if row.kind == DEPROVISION and outcome == "completed":
        return SessionStatus.REMOVED
    # Called off while it was only a row, it has changed nothing; but it may have called something else off.
    if row.kind == DEPROVISION and (row.started_at is not None or row.prior_status not in _AT_REST):
        return SessionStatus.ERROR
    if row.kind == INIT and outcome != "completed":
        return SessionStatus.ERROR
    # A change that failed may have led anywhere: what the sandbox is, the session is.
    return _AS_SANDBOX.get(sandbox, SessionStatus(row.prior_status or SessionStatus.ERROR))


def move_session(work: WorkSession, status: SessionStatus) -> tuple[str, dict[str, Any]]:
    """Move the session; the event that says so."""
    previous = work.status
    work.status = status
    work.version += 1
    work.updated_at = func.now()
    return f"session.{status}", {"name": work.name, "from": previous, "to": status}
