"""How runs on workspaces end: the state and the commit that they leave behind."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from activities.runs import RunEnded, end, record
from model.base import Frozen
from model.workflows import Failure, Order, Outcome, Step, Workflow
from model.workspaces import DEPROVISION, SYNC, Workspace, WorkspaceFacts, WorkspaceLogin, WorkspaceStatus


class WorkspaceEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None
    facts: WorkspaceFacts | None = None


def lock_workspace(session: Session, order: Order) -> Workspace:
    """The row of the order's workspace, which nobody else changes until the commit."""
    mine = (Workspace.project_id == order.project_id) & (Workspace.id == order.resource_id)
    found = session.scalars(select(Workspace).where(mine).with_for_update()).one_or_none()
    if found is None:  # the database was restored, and is older than the run
        raise RunEnded(f"there is no workspace {order.resource_id}")
    return found


def settle_workspace(
    session: Session,
    order: Order,
    outcome: Outcome,
    failure: Failure | None,
    steps: list[Step] | None,
    facts: WorkspaceFacts | None = None,
) -> None:
    """End a run on a workspace. Once: a row that ended is left alone.

    A workspace of which a sync failed is as it was before, with the reason; of the first fetch nothing is left.
    """
    workspace = lock_workspace(session, order)
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    events = []
    if workspace.workflow_id == order.workflow_id:  # a delete that came meanwhile owns it now
        session.execute(delete(WorkspaceLogin).where(WorkspaceLogin.workspace_id == workspace.id))
        previous, workspace.status = workspace.status, _leads_to(row, order, outcome)
        workspace.version += 1
        workspace.updated_at = func.now()
        workspace.error = failure.model_dump() if failure is not None else None
        told: dict[str, Any] = {"name": workspace.name, "from": previous, "to": workspace.status}
        if outcome == "completed" and facts is not None:
            told["commit"] = facts.commit
            workspace.commit, workspace.ref, workspace.size_bytes = facts.commit, facts.ref, facts.size_bytes
        if workspace.status == WorkspaceStatus.DELETED:
            workspace.deleted_at = func.now()
            workspace.host_id = workspace.credential_id = None
        events.append((f"workspace.{workspace.status}", told))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _leads_to(row: Workflow, order: Order, outcome: Outcome) -> WorkspaceStatus:
    if order.kind == DEPROVISION:
        if outcome == "completed":
            return WorkspaceStatus.DELETED
        # Called off while it was only a row, all is as it was; but not where it has called something else off.
        before = row.prior_status in (WorkspaceStatus.READY, WorkspaceStatus.ERROR) and row.started_at is None
        return WorkspaceStatus(row.prior_status or "") if before else WorkspaceStatus.ERROR
    if outcome == "completed" or order.kind == SYNC:
        return WorkspaceStatus.READY
    return WorkspaceStatus.ERROR
