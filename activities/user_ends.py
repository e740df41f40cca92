"""The steps of a user's end: the projects that nobody else owns are deleted, the personal one last, then the user."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Engine, Row, func, text, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities import orders, rounds
from activities.database import transaction, use_project
from activities.project_ends import settle_project
from activities.rounds import NAMED, Emptying
from activities.runs import Histories, claim, end, record
from model.base import Frozen, new_id
from model.projects import Project
from model.workflows import Failure, Order, Outcome, Step

#: Projects at a time, each of which deletes several things at a time.
AT_ONCE = 2
#: Not those that somebody else owns too, be it somebody who is deactivated now.
_OWNED = text("SELECT id, name, personal, deleting, stays FROM owned_by(:user) WHERE personal OR others = 0")
_FORGET = text("SELECT forget_user(:user)")


class UserEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None


class UserEnds:
    """Runs on the control queue."""

    def __init__(self, engine: Engine, histories: Histories) -> None:
        self._engine = engine
        self._histories = histories

    @activity.defn(name="user.next")
    def next(self, order: Order) -> Emptying:
        """Claim the run; order the next deletions. Those that it ordered and that have not begun come again. Nothing,
        where somebody activated the user again: then it is not forgotten either."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            left = session.execute(_OWNED, {"user": order.resource_id}).all()
            if any(project.stays for project in left):
                return Emptying()
            deletions = rounds.waiting(session, order)
            ours = {child.resource_id for child in deletions}
            failed = rounds.failed(session, order)
            # Ids alone: who reads this may have no part in them.
            stuck = [f"project {project.id}" for project in left if project.id in failed]
            open_ones = [project for project in left if project.id not in failed]
            busy = [project for project in open_ones if project.deleting and project.id not in ours]
            # With the personal one the user goes.
            others = [project for project in open_ones if not project.personal]
            for project in others or ([] if stuck else open_ones):
                if len(deletions) < AT_ONCE and not project.deleting:
                    deletions.append(self._delete(session, order, project))
            use_project(session, order.project_id)
            return Emptying(deletions=deletions, busy=len(busy), stuck=stuck[:NAMED], left=len(stuck))

    def _delete(self, session: Session, order: Order, project: Row[tuple[UUID, str, bool, bool, bool]]) -> Order:
        use_project(session, project.id)
        child = Order(
            workflow_id=new_id(),
            project_id=project.id,
            kind="DeprovisionProject",
            resource_type="project",
            resource_id=project.id,
            name=project.name[:63],
            request_id=order.request_id,
            deadline_seconds=order.deadline_seconds,
        )
        orders.write(session, child, parent_id=order.workflow_id)
        session.execute(update(Project).where(Project.id == project.id).values(deleting_at=func.now()))
        record(session, child, ("project.deleting", {"name": project.name, "because": "its owner is deleted"}))
        return child

    @activity.defn(name="user.forget")
    def forget(self, order: Order) -> bool:
        """Delete the user; False where somebody activated them again, or they own something still. Repeated, True."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            return bool(session.scalar(_FORGET, {"user": order.resource_id}))

    @activity.defn(name="user.settle")
    def settle(self, ended: UserEnd) -> None:
        """End the run: the user is gone, or deactivated."""
        steps = self._histories.steps(ended.order.workflow_id)
        with transaction(self._engine, ended.order.project_id) as session:
            settle_user(session, ended.order, ended.outcome, ended.failure, steps)


def settle_user(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End the run, and its deletions that have not begun. Once: a row that ended is left alone."""
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    rounds.call_off(session, order, {"project": settle_project})
    became = "user.deleted" if outcome == "completed" else "user.kept"
    record(
        session,
        order,
        (became, {"name": order.name}),
        (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}),
    )
