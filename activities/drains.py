"""The steps of a drain: everything on a host moves elsewhere, a few at a time."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import structlog
from sqlalchemy import Engine, or_, select, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities import orders, rounds
from activities.database import transaction, use_project
from activities.fleet import Limits, silence_says_something
from activities.instance_ends import settle_instance
from activities.runs import Histories, claim, end, record
from model.base import Frozen
from model.errors import NoCapacity
from model.hosts import LEASE, MARGIN, Host, HostState, fenced_after, is_reachable
from model.instances import STABLE, Instance, Status
from model.workflows import Failure, Order, Outcome, Step

log = structlog.get_logger()
#: Moves of one host at a time.
AT_ONCE = 4
#: Of why one could not be moved, characters.
LONGEST = 300


class Round(Frozen):
    """What a drain does next: moves to carry out, how many instances it has to wait for, which it cannot move."""

    moves: list[Order]
    busy: int
    stuck: list[str]


class DrainEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None


class HostDrains:
    """Drains in the database. Runs on the control queue."""

    def __init__(self, engine: Engine, histories: Histories, limits: Limits) -> None:
        self._engine = engine
        self._histories = histories
        self._limits = limits

    @activity.defn(name="drain.next")
    def next(self, order: Order) -> Round:
        """Claim the run; order the next moves. Those that it ordered and that have not begun come again."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            moves, failed = rounds.waiting(session, order), rounds.failed(session, order)
            here = or_(Instance.host_id == order.resource_id, Instance.next_host_id == order.resource_id)
            host = session.get_one(Host, order.resource_id)
            may_judge = silence_says_something(session, self._limits.tick_away)
            stuck, busy = [], 0
            for instance in session.scalars(select(Instance).where(here).order_by(Instance.id).with_for_update()).all():
                lost = self._is_lost(host, instance, may_judge=may_judge)
                if instance.status not in STABLE:  # also one whose move failed: a delete may have called that off
                    busy += 1
                elif instance.id in failed or instance.status == Status.ERROR or lost == "stuck":
                    mine = instance.project_id == order.project_id
                    otherwise = "it is in error" if lost == "here" else "its host is silent"
                    stuck.append(_stuck(instance.name if mine else None, failed.get(instance.id), otherwise))
                elif len(moves) < AT_ONCE and lost != "wait":
                    moves.append(
                        orders.change(
                            session,
                            instance,
                            "MoveInstance",
                            because=f"drain: {order.name}",
                            deadline_seconds=self._limits.deadline_launch,
                            grace_seconds=self._limits.stop_grace,
                            host_lost=lost == "lost",
                            parent_id=order.workflow_id,
                        )
                    )
                else:
                    busy += 1
            use_project(session, order.project_id)
            return Round(moves=moves, busy=busy, stuck=stuck)

    def _is_lost(self, host: Host, instance: Instance, *, may_judge: bool) -> Literal["here", "lost", "wait", "stuck"]:
        """Whether the host can be asked to let the instance go, and else what its policy says, once it counts as
        lost: for a while it may only have found no API."""
        if is_reachable(host.last_seen_at):
            return "here"
        if host.last_seen_at is None:
            return "stuck"
        silent = dt.datetime.now(dt.UTC) - host.last_seen_at
        due = LEASE + MARGIN
        if silent < due or not may_judge:
            return "wait"
        if instance.on_host_lost == "keep":
            return "stuck"
        if instance.on_host_lost == "fence":
            due = max(due, fenced_after(host, self._limits.fence_after))
        return "lost" if silent > due else "wait"

    @activity.defn(name="drain.settle")
    def settle(self, drained: DrainEnd) -> None:
        """End the run: the host is cordoned, or as it was before."""
        steps = self._histories.steps(drained.order.workflow_id)
        with transaction(self._engine, drained.order.project_id) as session:
            settle_host(session, drained.order, drained.outcome, drained.failure, steps)


def _stuck(name: str | None, error: dict[str, str] | None, otherwise: str) -> str:
    """``name`` None: it is another project's, of which only the code is told."""
    if error is None:
        why = otherwise
    elif name is not None and error["code"] == NoCapacity.code:
        why = f"{NoCapacity.code}: {error['message']}"[:LONGEST]
    else:
        why = error["code"]
    return f"{name or 'one of another project'} ({why})"


def settle_host(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End a drain's run, and its moves that have not begun. Once: a row that ended is left alone."""
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    rounds.call_off(session, order, {"instance": settle_instance})
    state = HostState(row.prior_status or HostState.CORDONED) if outcome == "cancelled" else HostState.CORDONED
    session.execute(update(Host).where(Host.id == order.resource_id).values(state=state))
    record(
        session,
        order,
        (f"host.{state}", {"name": order.name, "from": HostState.DRAINING, "to": state}),
        (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}),
    )
